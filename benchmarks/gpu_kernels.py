"""Where the time of a training step on a GPU goes, kernel by kernel.

A few plain steps (no CUDA graph) run under torch's profiler, which reads CUPTI's records of every kernel in the process, also of ours.
The list has launches and microseconds for each step, the largest first. The time of a step beside it is measured without the profiler.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from benchmarks.common import gpu_name, options_of, require_torch, save, table
from benchmarks.configurations import CONFIGURATIONS
from benchmarks.gpu_side import our_steps, torch_steps
from tensorlite.backend import Device
from tensorlite.precision import PRECISIONS

STEPS = 3  # under the profiler


def kernels_of(steps: Any) -> list[dict[str, Any]]:
    """Launches and microseconds a step of every kernel and copy that ``steps(STEPS)`` queues, the largest first."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        steps(STEPS)
        torch.cuda.synchronize()
    launches, microseconds = defaultdict(int), defaultdict(float)
    for event in recorded.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launches[event.name] += 1
            microseconds[event.name] += event.device_time_total
    return [
        {"kernel": name, "launches": launches[name] / STEPS, "microseconds": microseconds[name] / STEPS}
        for name in sorted(launches, key=lambda name: -microseconds[name])
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks gpu_kernels [CONFIGURATION] [--precision P] [--side ours|torch] [--apart]``"""
    parser = options_of("gpu_kernels", __doc__)
    parser.add_argument("configuration", nargs="?", default="gpt2", help="default: gpt2")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--side", choices=("ours", "torch"), default="ours")
    parser.add_argument("--apart", action="store_true", help="gelu as an op of its own, and not in the products: what does that cost?")
    parser.add_argument("--lines", type=int, default=40, help="how many kernels to print; all are written to the JSON file")
    options = parser.parse_args(argv)
    require_torch()
    configuration, xp = CONFIGURATIONS[options.configuration], Device("cupy").module
    if options.side == "torch":
        steps, _ = torch_steps(configuration, options.precision, compiled=False)
    else:
        steps, _ = our_steps(configuration, options.precision, graph=False, fused=not options.apart)
    steps(3)
    start = time.perf_counter()
    steps(10)
    milliseconds = (time.perf_counter() - start) * 100
    found = kernels_of(steps)
    total = sum(line["microseconds"] for line in found)
    print(table([{**line, "kernel": line["kernel"][:70]} for line in found[: options.lines]]))
    print(
        f"{options.configuration} in {options.precision}, {options.side}: {sum(line['launches'] for line in found):.0f} launches and "
        f"{total / 1000:.2f} ms of kernels a step; {milliseconds:.2f} ms a step op by op, without the profiler."
    )
    result = {"configuration": options.configuration, "precision": options.precision, "side": options.side}
    result |= {"milliseconds_op_by_op": milliseconds, "milliseconds_of_kernels": total / 1000, "kernels": found}
    side = options.side + ("_apart" if options.apart else "")
    save(f"gpu_kernels_{options.configuration}_{options.precision}_{side}", result, gpu=gpu_name(xp))
