"""The bigram model without any training: count."""

from __future__ import annotations

import numpy as np


def counted_bigram_loss(train_tokens: np.ndarray, val_tokens: np.ndarray, vocab_size: int, pseudocount: float = 0.1) -> float:
    """The validation loss, in nats a token, of the relative frequencies of pairs in the training text.

        P(b | a) = (n(a, b) + α) / (n(a) + α V)

    The table of logits that minimises the training loss is log n(a, b) - log n(a): gradient descent on a bigram model can only
    find what counting gives at once. The pseudocount α keeps a pair that the training text never had from being impossible; descent
    does the same by ending before such a logit is at -inf.

    Shapes: train_tokens (N,), val_tokens (M,) ids below vocab_size V. Every pair of neighbours of val_tokens is scored once.
    """
    counts = np.full((vocab_size, vocab_size), pseudocount)
    np.add.at(counts, (train_tokens[:-1], train_tokens[1:]), 1)
    log_p = np.log(counts) - np.log(counts.sum(axis=1, keepdims=True))  # (V, V)
    return float(-log_p[val_tokens[:-1], val_tokens[1:]].mean())
