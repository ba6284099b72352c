"""Whole training steps, ours and torch's, in turn.

Each side is a process (`benchmarks.side`). In each round every side makes a block of steps, see `benchmarks.turns`. The results
are medians over the rounds, of the time and of the ratio to the reference in the same round.

The sides:
    ours            with all faster pairs, a thread for each core
    processes       the same with a process for each core
    book            ours with TENSORLITE_KERNELS=book
    torch           eager, scaled_dot_product_attention, fused AdamW, malloc set to keep freed memory as for ours: the reference
    torch untuned   the same without that setting of malloc
    torch compiled  the reference under torch.compile (with --compile)
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks import train_step_gpu
from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.configurations import CONFIGURATIONS, MEASURED, Configuration, flops_per_step
from benchmarks.matmul import sgemm_peak
from benchmarks.turns import Side, in_turn, sides

SIDES = ("ours", "processes", "torch", "torch untuned", "book")


def measure(configuration: Configuration, names: tuple[str, ...], rounds: int, steps: int, peak: float) -> dict[str, Any]:
    """Let the sides work in turn; returns the results of each, and the ratios to the reference."""
    with sides([Side(name, "benchmarks.side", name, configuration.name) for name in names]) as processes:
        for side in processes:
            side.ask(2)  # warm-up: imports, caches
        seconds = {name: [time / steps for time in times] for name, times in in_turn(processes, rounds, steps).items()}
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    flops = flops_per_step(configuration)
    tokens = configuration.batch_size * configuration.model.block_size
    return {
        "configuration": configuration.name,
        "description": configuration.description,
        "tokens_per_step": tokens,
        "gflop_per_step": flops / 1e9,
        "sgemm_peak_gflops": peak / 1e9,
        "sides": {
            name: {
                "seconds_per_step": spread(times),
                "tokens_per_second": tokens / float(np.median(times)),
                "share_of_sgemm_peak": flops / float(np.median(times)) / peak,
                "peak_memory_mb": memory[name] / 2**20,
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
            "side": name,
            "tokens/s": float(side["tokens_per_second"]),
            "relative to torch": f"{side['speed_relative_to_torch']['median']:.2f}",
            "from - to": f"{side['speed_relative_to_torch']['min']:.2f} - {side['speed_relative_to_torch']['max']:.2f}",
            "share of sgemm peak": f"{100 * side['share_of_sgemm_peak']:.0f}%",
            "peak memory, MB": float(side["peak_memory_mb"]),
        }
        for name, side in result["sides"].items()
    ]


def torch_sgemm_peak() -> float:
    """The speed of torch's BLAS for the same products: part of every ratio to torch is the ratio of the two."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.torch_peak"], capture_output=True, encoding="utf-8", check=True)
    return float(done.stdout)


def main(argv: list[str]) -> None:
    """``python -m benchmarks train_step [CONFIGURATION ...] [--backend numpy|cupy] [--rounds N] [--steps N] [--compile]``"""
    parser = options_of("train_step", __doc__)
    parser.add_argument(
        "configurations", nargs="*", help=f"some of {', '.join(CONFIGURATIONS)}; default: {', '.join(MEASURED)}; on a GPU course, gpt2"
    )
    parser.add_argument("--backend", choices=("numpy", "cupy"), default="numpy", help="cupy: see benchmarks/train_step_gpu.py")
    parser.add_argument("--precisions", nargs="+", help="on a GPU: some of float32, tf32, bfloat16, float16; default: all")
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each side")
    parser.add_argument("--steps", type=int, help="steps in a block; default: about two seconds' worth")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), help=f"default: {', '.join(SIDES)}")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes a minute to begin with")
    parser.add_argument("--name", default="train_step", help="name of the file under benchmarks/results")
    options = parser.parse_args(argv)
    require_torch()
    if options.backend == "cupy":
        train_step_gpu.run(options.configurations, options.precisions, options.rounds, options.steps, options.compile)
        return
    sides = tuple(options.sides) + (("torch compiled",) if options.compile else ())
    peak, torch_peak = sgemm_peak(), torch_sgemm_peak()
    results = []
    for name in options.configurations or MEASURED:
        configuration = CONFIGURATIONS[name]
        result = measure(configuration, sides, options.rounds, options.steps or configuration.steps_in_a_block, peak)
        results.append({**result, "torch_sgemm_peak_gflops": torch_peak / 1e9})
        print(table(rows(results[-1])), flush=True)
    save(options.name, results)
