"""How long a run will take: an estimate before the first step, from the time of a small batch on this machine."""

from __future__ import annotations

import math
import time

import numpy as np

import tensorlite as tl
from gpt.training.rows import RowBatches
from gpt.training.trainer import Trainer
from tensorlite.parallel import Workers
from tensorlite.random import make_generator, use_generator

TOKENS = 1024  # of the batch that is measured, at most
UNITS = (("day", 86400), ("hour", 3600), ("minute", 60))


def estimate_seconds(trainer: Trainer) -> float | None:
    """The time of all steps and evaluations that are left, on a CPU; None on a GPU, where a step is recorded first.

    One worker takes some rows forward and backward, twice, and the second time counts. The model has no gradients before, and none
    afterwards; all streams of random numbers stay as they are. Where rows have different lengths, they have the usual one of a batch.
    """
    config, batches = trainer.config, trainer.batches
    if config.backend != "numpy":
        return None
    T = batches.usual_width if isinstance(batches, RowBatches) else trainer.model.config.block_size
    parts = min(trainer.workers.count, trainer.stepper.shard_count)  # that are computed at once
    rows = max(1, min(TOKENS // T, math.ceil(config.batch_size / trainer.stepper.shard_count)))
    ids = tl.tensor(np.zeros((rows, T), np.int64))
    with Workers(1), np.errstate(all="ignore"), use_generator(make_generator(0)):
        for _ in range(2):
            start = time.perf_counter()
            _, loss = trainer.model(ids, ids)
            forward = (time.perf_counter() - start) / rows
            loss.backward()
            both = (time.perf_counter() - start) / rows
            trainer.model.zero_grad()
    steps = config.steps - trainer.step
    evaluations = 1 + steps // config.eval_interval
    trained = steps * config.accumulation * config.batch_size
    evaluated = evaluations * len(trainer.tokens) * config.eval_iters * config.batch_size
    return trained * both / parts + evaluated * forward / trainer.workers.count


def format_duration(seconds: float) -> str:
    """Such as "40 seconds", "3 minutes", "7 hours"."""
    unit, size = next(((unit, size) for unit, size in UNITS if seconds >= 2 * size), ("second", 1))
    count = max(1, round(seconds / size))
    return f"{count} {unit}" + ("s" if count > 1 else "")
