"""The memory of a training step, estimated before the first one, and what to do when it does not suffice.

Parameters, gradients and the optimizer's arrays are counted. The activations that the forward saves for the backward are measured: one row
of a batch goes through the model, and what its tape holds is multiplied by the number of rows that are computed at once. So the estimate
follows the model and the ops that really run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpt.errors import describe_memory_error, format_bytes
from gpt.training.rows import RowBatches
from gpt.training.trainer import Trainer
from tensorlite import Tensor
from tensorlite.backend import Device
from tensorlite.memory import free_memory
from tensorlite.optim import Optimizer
from tensorlite.precision import use_precision
from tensorlite.random import make_generator, use_generator


@dataclass(frozen=True)
class MemoryEstimate:
    """Numbers of bytes.

    Attributes:
        gradients: one set for each shard.
        optimizer: its running means: AdamW has two, Muon one, SGD one or none.
        activations: what all shards that run at once save for their backward, and the largest array with its gradient once more.
        free: what this process could still allocate when the estimate was made; None if the system does not say.
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
        """Whether more is still to be allocated than is free; parameters and gradients are allocated already."""
        return self.free is not None and self.optimizer + self.activations > self.free

    def __str__(self) -> str:
        parts = ("parameters", "gradients", "optimizer", "activations")
        listed = ", ".join(f"{part} {format_bytes(getattr(self, part))}" for part in parts)
        return f"{format_bytes(self.total)} ({listed})" + (f"; {format_bytes(self.free)} free" if self.free is not None else "")


def estimate_memory(trainer: Trainer) -> MemoryEstimate:
    """The memory that a step of ``trainer`` needs. The model, its gradients and all streams of random numbers stay as they are."""
    config, flats = trainer.config, trainer.optimizer.flats
    trained = sum(flat.data.nbytes for flat in flats)
    frozen = sum(int(p.array.nbytes) for p in trainer.model.parameters() if not p.requires_grad)
    at_once = min(trainer.workers.count, trainer.stepper.shard_count) * math.ceil(config.batch_size / trainer.stepper.shard_count)
    own, others = len(trainer.stepper.shards.own), 1 - 1 / trainer.world.size  # of the other ranks a slice of each
    kept = 1 / trainer.world.size if config.zero else 1.0
    saved, largest = _saved_by_one_row(trainer)
    return MemoryEstimate(
        parameters=trained + frozen,
        gradients=round(trained * (own + others)),
        optimizer=round(kept * sum(_state_size(trainer.optimizer, group) for group in trainer.optimizer.param_groups)),
        activations=(saved + 2 * largest) * at_once,
        free=_free(config.backend),
    )


def advise(error: MemoryError, trainer: Trainer, expected: MemoryEstimate | None, block_size_is_free: bool = True) -> str:
    """The message when memory does not suffice: what was asked for, what uses how much, and what to change."""
    config = trainer.config
    sentences = [describe_memory_error(error)]
    if expected:
        sentences.append(f"A step needs about {expected}.")
        if config.batch_size > 1:
            half = format_bytes(expected.activations // 2)
            smaller, more = config.batch_size // 2, config.accumulation * 2
            sentences.append(f"--batch-size {smaller} --accumulation {more} makes the same steps with activations of {half}.")
    others = [f"a smaller --block-size than {trainer.model.config.block_size}"] if block_size_is_free else []
    if config.backend == "numpy":
        others += [] if config.attention_recompute else ["--attention-recompute true, at the price of time"]
    else:
        others += ["--precision bfloat16, which halves most activations"] if config.precision in ("float32", "tf32") else []
        others += [] if config.memory_limit is None else [f"a larger --memory-limit than {config.memory_limit:g} GiB"]
    return " ".join(sentences + ([f"What also helps: {'; '.join(others)}."] if others else []))


def _state_size(optimizer: Optimizer, group: dict[str, Any]) -> int:
    """The bytes that the optimizer keeps for a group of parameters."""
    return len(optimizer.arrays_of(group)) * sum(int(p.array.nbytes) for p in group["params"])


def _free(backend: str) -> int | None:
    return free_memory() if backend == "numpy" else Device(backend).memory().free


def _saved_by_one_row(trainer: Trainer) -> tuple[int, int]:
    """What the tape holds for one row of a batch, without the parameters, and the largest array of it; in bytes."""
    length = trainer.batches.longest if isinstance(trainer.batches, RowBatches) else trainer.model.config.block_size
    row = np.zeros((1, length), np.int64)
    with use_generator(make_generator(0)), use_precision(trainer.config.precision):
        _, loss = trainer.model(*trainer.stepper.to_device((row, row)))
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
        return  # a type of arrays, not an array
    if hasattr(saved, "nbytes") and hasattr(saved, "dtype"):
        yield saved
    elif isinstance(saved, tuple | list):
        for part in saved:
            yield from _arrays_in(part)
    elif isinstance(saved, dict):
        yield from _arrays_in(list(saved.values()))
    else:  # an object that a kernel defines
        names = (*getattr(saved, "__dict__", ()), *getattr(type(saved), "__slots__", ()))
        yield from _arrays_in([getattr(saved, name, None) for name in names])


def _owner(array: Any) -> Any:
    """The array whose memory this is a view of."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return array
