"""Writing text with a trained model.

    model, tokenizer, config = load_model("runs/tiny")
    print(generate_text(model, tokenizer, "The import statement", max_new_tokens=200))

    for piece in stream_text(model, tokenizer, "The import statement", max_new_tokens=200):
        print(piece, end="", flush=True)

The model is asked for one token at a time: it reads the last block_size tokens, one of its predictions is drawn, and that
becomes part of what it reads next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

import tensorlite as tl
from data.tokenizer import Tokenizer, UnknownCharacterError
from gpt.model import LanguageModel
from gpt.sampling import check_sampling, sample
from tensorlite.backend import Array

__all__ = ["generate_text", "sample", "stream_text", "stream_tokens"]


def generate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 500,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: np.random.Generator | None = None,
) -> str:
    """``prompt`` and how the model goes on from it; see `stream_text`, which gives the continuation alone."""
    pieces = stream_text(model, tokenizer, prompt, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    return prompt + "".join(pieces)


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 500,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: np.random.Generator | None = None,
) -> Iterator[str]:
    """How the model goes on from ``prompt``, piece by piece as it is written.

    A model needs something to go on from: an empty prompt stands for a newline, the start of a line (for the first token of
    the vocabulary where there is no newline), which is not part of the result.

    Args:
        temperature, top_k, top_p, generator: as for `gpt.sampling.sample`.

    Raises:
        UnknownCharacterError: if the prompt has characters that the tokenizer never saw.
        ValueError: if max_new_tokens is negative or an option is out of its range. Both are raised at once, not with the first piece.
    """
    ids = tokenizer.encode(prompt) if prompt else _start(tokenizer)
    tokens = stream_tokens(
        model,
        ids,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
        vocab_size=tokenizer.vocab_size,
    )
    return (tokenizer.decode(token) for token in tokens)


def stream_tokens(
    model: LanguageModel,
    ids: ArrayLike,
    max_new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: np.random.Generator | None = None,
    vocab_size: int | None = None,
) -> Iterator[np.ndarray]:
    """The tokens that follow ``ids``, one step at a time: (T,) gives arrays (), a batch (B, T) gives arrays (B,).

    Whatever mode the model is in, it predicts in eval mode and off the tape; between two tokens it is back in its own mode,
    so that a loop over them may stop early, or train.

    Args:
        vocab_size: draw only from the first that many ids: a model's vocabulary may be rounded up beyond its tokenizer's.

    Raises:
        ValueError: if ids is empty, max_new_tokens is negative, or an option is out of its range.
    """
    check_sampling(temperature, top_k, top_p)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}.")
    context = np.asarray(ids, np.int64)
    if not context.size:
        raise ValueError("a model needs at least one token to go on from.")

    def steps(context: np.ndarray) -> Iterator[np.ndarray]:
        for _ in range(max_new_tokens):
            context = context[..., -model.config.block_size :]
            scores = _last_logits(model, np.atleast_2d(context))[:, :vocab_size].reshape(*context.shape[:-1], -1)
            token = sample(scores, temperature, top_k, top_p, generator)
            context = np.concatenate([context, token[..., None]], axis=-1)
            yield token

    return steps(context)


def _last_logits(model: LanguageModel, ids: np.ndarray) -> Array:
    """What the model predicts to follow: (B, T) -> (B, V)."""
    device = next(iter(model.parameters())).device
    with _predicting(model):
        logits, _ = model(tl.tensor(ids, device=device))
    return logits.data[:, -1]


@contextlib.contextmanager
def _predicting(model: LanguageModel) -> Iterator[None]:
    """In eval mode and off the tape; afterwards every module is in the mode it was in."""
    in_training = [module for module in model.modules() if module.training]
    with tl.no_grad():
        for module in in_training:
            module.training = False
        try:
            yield
        finally:
            for module in in_training:
                module.training = True


def _start(tokenizer: Tokenizer) -> np.ndarray:
    try:
        return tokenizer.encode("\n")
    except UnknownCharacterError:
        return np.zeros(1, np.int64)
