"""Tokens to batches: windows of a long sequence of ids.

A window of block_size + 1 ids has block_size examples. Position t of ``x`` is a token, and position t of ``y`` is the
token after it, which the model has to predict from ``x`` up to and including t:

    tokens   T o _ b e _ o r
    x        T o _ b e _ o
    y        o _ b e _ o r

`RandomBatches` takes windows at random positions. `EpochBatches` takes windows side by side, each once in an epoch. Both read an array, or
a `TokenFile` that is larger than the memory. Both can save their position and continue from it, and both can split the tokens among
several workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import DataError
from data.shuffle import shuffled
from data.token_file import TokenFile

Tokens = np.ndarray | TokenFile
Batch = tuple[np.ndarray, np.ndarray]


class BatchError(DataError):
    """Batches that cannot be drawn; the message has the numbers, and says which of them to change."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` disjoint shares of the examples, for one of as many workers.

    Raises:
        BatchError: unless index is one of 0 … count - 1.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise BatchError(f"{self.count} shards have the numbers 0 to {self.count - 1}, got {self.index}.")


WHOLE = Shard(0, 1)


def split_tokens(tokens: np.ndarray, val_fraction: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """``tokens`` split in order: the first part for training, the last ``val_fraction`` for validation.

    The split is not random. Neighbouring windows share text, so with a random split the model would train on its validation text.

    Raises:
        BatchError: if ``val_fraction`` is not at least 0 and below 1.
    """
    if not 0 <= val_fraction < 1:
        raise BatchError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    cut = int(len(tokens) * (1 - val_fraction))
    return tokens[:cut], tokens[cut:]


class RandomBatches:
    """Windows of ``tokens`` at uniformly random offsets.

    Args:
        tokens: (N,) ids, an array or a file.
        batch_size: B, windows in a batch.
        block_size: T, tokens in a window.
        generator: draws the offsets. Two loaders with equally seeded generators give equal batches.
        name: a name for the tokens in messages.
        shard: take windows only from the index-th of count equal parts of ``tokens``.

    Raises:
        BatchError: if batch_size or block_size is below 1, or there are fewer than block_size + 1 tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        block_size: int,
        generator: np.random.Generator,
        name: str = "corpus",
        shard: Shard = WHOLE,
    ) -> None:
        _check(tokens, batch_size, block_size)
        self._first, stop = (len(tokens) * part // shard.count for part in (shard.index, shard.index + 1))
        _check_length(stop - self._first, block_size, name if shard.count == 1 else f"{name}'s share {shard.index} of {shard.count}")
        self._offsets = stop - self._first - block_size
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.generator = generator

    def next_batch(self) -> Batch:
        """The next ``x`` and ``y``, int64 (B, T); ``y`` is ``x`` one token later."""
        return _read(self.tokens, self._first + self.generator.integers(self._offsets, size=self.batch_size), self.block_size)

    def state_dict(self) -> dict[str, Any]:
        """The position in the sequence of batches, as JSON data."""
        return {"generator": _plain(self.generator.bit_generator.state)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from the position ``state``.

        Raises:
            BatchError: if it was taken from another kind of generator.
        """
        saved, own = state["generator"], self.generator.bit_generator.state
        if saved["bit_generator"] != own["bit_generator"]:
            raise BatchError(
                f"this position is one of a {saved['bit_generator']} generator, but the batches are drawn by {own['bit_generator']}."
            )
        self.generator.bit_generator.state = _like(own, saved)


class EpochBatches:
    """All windows of ``tokens`` side by side, in an order that is shuffled again for each epoch.

    Each window occurs once in an epoch. Every batch is full, so a batch may have the end of one epoch and the beginning of the next.
    With shards, the windows of the order go to the shards in turn. After equally many batches, all shards together have drawn the
    beginning of the order.

    Args:
        tokens: (N,) ids, an array or a file. Up to block_size ids at their end are not used.
        batch_size: B, windows in a batch.
        block_size: T, tokens in a window.
        seed: decides the order.
        name: a name for the tokens in messages.
        shard: take the index-th of every count windows.

    Attributes:
        windows: the number of windows in an epoch, for all shards together.
        position: the number of windows that this shard has drawn.

    Raises:
        BatchError: if batch_size or block_size is below 1, or there are fewer than block_size + 1 tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        batch_size: int,
        block_size: int,
        seed: int,
        name: str = "corpus",
        shard: Shard = WHOLE,
    ) -> None:
        _check(tokens, batch_size, block_size)
        _check_length(len(tokens), block_size, name)
        self.tokens = tokens
        self.batch_size = batch_size
        self.block_size = block_size
        self.seed = seed
        self.shard = shard
        self.windows = (len(tokens) - 1) // block_size
        self.position = 0

    @property
    def epoch(self) -> int:
        """The epoch of the next window."""
        return self._turn(self.position) // self.windows

    def next_batch(self) -> Batch:
        """The next ``x`` and ``y``, int64 (B, T); ``y`` is ``x`` one token later."""
        turns = self._turn(self.position + np.arange(self.batch_size))
        self.position += self.batch_size
        epochs, positions = np.divmod(turns, self.windows)
        numbers = np.empty_like(turns)
        for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
            now = epochs == epoch
            numbers[now] = shuffled(positions[now], self.windows, self.seed, epoch)
        return _read(self.tokens, numbers * self.block_size, self.block_size)

    def state_dict(self) -> dict[str, Any]:
        """The position in the sequence of batches, as JSON data."""
        return {"position": self.position, **self._order()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from the position ``state``.

        Raises:
            BatchError: if it was taken from another text, with another seed or block size, or in another shard.
        """
        for name, own in self._order().items():
            if state[name] != own:
                raise BatchError(f"this position is one in another order of windows: its {name} is {state[name]}, here it is {own}.")
        self.position = state["position"]

    def _order(self) -> dict[str, Any]:
        """The settings that decide the order of the windows."""
        return {"seed": self.seed, "windows": self.windows, "block_size": self.block_size, "shard": [self.shard.index, self.shard.count]}

    def _turn(self, position: Any) -> Any:
        """The place of this shard's position-th window in the order of all shards."""
        return self.shard.index + self.shard.count * position


def _read(tokens: Tokens, starts: np.ndarray, block_size: int) -> Batch:
    """The windows that begin at ``starts``."""
    ids = tokens.open() if isinstance(tokens, TokenFile) else tokens  # again for every batch: see TokenFile
    windows = np.lib.stride_tricks.sliding_window_view(ids, block_size + 1)[starts]  # (B, T + 1)
    return windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)


def _check(tokens: Tokens, batch_size: int, block_size: int) -> None:
    for setting, value in (("batch_size", batch_size), ("block_size", block_size)):
        if value < 1:
            raise BatchError(f"{setting} must be at least 1, got {value}.")
    if isinstance(tokens, np.ndarray) and tokens.ndim != 1:
        raise BatchError(f"tokens must be one row of ids, got shape {tokens.shape}.")


def _check_length(length: int, block_size: int, name: str) -> None:
    if length < block_size + 1:
        smaller = f"a block_size of at most {length - 1:,}" if length > 1 else "give it a larger share of the text"
        raise BatchError(
            f"the {name} is too short: it has {length:,} tokens, but one example takes block_size + 1 = {block_size + 1:,}; "
            f"use a longer text, or {smaller}."
        )


def _plain(state: Any) -> Any:
    """``state`` with lists in place of arrays, at every level."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if isinstance(state, np.ndarray) else state


def _like(own: Any, saved: Any) -> Any:
    """The inverse: ``saved`` with arrays in place of lists wherever ``own`` has an array."""
    if isinstance(own, dict):
        return {name: _like(value, saved[name]) for name, value in own.items()}
    return np.array(saved, own.dtype) if isinstance(own, np.ndarray) else saved
