"""Products of square matrices, by size: the most operations a second that the machine reaches.

On the CPU in float32 and float64, with one BLAS thread and with all of them. With ``--backend cupy`` on a GPU, by the function
that the engine uses: float32, float32 with its factors rounded to tf32, float16 and bfloat16; the copy of two matrices to the
GPU and back is timed separately. With ``--backend numpy cupy`` both, and the size from which on the GPU is faster: once for matrices on
the GPU, and once with the copies to the GPU and back. All settings of a size are measured in turn, round after round, and the median
is given.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import common
from benchmarks.common import gpu_name, options_of, save, spread, table
from data.cores import available_cores
from tensorlite.backend import Device
from tensorlite.creation import bfloat16_dtype
from tensorlite.precision import PRECISIONS, use_precision

CPU_SIZES = (64, 128, 256, 512, 1024, 2048)
GPU_SIZES = (256, 512, 1024, 2048, 4096, 8192)
PEAK_SIZES = (768, 1024, 1536, 2048)


@dataclass(frozen=True)
class Setting:
    """A way to multiply.

    Attributes:
        name: for the screen and the JSON file.
        dtype: of the two factors.
        threads: of the BLAS, on the CPU.
        precision: on a GPU, see `tensorlite.precision`.
    """

    name: str
    dtype: Any
    threads: int = 1
    precision: str | None = None


def cpu_settings() -> list[Setting]:
    """Both types, one thread and all threads."""
    threads = sorted({1, available_cores()})
    types = ("float32", np.float32), ("float64", np.float64)
    return [Setting(f"{name}, {count} thread{'s' * (count > 1)}", dtype, count) for name, dtype in types for count in threads]


def gpu_settings() -> list[Setting]:
    """All precisions of the tensor cores, and plain float32."""
    return [Setting(f"GPU {precision}", _stored_as(precision), precision=precision) for precision in PRECISIONS]


def sgemm_peak() -> float:
    """Operations a second of float32 products on all cores: the best median of a few large squares. Takes a few seconds at most."""
    best = 0.0
    for n in PEAK_SIZES:
        a, b, out = (np.full((n, n), 0.5, np.float32) for _ in range(3))
        np.matmul(a, b, out=out)
        times = [_seconds(functools.partial(np.matmul, a, b, out=out), _nothing, 1) for _ in range(9)]
        best = max(best, 2 * n**3 / statistics.median(times))
    return best


def gpu_peak(precision: str, n: int = 8192) -> float:
    """Operations a second of a GPU's products of large squares in one precision."""
    [result] = measure([n], [Setting(precision, _stored_as(precision), precision=precision)], rounds=5)
    return result["gflops"]["median"] * 1e9


def measure(sizes: list[int], settings: list[Setting], rounds: int) -> list[dict[str, Any]]:
    """GFLOP/s of each setting at each size; all settings of a size are measured in turn."""
    results = []
    for n in sizes:
        products = {setting: _product(n, setting) for setting in settings}
        counts: dict[Setting, int] = {}
        speeds: dict[Setting, list[float]] = {setting: [] for setting in settings}
        for round_ in range(rounds + 1):
            for setting, (multiply, wait) in products.items():
                with _set_up(setting):
                    if round_ == 0:  # warm-up; afterwards as many products as take about 20 ms
                        multiply()
                        counts[setting] = max(1, min(1000, round(0.02 / _seconds(multiply, wait, 1))))
                    else:
                        speeds[setting].append(2 * n**3 / _seconds(multiply, wait, counts[setting]) / 1e9)
        results += [{"n": n, "setting": setting.name, "gflops": spread(speeds[setting])} for setting in settings]
    return results


def transfers(sizes: list[int], rounds: int, xp: Any) -> list[dict[str, Any]]:
    """GB/s of a float32 matrix from NumPy to the GPU, and back."""
    wait = xp.cuda.get_current_stream().synchronize
    results = []
    for n in sizes:
        on_host = _random(np, n, np.float32)
        on_gpu = xp.asarray(on_host)
        ways: dict[str, Callable[[], Any]] = {"to the GPU": functools.partial(xp.asarray, on_host), "from the GPU": on_gpu.get}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds + 1):
            for way, move in ways.items():
                seconds = _seconds(move, wait, 1)
                if round_:
                    speeds[way].append(on_host.nbytes / seconds / 1e9)
        results += [{"n": n, "way": way, "gigabytes_per_second": spread(values)} for way, values in speeds.items()]
    return results


def rows(results: list[dict[str, Any]], key: str = "setting", value: str = "gflops") -> list[dict[str, Any]]:
    """One line for each size, one column for each setting: the median, smallest and largest."""
    lines: dict[int, dict[str, Any]] = {}
    for result in results:
        numbers = result[value]
        text = f"{numbers['median']:,.1f} ({numbers['min']:,.1f} - {numbers['max']:,.1f})"
        lines.setdefault(result["n"], {"size": result["n"]})[result[key]] = text
    return list(lines.values())


def plot(name: str, results: list[dict[str, Any]]) -> None:
    """Write ``<name>.png`` beside the JSON; without matplotlib print a sentence instead."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: pip install matplotlib.")
        return
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for setting in dict.fromkeys(result["setting"] for result in results):
        own = [result for result in results if result["setting"] == setting]
        sizes, speeds = [result["n"] for result in own], [result["gflops"] for result in own]
        (line,) = axes.plot(sizes, [speed["median"] for speed in speeds], marker="o", label=setting)
        axes.fill_between(sizes, [s["min"] for s in speeds], [s["max"] for s in speeds], color=line.get_color(), alpha=0.15)
    axes.set(yscale="log", xlabel="n, of an n x n matrix", ylabel="GFLOP/s", title="Matrix products: median, smallest and largest")
    axes.set_xscale("log", base=2)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    path = common.RESULTS / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def crossovers(products: list[dict[str, Any]], moved: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each setting of the GPU, the smallest size from which on it is faster than the CPU's best float32, at every larger size too.

    Once for factors that are on the GPU already; once for two float32 factors that are copied there, and a product that is copied back.
    """
    speed = {(result["n"], result["setting"]): result["gflops"]["median"] * 1e9 for result in products}
    rate = {(result["n"], result["way"]): result["gigabytes_per_second"]["median"] * 1e9 for result in moved}
    sizes = sorted({n for n, _ in speed})
    cpu = {n: min(2 * n**3 / value for (size, name), value in speed.items() if size == n and name.startswith("float32")) for n in sizes}
    found = []
    for name in dict.fromkeys(name for _, name in speed if name.startswith("GPU")):
        there = {n: 2 * n**3 / speed[n, name] for n in sizes}
        carried = {n: there[n] + 2 * 4 * n**2 / rate[n, "to the GPU"] + 4 * n**2 / rate[n, "from the GPU"] for n in sizes}
        found.append({"setting": name, "data on the GPU": _from(sizes, there, cpu), "data brought and fetched": _from(sizes, carried, cpu)})
    return found


def _from(sizes: list[int], gpu: dict[int, float], cpu: dict[int, float]) -> int | None:
    """The first of the sizes from which on ``gpu`` takes less time; None if there is none."""
    first = None
    for n in reversed(sizes):
        if gpu[n] >= cpu[n]:
            break
        first = n
    return first


def main(argv: list[str]) -> None:
    """``python -m benchmarks matmul [--backend numpy|cupy ...] [--sizes N ...] [--rounds N]``"""
    parser = options_of("matmul", __doc__)
    parser.add_argument("--backend", choices=("numpy", "cupy"), nargs="+", default=["numpy"])
    parser.add_argument("--sizes", type=int, nargs="+", help="rows of the square matrices; default: powers of 2")
    parser.add_argument("--rounds", type=int, default=9, help="measurements of each setting")
    options = parser.parse_args(argv)
    on_gpu = "cupy" in options.backend
    xp = Device("cupy").module if on_gpu else np
    sizes = sorted(options.sizes or (GPU_SIZES if on_gpu else CPU_SIZES))
    settings = cpu_settings() if "numpy" in options.backend else []
    if on_gpu:  # only the fastest of the CPU's settings, for comparison with the GPU
        settings = [setting for setting in settings if setting == Setting(setting.name, np.float32, available_cores())] + gpu_settings()
    name = "matmul_gpu" if on_gpu else "matmul"
    results: dict[str, Any] = {"products": measure(sizes, settings, options.rounds)}
    print(table(rows(results["products"])))
    if on_gpu:
        results["transfers"] = transfers(sizes, options.rounds, xp)
        print("\n" + table(rows(results["transfers"], "way", "gigabytes_per_second")))
    if on_gpu and "numpy" in options.backend:
        results["crossover"] = crossovers(results["products"], results["transfers"])
        print("\n" + table(results["crossover"]))
    save(name, results, gpu=gpu_name(xp) if on_gpu else None)
    plot(name, results["products"])


def _product(n: int, setting: Setting) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A function that multiplies two matrices of random numbers, and one that waits for the result."""
    if setting.precision is None:
        a, b, out = (_random(np, n, setting.dtype) for _ in range(3))
        return functools.partial(np.matmul, a, b, out=out), _nothing
    from tensorlite.kernels.cuda.gemm import gemm

    xp = Device("cupy").module
    a, b, out = (_random(xp, n, setting.dtype) for _ in range(3))
    return functools.partial(gemm, a, b, out=out), xp.cuda.get_current_stream().synchronize


def _stored_as(precision: str) -> Any:
    """The type of the factors in a precision."""
    return bfloat16_dtype() if precision == "bfloat16" else np.dtype("float16" if precision == "float16" else "float32")


@contextmanager
def _set_up(setting: Setting) -> Iterator[None]:
    """Set the number of BLAS threads, or the GPU's precision, for a ``with`` block."""
    with threadpool_limits(setting.threads, user_api="blas") if setting.precision is None else use_precision(setting.precision):
        yield


def _nothing() -> None:
    """On the CPU there is nothing to wait for."""


def _random(xp: Any, n: int, dtype: Any) -> Any:
    return xp.asarray(np.random.default_rng(n).random((n, n), np.float32)).astype(dtype)


def _seconds(work: Callable[[], Any], wait: Callable[[], Any], count: int) -> float:
    """Seconds of one of ``count`` runs of ``work``; ``wait`` returns when a GPU has finished them."""
    wait()
    start = time.perf_counter()
    for _ in range(count):
        work()
    wait()
    return (time.perf_counter() - start) / count
