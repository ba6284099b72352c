"""One text that is being written: its tokens so far, how the next one is chosen, and what of it can be shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from data.tokenizer import Tokenizer
from gpt.generation.detokenizer import StreamDetokenizer
from gpt.generation.sampling import Sampling, choose_tokens, draw_uniforms
from gpt.generation.stream import context_length
from tensorlite.backend import Array, to_numpy


@dataclass(frozen=True)
class Settings:
    """How a text is written.

    Attributes:
        max_tokens: it ends after that many.
        stop: it ends before these strings.
        context_keep: see `gpt.generation.stream.context_length`; None is block_size.
        top_logprobs: how many of the likeliest tokens to report beside the one chosen; None reports no probabilities at all.
    """

    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    context_keep: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Token:
    """A token of a text: ``logprob`` is log p in nats before temperature and the rest of `Sampling`; nan if it was not asked for.

    Attributes:
        start: how many characters of the text are before it.
        top: the likeliest tokens at this place: (text, logprob).
    """

    id: int
    text: str
    start: int
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What is new of a text.

    Attributes:
        finish: "stop" or "length" with the last piece.
        error: why the text cannot go on; then it is the last piece.
        used: how many tokens have been sampled so far; also those that are not shown, as the token that ends a text.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: str | None = None
    error: Exception | None = None
    used: int = 0

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.finish is not None or self.error is not None


class Sequence:
    """A prompt and its continuation.

    Args:
        ids: the prompt (T,), at least one.
    """

    def __init__(
        self, tokenizer: Tokenizer, ids: np.ndarray, settings: Settings, generator: np.random.Generator, block_size: int, vocab_size: int
    ) -> None:
        self.tokenizer, self.settings, self.generator, self.block_size = tokenizer, settings, generator, block_size
        self.ids = np.empty(len(ids) + settings.max_tokens, np.int64)
        self.ids[: len(ids)] = ids
        self.length, self.prompt_length = len(ids), len(ids)
        self.writer = StreamDetokenizer(tokenizer, settings.stop, ids[-block_size:])
        self.seen: np.ndarray | None = None
        if settings.sampling.repetition_penalty != 1:
            self.seen = np.zeros((1, vocab_size), bool)
            self.seen[0, ids] = True
        self._shown = 0  # characters
        self._waiting: list[Token] = []  # those whose text is still held back

    @property
    def context(self) -> np.ndarray:
        """What the model reads for the next token."""
        keep = self.settings.context_keep or self.block_size
        return self.ids[self.length - context_length(self.length, self.block_size, keep) : self.length]

    def append_next(self, logits: Array, error: float, exact: Callable[[], Array]) -> Piece:
        """Choose the next token from ``logits`` (V,), and return what can be shown now.

        Args:
            error: how far the logits may be from the model's own.
            exact: gives the model's own, where that could change the choice.

        Raises:
            DivergedError: if the logits are not finite.
        """
        used, seen = self.tokenizer.vocab_size, self.seen if self.seen is None else self.seen[:, : self.tokenizer.vocab_size]
        sampling, uniforms = self.settings.sampling, draw_uniforms((1,), self.settings.sampling, [self.generator])
        chosen, certain = choose_tokens(logits[None, :used], uniforms, sampling, seen, error)
        if not certain.all():
            logits = exact()
            chosen, _ = choose_tokens(logits[None, :used], uniforms, sampling, seen)
        id = int(chosen[0])
        self.ids[self.length] = id
        self.length += 1
        if self.seen is not None:
            self.seen[0, id] = True
        return self._piece(id, logits[:used])

    def _piece(self, id: int, logits: Array) -> Piece:
        token = self._describe(id, logits)
        text, finish, used = self.writer.push(id), None, self.length - self.prompt_length
        if id != self.tokenizer.end_of_text:
            self._waiting.append(token)
        if self.writer.stopped:
            finish = "stop"
        elif used == self.settings.max_tokens:
            text += self.writer.finish()
            finish = "stop" if self.writer.stopped else "length"
        self._shown += len(text)
        certain = self._shown if finish == "stop" or self.writer.held else np.inf  # a token that begins beyond a stop string is not shown
        ready = tuple(token for token in self._waiting if token.start < certain)
        self._waiting = self._waiting[len(ready) :]
        return Piece(text, ready, finish, used=used)

    def _describe(self, id: int, logits: Array) -> Token:
        count, start = self.settings.top_logprobs, self._shown + len(self.writer.held)
        text = self.tokenizer.decode([id])
        if count is None:
            return Token(id, text, start, float("nan"))
        scores = to_numpy(logits).astype(np.float64)
        scores -= scores.max()
        scores -= np.log(np.exp(scores).sum())
        likeliest = np.argsort(-scores, kind="stable")[:count]
        return Token(id, text, start, float(scores[id]), tuple((self.tokenizer.decode([i]), float(scores[i])) for i in likeliest))
