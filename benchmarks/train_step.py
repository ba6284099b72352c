"""Whole training steps, ours and torch's, in turn.

Each side is a process of its own (`benchmarks.side`), so that each has its own malloc, its own threads and a peak memory that
can be read. The parent lets them work in turn, a block of steps each, round after round: whatever else the machine is doing
meets all sides alike, and the ratio of two neighbouring blocks is what is believed. The median over the rounds is quoted.

The sides:
    ours            with all faster pairs, one worker a core
    book            ours with TENSORLITE_KERNELS=book
    torch           eager, scaled_dot_product_attention, fused AdamW, malloc told to keep freed memory as ours is: the reference
    torch untuned   the same with malloc as it comes
    torch compiled  the reference under torch.compile (with --compile)
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import numpy as np

from benchmarks.common import require_torch, save, spread, table
from benchmarks.configurations import CONFIGURATIONS, Configuration, flops_per_step
from benchmarks.matmul import sgemm_peak

SIDES = ("ours", "torch", "torch untuned", "book")


class Side:
    """A process that makes training steps when it is told to."""

    def __init__(self, name: str, configuration: str, seed: int = 0) -> None:
        self.name = name
        environment = dict(os.environ, TENSORLITE_KERNELS="book" if name == "book" else "fast")
        command = [sys.executable, "-m", "benchmarks.side", name, configuration, str(seed)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, steps: int) -> dict[str, Any]:
        """Make ``steps`` steps: seconds they took, and the last loss; for 0 steps, the peak memory so far."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side {self.name!r} stopped with exit code {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def measure(configuration: Configuration, sides: tuple[str, ...], rounds: int, steps: int, peak: float) -> dict[str, Any]:
    """Let the sides work in turn; returns what is known of each, and the ratios to the reference."""
    processes = [Side(name, configuration.name) for name in sides]
    try:
        for side in processes:
            side.ask(2)  # imports, first touches, caches
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(rounds):
            for side in processes if round_ % 2 == 0 else reversed(processes):
                seconds[side.name].append(side.ask(steps)["seconds"] / steps)
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    finally:
        for side in processes:
            side.close()
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
    """One line a side, for people."""
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


def main(argv: list[str]) -> None:
    """``python -m benchmarks train_step [CONFIGURATION ...] [--rounds N] [--steps N] [--compile]``"""
    parser = argparse.ArgumentParser(
        "python -m benchmarks train_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "configurations", nargs="*", default=list(CONFIGURATIONS), help=f"some of {', '.join(CONFIGURATIONS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each side")
    parser.add_argument("--steps", type=int, help="steps in a block; default: about two seconds' worth")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), help=f"default: {', '.join(SIDES)}")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which takes a minute to begin with")
    parser.add_argument("--name", default="train_step", help="name of the file under benchmarks/results")
    options = parser.parse_args(argv)
    require_torch()
    sides = tuple(options.sides) + (("torch compiled",) if options.compile else ())
    peak = sgemm_peak()
    results = []
    for name in options.configurations:
        configuration = CONFIGURATIONS[name]
        results.append(measure(configuration, sides, options.rounds, options.steps or configuration.steps_in_a_block, peak))
        print(table(rows(results[-1])), flush=True)
    save(options.name, results)
