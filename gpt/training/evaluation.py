"""What an evaluation finds, the best one so far, and a bigram model by counting to compare a trained one with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from data.loader import Tokens

CHUNK = 2**20  # pairs that are counted at a time


@dataclass(frozen=True)
class Evaluation:
    """Mean losses, in nats a token, over the same batches every time. Every token counts the same, whichever batch it is in."""

    train_loss: float
    val_loss: float


@dataclass
class BestEvaluation:
    """The lowest validation loss so far, the step that had it, and how many evaluations there have been since."""

    val_loss: float = math.inf
    step: int = 0
    waited: int = 0

    def update(self, val_loss: float, step: int) -> None:
        """Take a new evaluation into account."""
        if val_loss < self.val_loss:
            self.val_loss, self.step, self.waited = val_loss, step, 0
        else:
            self.waited += 1


def counted_bigram_loss(train_tokens: Tokens, val_tokens: Tokens, vocab_size: int, pseudocount: float = 0.1) -> float:
    """The validation loss, in nats a token, of the relative frequencies of pairs in the training text.

        P(b | a) = (n(a, b) + α) / (n(a) + α V)

    The table of logits that minimises the training loss is log n(a, b) - log n(a): gradient descent on a bigram model can at best find
    what counting gives at once. The pseudocount α keeps a pair that the training text does not have from being impossible; descent does
    the same by ending before such a logit reaches -inf.

    Shapes: train_tokens (N,), val_tokens (M,) ids below vocab_size V. Every pair of neighbours of val_tokens is scored once.
    """
    counts = np.full((vocab_size, vocab_size), pseudocount)
    for a, b in _pairs(train_tokens):
        np.add.at(counts, (a, b), 1)
    log_p = np.log(counts) - np.log(counts.sum(axis=1, keepdims=True))  # (V, V)
    return -sum(float(log_p[a, b].sum()) for a, b in _pairs(val_tokens)) / (len(val_tokens) - 1)


def _pairs(tokens: Tokens) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of neighbours, `CHUNK` at a time."""
    for start in range(0, len(tokens) - 1, CHUNK):
        part = tokens[start : start + CHUNK + 1]
        yield part[:-1], part[1:]
