"""A tensor in one line: dtype, shape, range, mean and spread, what is not finite, and a small histogram."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import to_numpy
from tensorlite.tensor import Tensor, is_floating

BARS = "▁▂▃▄▅▆▇█"
PLAIN_BARS = " .:-=+*#"  # where the encoding has no blocks
BINS = 12


def summary(x: Tensor | Any, bars: str = BARS) -> str:
    """One line about ``x``.

    The standard deviation divides by n, so one number has 0. All figures are those of the finite numbers, computed in float64.

    Args:
        x: a tensor or an array, on either device.
        bars: the signs of the histogram, the lowest first.
    """
    array = to_numpy(x.array if isinstance(x, Tensor) else x)
    head = f"{array.dtype} {array.shape}"
    if array.size == 0:
        return f"{head}  empty"
    if array.dtype.kind == "b":
        return f"{head}  {int(array.sum()):,} of {array.size:,} True"
    values = array.astype(np.float64)
    finite = values[np.isfinite(values)]
    broken = "".join(f"  {count:,} {name}" for name, count in (("nan", np.isnan(values).sum()), ("inf", np.isinf(values).sum())) if count)
    if finite.size == 0:
        return f"{head}{broken}"
    if array.size == 1:
        return f"{head}  {_number(finite[0])}"
    lowest, highest = finite.min(), finite.max()
    text = f"{head}  {_number(lowest)} … {_number(highest)}"
    if is_floating(array.dtype):
        text += f"  mean {_number(_mean(finite))} ± {_number(_std(finite))}"
    return f"{text}{broken}  {histogram(finite, bars)}"


def histogram(values: np.ndarray, bars: str = BARS) -> str:
    """One sign for each bin, from the smallest number to the largest. A bin that is not empty shows more than the lowest sign."""
    lowest, highest = values.min(), values.max()
    if lowest == highest:
        return bars[-1]
    half = highest / 2 - lowest / 2  # the range itself may overflow
    places = np.minimum((values / 2 - lowest / 2) / half * BINS, BINS - 1).astype(int)
    counts = np.bincount(places, minlength=BINS)
    heights = np.ceil(counts / counts.max() * (len(bars) - 1)).astype(int)
    return "".join(bars[height] for height in heights)


def _mean(values: np.ndarray) -> float:
    scale = np.abs(values).max() or 1.0  # so that no sum overflows
    return float((values / scale).mean() * scale)


def _std(values: np.ndarray) -> float:
    scale = np.abs(values).max() or 1.0
    return float((values / scale).std() * scale)


def _number(value: float) -> str:
    return f"{value:.3g}"


Tensor.summary = summary  # type: ignore[attr-defined]  # x.summary(), as the operators are put on Tensor by `tensorlite.ops.methods`
