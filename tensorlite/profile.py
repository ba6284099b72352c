"""A profiler: the calls, seconds, floating point operations and bytes of every op, in forward and in backward.

    with Profile() as profile:
        loss = model(x, y)
        loss.backward()
    print(profile.table())

Outside the block nothing is measured, and nothing is slower. A formula counts the operations of the ops that consist of matrix
products: an (N, K) matrix times a (K, M) matrix takes N · K · M multiplications and as many additions. All other ops are limited by
memory, not by arithmetic. For them the bytes matter: the sizes of the input and output arrays.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from tensorlite.backend import array_module
from tensorlite.op import Pair, observe


@dataclass
class OpRecord:
    """The totals of one op in one direction, over all its calls."""

    op: str
    direction: str
    calls: int = 0
    seconds: float = 0.0
    flops: int = 0
    bytes: int = 0

    def add(self, seconds: float, flops: int, size: int) -> None:
        """Add one call."""
        self.calls += 1
        self.seconds += seconds
        self.flops += flops
        self.bytes += size


class Profile:
    """Measures every op, in all threads, inside its ``with`` block. On a GPU it waits for each op, which costs some speed.

    Args:
        workers: how many threads compute at the same time. The times of all of them are added.

    Attributes:
        records: the totals, by op and direction.
        seconds: the duration of the block.
    """

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.records: dict[tuple[str, str], OpRecord] = {}
        self.seconds = 0.0
        self._pairs: dict[tuple[str, int], Pair] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._observing = observe(self._timed)
        self._observing.__enter__()
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        self._observing.__exit__(*exception)

    def table(self) -> str:
        """The records as a table, the longest first, and the time outside of all ops."""
        available = self.seconds * self.workers
        heading = f"{'op':<24}{'direction':<10}{'calls':>8}{'ms':>10}{'share':>8}{'GFLOP':>10}{'GFLOP/s':>10}{'MB':>10}{'GB/s':>8}"
        rows = [heading]
        for line in sorted(self.records.values(), key=lambda line: -line.seconds):
            seconds = max(line.seconds, 1e-9)
            flops = f"{line.flops / 1e9:>10.2f}{line.flops / seconds / 1e9:>10.1f}" if line.flops else f"{'':>20}"
            rows.append(
                f"{line.op:<24}{line.direction:<10}{line.calls:>8,}{1e3 * line.seconds:>10.1f}{line.seconds / available:>8.1%}"
                f"{flops}{line.bytes / 1e6:>10.1f}{line.bytes / seconds / 1e9:>8.1f}"
            )
        inside = sum(line.seconds for line in self.records.values())
        rest = max(0.0, available - inside)
        rows.append(f"{'outside of ops':<34}{'':>8}{1e3 * rest:>10.1f}{rest / available:>8.1%}")
        threads = f" in each of {self.workers} threads" if self.workers > 1 else ""
        rows.append(f"{'all':<34}{'':>8}{1e3 * available:>10.1f}{1:>8.1%}  ({1e3 * self.seconds:.1f} ms{threads})")
        return "\n".join(rows)

    def _timed(self, name: str, pair: Pair) -> Pair:
        """``pair`` with measurements around it; made once for each pair."""
        key = (name, id(pair))
        if key not in self._pairs:
            self._pairs[key] = self._measured(name, pair)
        return self._pairs[key]

    def _measured(self, name: str, pair: Pair) -> Pair:
        def forward(*arrays: Any, **options: Any) -> tuple[Any, Any]:
            start = time.perf_counter()
            y, saved = pair.forward(*arrays, **options)
            _wait(y)
            self._note(name, "forward", start, _flops(name, arrays), _size(arrays) + _size(y))
            return y, (saved, _flops(name, arrays))

        @functools.wraps(pair.backward)  # keeps the signature, which says what else a backward takes (`Pair`)
        def backward(dy: Any, kept: Any, *extra: Any) -> Any:
            saved, flops = kept
            start = time.perf_counter()
            dxs = pair.backward(dy, saved, *extra)
            _wait(dy)
            needs_grad = extra[:1] if pair.takes_needs_grad else ()
            self._note(name, "backward", start, _backward_flops(name, flops, *needs_grad), _size(dy) + _size(dxs))
            return dxs

        return Pair(pair.name, forward, backward)

    def _note(self, name: str, direction: str, start: float, flops: int, size: int) -> None:
        seconds = time.perf_counter() - start
        with self._lock:
            self.records.setdefault((name, direction), OpRecord(name, direction)).add(seconds, flops, size)


def _linear(x: Any, weight: Any, *rest: Any) -> int:
    return 2 * x.size * weight.shape[0]


def _matmul(a: Any, b: Any) -> int:
    columns = b.shape[-1] if b.ndim > 1 else 1
    return 2 * max(a.size * columns, b.size * (a.shape[-2] if a.ndim > 1 else 1))  # the larger one is not broadcast


def _attention(q: Any, k: Any, v: Any, *rest: Any) -> int:
    """Two products, q · kᵀ and A · v, counted without a mask. A kernel may skip what a causal mask hides."""
    return 2 * (q.size * k.shape[-2] + q.size // q.shape[-1] * k.shape[-2] * v.shape[-1])


def _self_attention(qkv: Any, *rest: Any) -> int:
    B, T, C3 = qkv.shape
    return 4 * B * T * T * C3 // 3


def _rotary_self_attention(qkv: Any, n_head: int, n_kv_head: int, *rest: Any) -> int:
    B, T, width = qkv.shape
    return 4 * B * T * T * width * n_head // (n_head + 2 * n_kv_head)


def _feedforward(x: Any, hidden_weight: Any, hidden_bias: Any, weight: Any, *rest: Any) -> int:
    return 2 * x.size // x.shape[-1] * (hidden_weight.size + weight.size)


_FORMULAS: dict[str, Callable[..., int]] = {
    "linear": _linear,
    "matmul": _matmul,
    "feedforward": _feedforward,
    "attention": _attention,
    "causal_self_attention": _self_attention,
    "rotary_self_attention": _rotary_self_attention,
}


def _flops(name: str, arrays: tuple[Any, ...]) -> int:
    return _FORMULAS[name](*arrays) if name in _FORMULAS else 0


def _backward_flops(name: str, forward: int, needs_grad: tuple[bool, ...] = (True, True)) -> int:
    """The gradient of each factor of a product is a product of the same size. Where there are two products, there are four in backward."""
    return forward * (2 if "attention" in name or name == "feedforward" else sum(needs_grad[:2]))


def _size(arrays: Any) -> int:
    listed = arrays if isinstance(arrays, tuple) else (arrays,)
    return sum(int(array.nbytes) for array in listed if hasattr(array, "nbytes"))


def _wait(y: Any) -> None:
    """Wait for the GPU: its kernels are only queued when the call returns."""
    array = y[0] if isinstance(y, tuple) else y
    xp = array_module(array)
    if hasattr(xp, "cuda"):
        xp.cuda.get_current_stream().synchronize()
