"""What will it take? The memory of a training step, told before the first one, and what to do when it is not there.

Parameters, gradients and the optimizer's arrays are counted. What the forward keeps for the backward is measured: one row of one
batch goes through the model, and what its tape holds is multiplied with the rows that are on their way at once. So the figure follows
the model and the ops that really run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpt.errors import in_words, missing
from gpt.training.trainer import Trainer
from tensorlite import Tensor
from tensorlite.backend import Device
from tensorlite.memory import free_memory
from tensorlite.precision import use_precision
from tensorlite.random import make_generator, use_generator


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Attributes:
        gradients: one set for each shard.
        optimizer: AdamW's two running means.
        activations: what all shards that run at once keep for their backward, and the largest array with its gradient once more.
        free: what this process could still get when the estimate was made; None if nobody says.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    free: int | None

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.activations

    @property
    def is_too_much(self) -> bool:
        """Whether more is still to come than is free: parameters and gradients are there already."""
        return self.free is not None and self.optimizer + self.activations > self.free

    def __str__(self) -> str:
        parts = ("parameters", "gradients", "optimizer", "activations")
        listed = ", ".join(f"{part} {in_words(getattr(self, part))}" for part in parts)
        return f"{in_words(self.total)} ({listed})" + (f"; {in_words(self.free)} free" if self.free is not None else "")


def estimate(trainer: Trainer) -> Estimate:
    """For the steps of ``trainer``; the model, its gradients and all streams of random numbers are afterwards as they were."""
    config, flats = trainer.config, trainer.optimizer.flats
    trained = sum(flat.data.nbytes for flat in flats)
    frozen = sum(int(p.array.nbytes) for p in trainer.model.parameters() if not p.requires_grad)
    at_once = min(trainer.workers.count, trainer.shard_count) * math.ceil(config.batch_size / trainer.shard_count)
    kept, largest = _one_row(trainer)
    return Estimate(
        parameters=trained + frozen,
        gradients=trained * trainer.shard_count,
        optimizer=trained * len(trainer.optimizer.arrays_of(trainer.optimizer.param_groups[0])),
        activations=(kept + 2 * largest) * at_once,
        free=_free(config.backend),
    )


def advice(error: MemoryError, trainer: Trainer, expected: Estimate | None, block_size_is_free: bool = True) -> str:
    """What to say when there was not enough: what was asked for, what is in use by what, what to change."""
    config = trainer.config
    sentences = [missing(error)]
    if expected:
        sentences.append(f"A step needs about {expected}.")
        if config.batch_size > 1:
            half = in_words(expected.activations // 2)
            smaller, more = config.batch_size // 2, config.accumulation * 2
            sentences.append(f"--batch-size {smaller} --accumulation {more} makes the same steps with activations of {half}.")
    others = [f"a smaller --block-size than {trainer.model.config.block_size}"] if block_size_is_free else []
    if config.backend == "numpy":
        others += [] if config.attention_recompute else ["--attention-recompute true, at the price of time"]
    else:
        others += ["--precision bfloat16, which halves most activations"] if config.precision in ("float32", "tf32") else []
        others += [] if config.memory_limit is None else [f"a larger --memory-limit than {config.memory_limit:g} GiB"]
    return " ".join(sentences + ([f"What helps, too: {'; '.join(others)}."] if others else []))


def _free(backend: str) -> int | None:
    return free_memory() if backend == "numpy" else Device(backend).memory().free


def _one_row(trainer: Trainer) -> tuple[int, int]:
    """What the tape holds for one row of a batch, without the parameters, and the largest array among it; in bytes."""
    row = np.zeros((1, trainer.model.config.block_size), np.int64)
    with use_generator(make_generator(0)), use_precision(trainer.config.precision):
        _, loss = trainer.model(*trainer.to_device((row, row)))
    known = {id(_owner(parameter.array)) for parameter in trainer.model.parameters()}
    sizes = {}
    for array in _saved_arrays(loss):
        owner = _owner(array)
        if id(owner) not in known:
            sizes[id(owner)] = int(owner.nbytes)
    return sum(sizes.values()), max(sizes.values(), default=0)


def _saved_arrays(root: Tensor) -> Iterator[Any]:
    """Every array that a node of the tape behind ``root`` has saved."""
    waiting = [root.source[0]] if root.source else []
    seen = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield from _arrays_in(node.saved)
        waiting += [parent[0][0] for parent in node.parents if parent and isinstance(parent[0], tuple)]


def _arrays_in(saved: Any) -> Iterator[Any]:
    if isinstance(saved, type | ModuleType):
        return  # what kind of arrays they are, none itself
    if hasattr(saved, "nbytes") and hasattr(saved, "dtype"):
        yield saved
    elif isinstance(saved, tuple | list):
        for part in saved:
            yield from _arrays_in(part)
    elif isinstance(saved, dict):
        yield from _arrays_in(list(saved.values()))
    else:  # an object of a kernel's own
        names = (*getattr(saved, "__dict__", ()), *getattr(type(saved), "__slots__", ()))
        yield from _arrays_in([getattr(saved, name, None) for name in names])


def _owner(array: Any) -> Any:
    """The array whose memory this is a view of."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array
