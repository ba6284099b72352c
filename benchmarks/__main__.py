"""``python -m benchmarks NAME [options]``"""

from __future__ import annotations

import importlib
import sys

from gpt.errors import run_main

BENCHMARKS = {
    "matmul": "products of square matrices, by size: CPU and, where there is one, GPU",
    "ops": "each op with a faster pair: that pair, the book, torch",
    "train_step": "whole training steps beside torch, in turn",
    "step_parts": "what a training step on a CPU is made of, on one core",
    "own_loop": "the course's own class in a loop by hand, with and without tl.parallel.shared, beside torch",
    "gpu_stages": "all measurements and tests that need a GPU, in stages (`make gpu`)",
    "gpu_kernels": "where the time of a training step on a GPU goes, kernel by kernel",
    "roofline": "the least time that a training step can take on a GPU, op by op, counted without one",
    "nanogpt_cpu": "nanoGPT's run for a CPU from start to end, beside a twin in torch",
    "learning": "validation loss of presets and optimizers by steps and by CPU time",
    "scaling": "training steps on 1, 2 and 4 ranks of MPI: time, and bytes sent",
    "scaling_gpu": "training steps on 1, 2, 4, … GPUs of this machine: time, and bits",
    "generate": "tokens a second in generation, beside torch",
    "generate_gpu": "the same on a GPU, one text and eight at once, beside transformers",
    "smollm2": "tokens a second and memory of SmolLM2, beside transformers and llama.cpp",
    "serve": "tokens a second of the server, with one client and with several",
    "prepare": "a corpus like OpenWebText to tokens, against xz alone",
    "report": "writes the results into the pages of docs, and a table of them into README",
}


def main() -> None:
    """Run one benchmark, or list them."""
    if len(sys.argv) < 2 or sys.argv[1] not in BENCHMARKS:
        width = max(map(len, BENCHMARKS))
        listed = "\n".join(f"  {name.ljust(width)}  {text}" for name, text in BENCHMARKS.items())
        sys.exit(f"usage: python -m benchmarks NAME [options]\n{listed}")
    benchmark = importlib.import_module(f"benchmarks.{sys.argv[1]}")
    sys.exit(run_main(lambda: benchmark.main(sys.argv[2:])))


if __name__ == "__main__":
    main()
