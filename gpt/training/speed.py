"""The speed of training: in tokens a second, and as a share of the peak of this machine.

The work of a step is counted, not timed: the multiplications and additions of its matrix products, as ``--profile`` counts them. For a GPT
of which all weights are trained they come to

    6 N + 12 · n_layer · n_embd · T        operations a token,

where N is the number of weights in linear layers (2 operations forward, 4 backward: one product for dx, one for dweight) and the second
term is that of attention, in a context of T tokens. It is the work that the model needs: what a kernel computes twice, or skips because of
the mask, does not count. Frozen layers and LoRA need less, and their work is counted as it is.

The peak is measured before the first step, in a fraction of a second: large matrix products, on all workers at once, in the dtype of the
weights. The share of the peak says how much time goes to the matrix products. If other programs were running in that moment, the measured
peak is too low; if training then turns out faster, its speed becomes the peak.

Source: Chowdhery et al. 2022, "PaLM: Scaling Language Modeling with Pathways", appendix B ("model FLOPs utilization").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import tensorlite as tl
from gpt.model import LanguageModel
from tensorlite.backend import Device
from tensorlite.parallel import Workers
from tensorlite.precision import half_dtype
from tensorlite.profile import Profile
from tensorlite.random import make_generator, use_generator

SIZE = {"numpy": 1024, "cupy": 8192}  # of the square matrices; a GPU needs larger ones to be busy
PEAK_SECONDS = 0.2  # for measuring the peak


@dataclass(frozen=True)
class Work:
    """The operations of a step's matrix products: a number for each token, and a number for each pair of tokens in one context."""

    per_token: float
    per_pair: float

    def operations(self, rows: int, T: int) -> float:
        """The operations for a batch of ``rows`` rows of T tokens."""
        return rows * T * (self.per_token + T * self.per_pair)


class Throughput(NamedTuple):
    """The speed in some stretch of time; None where there is nothing to count, or no peak."""

    tokens_per_second: float
    operations_per_second: float | None
    share_of_peak: float | None

    def rounded(self) -> dict[str, float | None]:
        """By name, rounded for the log."""
        digits = {"tokens_per_second": None, "operations_per_second": None, "share_of_peak": 4}
        return {name: None if value is None else round(value, digits[name]) for name, value in self._asdict().items()}


class Speed:
    """Measures the throughput between two calls of `measure`.

    Attributes:
        work: the work of a step; None until it is counted.
        peak: the operations a second that this machine is capable of; None if that is not known.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self.peak: float | None = None
        self.restart()

    def calibrate(self, model: LanguageModel, device: str, workers: Workers, ranks: int = 1) -> None:
        """Count the work and measure the peak, then begin to measure. If the memory does not suffice for that, neither is known.

        Args:
            ranks: how many ranks compute at once, each as fast as this one.
        """
        try:
            self.work, self.peak = count_work(model, device), ranks * measure_peak(model, device, workers)
        except MemoryError:
            self.work = self.peak = None
        self.restart()

    def restart(self) -> None:
        """Begin to measure now."""
        self._tokens, self._operations, self._start = 0, 0.0, time.perf_counter()

    def add(self, x: np.ndarray) -> None:
        """Count a batch (B, T)."""
        self._tokens += x.size
        self._operations += self.work.operations(*x.shape) if self.work else 0.0

    def measure(self) -> Throughput:
        """The throughput since the last call, or since `restart`."""
        seconds = time.perf_counter() - self._start
        rate = self._operations / seconds or None
        if rate and self.peak:
            self.peak = max(self.peak, rate)
        throughput = Throughput(self._tokens / seconds, rate, rate / self.peak if rate and self.peak else None)
        self.restart()
        return throughput


def count_work(model: LanguageModel, device: str) -> Work:
    """Run one row forward and backward through ``model``, and count. Parameters must have no gradients before, and have none afterwards."""
    T = model.config.block_size
    ids = tl.tensor(np.zeros((1, T), np.int64), device=device)
    with np.errstate(all="ignore"), use_generator(make_generator(0)), Profile() as profile:
        _, loss = model(ids, ids)
        loss.backward()
    model.zero_grad()
    pairs = sum(line.flops for line in profile.records.values() if "attention" in line.op)
    return Work((sum(line.flops for line in profile.records.values()) - pairs) / T, pairs / T**2)


def measure_peak(model: LanguageModel, device: str, workers: Workers) -> float:
    """The operations a second in products of large square matrices, the best of several measurements."""
    size, on_gpu = SIZE[Device(device).name], Device(device).name == "cupy"
    numbers = make_generator(0).standard_normal((size, size), np.float32)
    dtype = half_dtype() if on_gpu and half_dtype() else next(iter(model.parameters())).dtype  # rounded once, not in each product
    matrix = tl.tensor(numbers, dtype=dtype, device=device)

    def product(_: Any) -> None:
        (matrix @ matrix)[0, 0].numpy()  # waits for a GPU

    begin, best = time.perf_counter(), np.inf
    workers.map(product, range(workers.count))
    while time.perf_counter() - begin < PEAK_SECONDS or best == np.inf:
        start = time.perf_counter()
        workers.map(product, range(workers.count))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 * workers.count / best
