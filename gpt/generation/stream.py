"""Writing text with a trained model.

    model, tokenizer, config = load_model("runs/tiny")
    print(generate_text(model, tokenizer, "The import statement", max_new_tokens=200))

    for piece in stream_text(model, tokenizer, "The import statement", max_new_tokens=200, temperature=0.8, stop=["\\n\\n"]):
        print(piece, end="", flush=True)

The model is asked for one token at a time: it reads the last block_size tokens (or fewer, see `context_length`), one of its predictions
is drawn, and that becomes part of what it reads next. A cache of keys and values (`gpt.generation.decoder`) makes this fast and changes no
token: where rounding could make a difference to a choice, the model itself is asked.
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
from gpt.generation.decoder import Decoder, supports
from gpt.generation.detokenizer import Pieces
from gpt.generation.sampling import Sampling, choose, draw_luck, sample
from gpt.model import LanguageModel
from tensorlite.backend import Array

__all__ = ["context_length", "generate_text", "sample", "stream_text", "stream_texts", "stream_tokens", "suitable_threads"]

Luck = np.random.Generator | Sequence[np.random.Generator] | None


def generate_text(model: LanguageModel, tokenizer: Tokenizer, prompt: str = "", max_new_tokens: int = 500, **options: Any) -> str:
    """``prompt`` and how the model goes on from it; see `stream_text`, which gives the continuation alone."""
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
    """How the model goes on from ``prompt``, piece by piece as it is written; a piece never ends inside a character.

    A model needs something to go on from: an empty prompt stands for the end of a text before it, or else for a newline (for the
    first token of the vocabulary where there is neither), which is not part of the result.

    Args:
        generator: where the luck comes from; without one, from the thread's stream (see `tensorlite.manual_seed`).
        stop: strings that end the text, which ends before them.
        context_keep, use_cache, decoder: as for `stream_tokens`.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty; see `gpt.generation.sampling.Sampling`.

    Raises:
        UnknownCharacterError: if the prompt has characters that the tokenizer never saw.
        ValueError: if max_new_tokens is negative or an option is out of its range. Both are raised at once, not with the first piece.
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
    generator: Luck = None,
    stop: Sequence[str] = (),
    context_keep: int | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[list[str]]:
    """``count`` different continuations at once: at each step the new piece of each, which may be empty.

    Args:
        generator: one for all or, so that each continuation is what it would be alone, one for each.
        others: as for `stream_text`.
    """
    before = tokenizer.encode(prompt)
    ids = before if before.size else _start(tokenizer)
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
        writers = [Pieces(tokenizer, stop, before) for _ in range(count)]
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
    generator: Luck = None,
    vocab_size: int | None = None,
    context_keep: int | None = None,
    use_cache: bool = True,
    decoder: Decoder | None = None,
    **sampling: Any,
) -> Iterator[np.ndarray]:
    """The tokens that follow ``ids``, one step at a time: (T,) gives arrays (), a batch (B, T) gives arrays (B,).

    Whatever mode the model is in, it predicts in eval mode and off the tape; between two tokens it is back in its own mode,
    so that a loop over them may stop early, or train (then without the cache, which remembers what the old weights made of the text).

    Args:
        generator: of the luck, one for all rows or one for each; without any, the thread's stream.
        vocab_size: draw only from the first that many ids: a model's vocabulary may be rounded up beyond its tokenizer's.
        context_keep: how many tokens the model still sees once there are more than block_size, see `context_length`; without a number
            block_size, as in the course. With half of that most tokens find a cache, which is several times as fast.
        use_cache: keep keys and values. Every token is the same without, it takes longer. A model with layers that
            `gpt.generation.decoder` does not know is asked without.
        decoder: goes on with its keys and values, of an earlier call with the same model; for a conversation.
        sampling: temperature, top_k, top_p, min_p, repetition_penalty; see `gpt.generation.sampling.Sampling`.

    Raises:
        ValueError: if ids is empty, max_new_tokens is negative, or an option is out of its range.
    """
    chosen = Sampling(**sampling)
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens must not be negative, got {max_new_tokens}.")
    text = np.asarray(ids, np.int64)
    if not text.size:
        raise ValueError("a model needs at least one token to go on from.")
    block_size = model.config.block_size
    keep = block_size if context_keep is None else context_keep
    if not 1 <= keep <= block_size:
        raise ValueError(f"context_keep goes from 1 to block_size ({block_size}), got {keep}.")
    if decoder is None and use_cache and supports(model):
        decoder = Decoder(model)
    writer = _Writer(model, decoder if use_cache else None, chosen, vocab_size, generator, keep, np.atleast_2d(text))
    return (writer.next().reshape(text.shape[:-1]) for _ in range(max_new_tokens))


def context_length(tokens: int, block_size: int, keep: int) -> int:
    """How many of the last tokens the model is shown when there are ``tokens``: all, while they fit.

    When one more would be too many the last ``keep`` stay, and there is room for others again. With block_size 8 and keep 5:

        tokens    1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17
        shown     1 2 3 4 5 6 7 8 5  6  7  8  5  6  7  8  5

    The course keeps block_size. Then every new token shifts all others by one position, and nothing that was computed can be used again;
    here that happens once in block_size - keep + 1 tokens. It depends on nothing but the number of tokens, and so it is the same
    with and without a cache, for a text written in one go or in several.
    """
    beyond = tokens - block_size
    return tokens if beyond <= 0 else keep + (beyond - 1) % (block_size - keep + 1)


class _Writer:
    """Chooses the token that follows, for every row of ``text`` (B, T), again and again."""

    def __init__(
        self,
        model: LanguageModel,
        decoder: Decoder | None,
        sampling: Sampling,
        vocab_size: int | None,
        generator: Luck,
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
        """One more token for each row (B,), which then belongs to the text.

        The decoder's logits and the model's differ in their last bits. Where that could change a choice, once in some thousand
        tokens, the model decides.
        """
        luck = draw_luck((len(self.context),), self.sampling, self.generator)
        if self.decoder is None:
            tokens, _ = self._choose(_last_logits(self.model, self.context), luck)
        else:
            logits = self.decoder(self.context)
            tokens, certain = self._choose(logits, luck, self.decoder.rounding(logits))
            if not certain.all():
                tokens = np.where(certain, tokens, self._choose(_last_logits(self.model, self.context), luck)[0])
        self.tokens += 1
        self.context = self._shown(np.concatenate([self.context, tokens[:, None]], axis=1))
        if self.seen is not None:
            np.put_along_axis(self.seen, tokens[:, None], True, axis=1)
        return tokens

    def _shown(self, text: np.ndarray) -> np.ndarray:
        return text[:, -context_length(self.tokens, self.model.config.block_size, self.keep) :]

    def _choose(self, logits: Array, luck: np.ndarray, error: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        seen = None if self.seen is None else self.seen[:, : self.vocab_size]
        return choose(logits[:, : self.vocab_size], luck, self.sampling, seen, error)


def suitable_threads(model: LanguageModel) -> contextlib.AbstractContextManager[Any]:
    """For a ``with`` block that writes: one BLAS thread where the matrices are too small to be worth a second one's waking up."""
    return threadpool_limits(1, user_api="blas") if model.config.n_embd < 256 else contextlib.nullcontext()


def _last_logits(model: LanguageModel, ids: np.ndarray) -> Array:
    """What the model predicts to follow: (B, T) -> (B, V)."""
    device = next(iter(model.parameters())).device
    with _predicting(model):
        logits, _ = model(tl.tensor(ids, device=device))
    return logits.array[:, -1]


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
    if tokenizer.end_of_text is not None:
        return np.array([tokenizer.end_of_text])  # what stands before a document, too
    try:
        newline = tokenizer.encode("\n")
    except UnknownCharacterError:
        return np.zeros(1, np.int64)
    return newline if newline.size else np.zeros(1, np.int64)
