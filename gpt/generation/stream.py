"""Generate text with a trained model.

    model, tokenizer, config = load_model("runs/tiny")
    print(generate_text(model, tokenizer, "The import statement", max_new_tokens=200))

    for piece in stream_text(model, tokenizer, "The import statement", max_new_tokens=200, temperature=0.8, stop=["\\n\\n"]):
        print(piece, end="", flush=True)

The model predicts one token at a time: it reads the last block_size tokens (or fewer, see `context_length`), a token is sampled from its
prediction and appended to the text. A cache of keys and values (`gpt.generation.decoder`) makes this fast and changes no token: where
rounding could change a choice, the model itself is evaluated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

import tensorlite as tl
from data.tokenizer import Tokenizer, UnknownCharacterError
from gpt.generation.decoder import Decoder
from gpt.generation.decoders import make_decoder
from gpt.generation.detokenizer import StreamDetokenizer
from gpt.generation.inference_mode import inference_mode
from gpt.generation.sampling import Sampling, choose_tokens, draw_uniforms, sample
from gpt.model import LanguageModel
from tensorlite.backend import Array

__all__ = [
    "context_length", "generate_text", "limit_threads", "model_logits", "sample", "start_ids", "stream_text", "stream_texts",
    "stream_tokens",
]  # fmt: skip

Generators = np.random.Generator | Sequence[np.random.Generator] | None


def generate_text(model: LanguageModel, tokenizer: Tokenizer, prompt: str = "", max_new_tokens: int = 500, **options: Any) -> str:
    """``prompt`` and its continuation by the model; see `stream_text`, which gives the continuation alone."""
    return prompt + "".join(stream_text(model, tokenizer, prompt, max_new_tokens, **options))


def stream_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 500,
    *,
    generator: np.random.Generator | None = None,
    stop: Sequence[str] = (),
    context_keep: int | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[str]:
    """The continuation of ``prompt``, piece by piece as it is generated; a piece never ends inside a character.

    A model needs at least one token. An empty prompt stands for the token that ends a text or, where there is none, for a newline or the
    first token of the vocabulary; it is not part of the result.

    Args:
        generator: the source of random numbers; without one, the thread's (see `tensorlite.manual_seed`).
        stop: strings that end the text; it ends before them.
        context_keep, use_cache, decoder: as for `stream_tokens`.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty; see `gpt.generation.sampling.Sampling`.

    Raises:
        UnknownCharacterError: if the prompt has characters that the tokenizer does not know.
        ValueError: if max_new_tokens is negative or an option is out of its range. Both are raised by the call, not with the first piece.
    """
    rows = stream_texts(
        model,
        tokenizer,
        prompt,
        max_new_tokens,
        generator=generator,
        stop=stop,
        context_keep=context_keep,
        use_cache=use_cache,
        decoder=decoder,
        **sampling,
    )
    return (piece for (piece,) in rows if piece)


def stream_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompt: str = "",
    max_new_tokens: int = 500,
    *,
    count: int = 1,
    generator: Generators = None,
    stop: Sequence[str] = (),
    context_keep: int | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[list[str]]:
    """``count`` different continuations at once: at each step the new piece of each, which may be empty.

    Args:
        generator: one for all, or one for each; then each continuation is the one it would be alone.
        others: as for `stream_text`.
    """
    before = tokenizer.encode(prompt)
    ids = before if before.size else start_ids(tokenizer)
    tokens = stream_tokens(
        model,
        np.tile(np.asarray(ids, np.int64), (count, 1)),
        max_new_tokens,
        generator=generator,
        vocab_size=tokenizer.vocab_size,
        context_keep=context_keep,
        use_cache=use_cache,
        decoder=decoder,
        **sampling,
    )

    def steps() -> Iterator[list[str]]:
        writers = [StreamDetokenizer(tokenizer, stop, before) for _ in range(count)]
        for step in tokens:
            yield [writer.push(int(token)) for writer, token in zip(writers, step, strict=True)]
            if all(writer.stopped for writer in writers):
                return
        yield [writer.finish() for writer in writers]

    return steps()


def stream_tokens(
    model: LanguageModel,
    ids: ArrayLike,
    max_new_tokens: int,
    *,
    generator: Generators = None,
    vocab_size: int | None = None,
    context_keep: int | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[np.ndarray]:
    """The tokens that follow ``ids``, one step at a time: (T,) gives arrays (), a batch (B, T) gives arrays (B,).

    The model predicts in eval mode and off the tape, whatever its own mode is. Between two tokens it is in its own mode again, so a loop
    over them may stop early, or train (then without the cache, which holds keys and values of the old weights).

    Args:
        generator: the source of random numbers, one for all rows or one for each; without any, the thread's.
        vocab_size: sample only from the first that many ids: a model's vocabulary may be larger than its tokenizer's.
        context_keep: how many tokens the model still reads once there are more than block_size, see `context_length`; by default
            block_size, as in the course. With half of that, most tokens use the cache, which is several times as fast.
        use_cache: keep keys and values. Without, every token is the same, only slower. A model with layers that
            `gpt.generation.decoder` does not know is evaluated without.
        decoder: use its keys and values from an earlier call with the same model; for a conversation.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty; see `gpt.generation.sampling.Sampling`.

    Raises:
        ValueError: if ids is empty, max_new_tokens is negative, or an option is out of its range.
    """
    chosen = Sampling(**sampling)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}.")
    text = np.asarray(ids, np.int64)
    if not text.size:
        raise ValueError("a model needs at least one token to continue.")
    block_size = model.config.block_size
    keep = block_size if context_keep is None else context_keep
    if not 1 <= keep <= block_size:
        raise ValueError(f"context_keep goes from 1 to block_size ({block_size}), got {keep}.")
    if decoder is None and use_cache:
        decoder = make_decoder(model)
    writer = _TokenStream(model, decoder if use_cache else None, chosen, vocab_size, generator, keep, np.atleast_2d(text))
    return (writer.next().reshape(text.shape[:-1]) for _ in range(max_new_tokens))


def context_length(tokens: int, block_size: int, keep: int) -> int:
    """How many of the last tokens the model reads when there are ``tokens``: all, while they fit.

    When the context is full, the last ``keep`` stay, and it fills up again. With block_size 8 and keep 5:

        tokens    1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17
        read      1 2 3 4 5 6 7 8 5  6  7  8  5  6  7  8  5

    The course keeps block_size. Then every new token shifts all others by one position, and no cached key or value can be used;
    here that happens once in block_size - keep + 1 tokens. The result depends only on the number of tokens, so it is the same
    with and without a cache, and for a text generated in one call or in several.
    """
    beyond = tokens - block_size
    return tokens if beyond <= 0 else keep + (beyond - 1) % (block_size - keep + 1)


class _TokenStream:
    """The tokens that follow each row of ``text`` (B, T), one step at a time."""

    def __init__(
        self,
        model: LanguageModel,
        decoder: Decoder | None,
        sampling: Sampling,
        vocab_size: int | None,
        generator: Generators,
        keep: int,
        text: np.ndarray,
    ) -> None:
        self.model, self.decoder, self.sampling, self.vocab_size, self.generator = model, decoder, sampling, vocab_size, generator
        self.keep, self.tokens = keep, text.shape[1]
        self.context = self._shown(text)
        self.seen: np.ndarray | None = None
        if sampling.repetition_penalty != 1:
            self.seen = np.zeros((len(text), model.config.vocab_size), bool)
            np.put_along_axis(self.seen, text, True, axis=1)

    def next(self) -> np.ndarray:
        """One more token for each row (B,), appended to the text.

        The decoder's logits and the model's differ in their last bits. Where that could change a choice, the model's are used: for one
        token in a thousand of a small vocabulary, and for one in a hundred to one in 25 of SmolLM2's, by what limits the sampling.
        """
        uniforms = draw_uniforms((len(self.context),), self.sampling, self.generator)
        if self.decoder is None:
            tokens, _ = self._choose(model_logits(self.model, self.context), uniforms)
        else:
            logits = self.decoder(self.context)
            tokens, certain = self._choose(logits, uniforms, self.decoder.rounding(logits))
            if not certain.all():
                tokens = np.where(certain, tokens, self._choose(model_logits(self.model, self.context), uniforms)[0])
        self.tokens += 1
        self.context = self._shown(np.concatenate([self.context, tokens[:, None]], axis=1))
        if self.seen is not None:
            np.put_along_axis(self.seen, tokens[:, None], True, axis=1)
        return tokens

    def _shown(self, text: np.ndarray) -> np.ndarray:
        return text[:, -context_length(self.tokens, self.model.config.block_size, self.keep) :]

    def _choose(self, logits: Array, uniforms: np.ndarray, error: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        seen = None if self.seen is None else self.seen[:, : self.vocab_size]
        return choose_tokens(logits[:, : self.vocab_size], uniforms, self.sampling, seen, error)


def limit_threads(model: LanguageModel) -> contextlib.AbstractContextManager[Any]:
    """For a ``with`` block that generates: use one BLAS thread where the matrices are too small for a second one to pay."""
    return threadpool_limits(1, user_api="blas") if model.config.n_embd < 256 else contextlib.nullcontext()


def model_logits(model: LanguageModel, ids: np.ndarray) -> Array:
    """The model's own logits at the last position: (B, T) -> (B, V)."""
    device = next(iter(model.parameters())).device
    with inference_mode(model):
        logits, _ = model(tl.tensor(ids, device=device))
    return logits.array[:, -1]


def start_ids(tokenizer: Tokenizer) -> np.ndarray:
    """What an empty prompt stands for, see `stream_text`."""
    if tokenizer.end_of_text is not None:
        return np.array([tokenizer.end_of_text])  # it also stands before each document
    try:
        newline = tokenizer.encode("\n")
    except UnknownCharacterError:
        return np.zeros(1, np.int64)
    return newline if newline.size else np.zeros(1, np.int64)
