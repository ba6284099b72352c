"""Whole training steps on a GPU, ours and torch's, in turn: ``python -m benchmarks train_step --backend cupy``.

For each configuration and precision, each side is a process (`benchmarks.gpu_side`). In each round every side makes a block of steps, see
`benchmarks.turns`. The results are medians over the rounds, of the time and of the ratio to torch in the same round. On a GPU whose
memory does not hold all sides at once, the sides run one after the other.

The sides:
    ours            the step captured as a CUDA graph
    ours, no graph  the same step, launched op by op
    torch           eager, with autocast for the half precisions and flash attention: the reference
    torch compiled  the same under torch.compile
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from benchmarks import common
from benchmarks.common import gpu_name, save, spread, table
from benchmarks.configurations import CONFIGURATIONS, Configuration, flops_per_step
from benchmarks.matmul import gpu_peak
from benchmarks.turns import Side, in_turn, sides
from tensorlite.backend import Device
from tensorlite.precision import PRECISIONS

MEASURED = ("course", "gpt2", "smollm2")
SIDES = ("ours", "ours, no graph", "torch", "torch compiled")
ENOUGH_FOR_ALL = 40 << 30  # bytes: the four sides of gpt2 take 34 GB in bfloat16


def measure(configuration: Configuration, precision: str, names: tuple[str, ...], rounds: int, steps: int, peak: float) -> dict[str, Any]:
    """Let the sides work in turn; returns the results of each, and the ratios to the reference.

    Args:
        steps: in a block.
        peak: operations a second of the largest products in this precision on this GPU.
    """
    together = Device("cupy").memory().limit >= ENOUGH_FOR_ALL
    seconds: dict[str, list[float]] = {}
    last: dict[str, dict[str, Any]] = {}
    for group in [names] if together else [(name,) for name in names]:
        with sides([Side(name, "benchmarks.gpu_side", name, configuration.name, precision) for name in group]) as processes:
            for side in processes:
                side.ask(5)  # imports, compilation, warm-up and capture
            seconds |= {name: [time / steps for time in times] for name, times in in_turn(processes, rounds, steps).items()}
            last |= {side.name: side.ask(1) for side in processes}
    flops = flops_per_step(configuration)
    tokens = configuration.batch_size * configuration.model.block_size
    return {
        "configuration": configuration.name,
        "description": configuration.description,
        "precision": precision,
        "tokens_per_step": tokens,
        "gflop_per_step": flops / 1e9,
        "product_peak_gflops": peak / 1e9,
        "in_turn": together,
        "sides": {
            name: {
                "seconds_per_step": spread(times),
                "tokens_per_second": tokens / float(np.median(times)),
                "share_of_product_peak": flops / float(np.median(times)) / peak,
                "gpu_memory_mb": last[name]["peak_memory"] / 2**20,
                "loss": last[name]["result"],
                "speed_relative_to_torch": spread([reference / own for own, reference in zip(times, seconds["torch"], strict=True)]),
            }
            for name, times in seconds.items()
        },
    }


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each side, for the screen."""
    return [
        {
            "configuration": result["configuration"],
            "precision": result["precision"],
            "side": name,
            "tokens/s": float(side["tokens_per_second"]),
            "relative to torch": f"{side['speed_relative_to_torch']['median']:.2f}",
            "from - to": f"{side['speed_relative_to_torch']['min']:.2f} - {side['speed_relative_to_torch']['max']:.2f}",
            "share of product peak": f"{100 * side['share_of_product_peak']:.0f}%",
            "GPU memory, MB": float(side["gpu_memory_mb"]),
        }
        for name, side in result["sides"].items()
    ]


def run(configurations: list[str], precisions: list[str] | None, rounds: int, steps: int | None, compiled: bool) -> None:
    """Make all measurements, print their tables, and write ``train_step_gpu.json``."""
    xp = Device("cupy").module
    names = tuple(name for name in SIDES if compiled or name != "torch compiled")
    failed = False
    results = earlier(gpu_name(xp))
    for precision in precisions or PRECISIONS:
        peak = gpu_peak(precision)
        for name in configurations or MEASURED:
            configuration = CONFIGURATIONS[name]
            try:
                result = measure(configuration, precision, names, rounds, steps or configuration.steps_in_a_block, peak)
            except RuntimeError as error:  # a side has stopped; continue with the other measurements
                print(f"{name} in {precision}: {error}", flush=True)
                failed = True
                continue
            results = [other for other in results if (other["configuration"], other["precision"]) != (name, precision)] + [result]
            print(table(rows(result)), flush=True)
            save("train_step_gpu", results, gpu=gpu_name(xp))  # after each measurement, so that it is kept if a later one fails
    if failed:
        sys.exit("not everything could be measured: see above.")


def earlier(gpu: str) -> list[dict[str, Any]]:
    """Earlier measurements on this GPU; a new measurement replaces the old one."""
    path = common.RESULTS / "train_step_gpu.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content["results"] if content.get("machine", {}).get("gpu") == gpu else []
