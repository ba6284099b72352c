"""How fast training is: in tokens a second, and as a share of what this machine can do at all.

The work of a step is counted, not timed: the multiplications and additions of its matrix products, as ``--profile`` counts them. For a GPT
that is trained as a whole they come to

    6 N + 12 · n_layer · n_embd · T        operations a token,

where N is the number of weights in linear layers (2 operations forward, 4 backward: one product for dx, one for dweight) and the second
term is attention's, in a context of T tokens. What a kernel does again, or skips behind the mask, changes nothing: this is the work that
the model asks for. Frozen layers and LoRA ask for less, and are counted as they are.

The peak is measured: large matrix products, on all workers at once, in the type of the weights, for a moment before the first step. The
share of it that training reaches says how much time goes to something else than the mathematics. A machine that was busy with other
work in that moment looks slower than it is, until training itself is faster: then that is the peak.

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
PATIENCE = 0.2  # seconds for finding the peak


@dataclass(frozen=True)
class Work:
    """Operations in the matrix products of one step: so many for each token, and for each pair of a token and one in its context."""

    per_token: float
    per_pair: float

    def of(self, rows: int, T: int) -> float:
        """For a batch of ``rows`` rows of T tokens."""
        return rows * T * (self.per_token + T * self.per_pair)


class Reached(NamedTuple):
    """What was reached between two looks; None where there is nothing to count, or no peak."""

    tokens_per_second: float
    operations_per_second: float | None
    share_of_peak: float | None

    def rounded(self) -> dict[str, float | None]:
        """For the log."""
        digits = {"tokens_per_second": None, "operations_per_second": None, "share_of_peak": 4}
        return {name: None if value is None else round(value, digits[name]) for name, value in self._asdict().items()}


class Speed:
    """Counts what goes through the model between two looks at the clock.

    Attributes:
        work: of a step; None until it is counted.
        peak: operations a second that this machine is capable of; None if that is not known.
    """

    def __init__(self) -> None:
        self.work: Work | None = None
        self.peak: float | None = None
        self.restart()

    def calibrate(self, model: LanguageModel, device: str, workers: Workers) -> None:
        """Count the work and measure the peak. Where the memory does not suffice for that, neither is known."""
        try:
            self.work, self.peak = count_work(model, device), measure_peak(model, device, workers)
        except MemoryError:
            self.work = self.peak = None

    def restart(self) -> None:
        """Forget what was counted: from now on."""
        self._tokens, self._operations, self._start = 0, 0.0, time.perf_counter()

    def add(self, x: np.ndarray) -> None:
        """A batch (B, T) has been learnt from."""
        self._tokens += x.size
        self._operations += self.work.of(*x.shape) if self.work else 0.0

    def look(self) -> Reached:
        """What was reached since the last look."""
        seconds = time.perf_counter() - self._start
        rate = self._operations / seconds or None
        if rate and self.peak:
            self.peak = max(self.peak, rate)
        reached = Reached(self._tokens / seconds, rate, rate / self.peak if rate and self.peak else None)
        self.restart()
        return reached


def count_work(model: LanguageModel, device: str) -> Work:
    """Let one row go through ``model`` and back, and count. The gradients, which must not hold anything yet, are forgotten."""
    T = model.config.block_size
    ids = tl.tensor(np.zeros((1, T), np.int64), device=device)
    with np.errstate(all="ignore"), use_generator(make_generator(0)), Profile() as profile:
        _, loss = model(ids, ids)
        loss.backward()
    model.zero_grad()
    pairs = sum(line.flops for line in profile.records.values() if "attention" in line.op)
    return Work((sum(line.flops for line in profile.records.values()) - pairs) / T, pairs / T**2)


def measure_peak(model: LanguageModel, device: str, workers: Workers) -> float:
    """Operations a second in products of large square matrices, the best of several tries."""
    size, on_gpu = SIZE[Device(device).name], Device(device).name == "cupy"
    numbers = make_generator(0).standard_normal((size, size), np.float32)
    dtype = half_dtype() if on_gpu and half_dtype() else next(iter(model.parameters())).dtype  # rounded before, and not in each product
    matrix = tl.tensor(numbers, dtype=dtype, device=device)

    def product(_: Any) -> None:
        (matrix @ matrix)[0, 0].numpy()  # waits for a GPU

    begin, best = time.perf_counter(), np.inf
    workers.map(product, range(workers.count))
    while time.perf_counter() - begin < PATIENCE or best == np.inf:
        start = time.perf_counter()
        workers.map(product, range(workers.count))
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 * workers.count / best
