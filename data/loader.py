"""Tokens to batches: random windows of a long row of ids.

A window of block_size + 1 ids holds block_size examples at once. Position t of ``x`` is a token, and position t of ``y`` is
the one that follows it, which is what the model shall predict having read ``x`` up to and including t:

    tokens   T o _ b e _ o r
    x        T o _ b e _ o
    y        o _ b e _ o r
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.errors import DataError


class BatchError(DataError):
    """Batches that cannot be drawn: the message has the figures and says which of them to change."""


def split_tokens(tokens: np.ndarray, val_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """``tokens`` cut in two, in order: the first part to train on, the last ``val_fraction`` to validate with.

    Never shuffled: neighbouring windows share text, so a random split would let the model see what it is asked.

    Raises:
        BatchError: if ``val_fraction`` is not at least 0 and below 1.
    """
    if not 0 <= val_fraction < 1:
        raise BatchError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    cut = int(len(tokens) * (1 - val_fraction))
    return tokens[:cut], tokens[cut:]


class RandomBatches:
    """Windows of ``tokens`` at random offsets, each as likely as any other.

    Args:
        tokens: (N,) ids, in memory or memory-mapped.
        batch_size: B, windows in a batch.
        block_size: T, tokens in a window.
        generator: draws the offsets; two loaders with equally seeded generators give equal batches.
        name: what the tokens are, for messages.

    Raises:
        BatchError: if batch_size or block_size is below 1, or there are fewer than block_size + 1 tokens.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, block_size: int, generator: np.random.Generator, name: str = "corpus") -> None:
        for setting, value in (("batch_size", batch_size), ("block_size", block_size)):
            if value < 1:
                raise BatchError(f"{setting} must be at least 1, got {value}.")
        if tokens.ndim != 1:
            raise BatchError(f"tokens must be one row of ids, got shape {tokens.shape}.")
        if len(tokens) < block_size + 1:
            raise BatchError(
                f"the {name} is too short: it has {len(tokens):,} tokens, but one example takes block_size + 1 = {block_size + 1:,}; "
                f"use a longer text, or {_smaller_block(len(tokens))}."
            )
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.generator = generator
        self._windows = np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)  # (N - T, T + 1), a view

    def next_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The next ``x`` and ``y``, int64 (B, T); ``y`` is ``x`` one token later."""
        windows = self._windows[self.generator.integers(len(self._windows), size=self.batch_size)]  # (B, T + 1)
        return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream of batches stands, fit for JSON."""
        return {"generator": _plain(self.generator.bit_generator.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state`` was taken.

        Raises:
            BatchError: if it was taken from another kind of generator.
        """
        saved, own = state["generator"], self.generator.bit_generator.state
        if saved["bit_generator"] != own["bit_generator"]:
            raise BatchError(
                f"this position is one of a {saved['bit_generator']} generator, but the batches are drawn by {own['bit_generator']}."
            )
        self.generator.bit_generator.state = _like(own, saved)


def _smaller_block(length: int) -> str:
    return f"a block_size of at most {length - 1:,}" if length > 1 else "give it a larger share of the text"


def _plain(state: Any) -> Any:
    """Arrays to lists, all the way down."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _like(own: Any, saved: Any) -> Any:
    """The way back: lists to arrays wherever ``own`` has an array."""
    if isinstance(own, dict):
        return {name: _like(value, saved[name]) for name, value in own.items()}
    return np.array(saved, own.dtype) if isinstance(own, np.ndarray) else saved
