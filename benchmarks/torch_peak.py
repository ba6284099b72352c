"""``python -m benchmarks.torch_peak``: the measurement of `matmul.sgemm_peak` in torch, as a separate process with torch's own BLAS."""

from __future__ import annotations

import statistics
import time

from benchmarks.matmul import PEAK_SIZES
from data.cores import available_cores


def main() -> None:
    """Print operations a second of float32 products on all cores: the best median of a few large squares."""
    import torch

    torch.set_num_threads(available_cores())
    best = 0.0
    for n in PEAK_SIZES:
        a, b, out = (torch.full((n, n), 0.5) for _ in range(3))
        torch.mm(a, b, out=out)
        times = []
        for _ in range(9):
            start = time.perf_counter()
            torch.mm(a, b, out=out)
            times.append(time.perf_counter() - start)
        best = max(best, 2 * n**3 / statistics.median(times))
    print(best)


if __name__ == "__main__":
    main()
