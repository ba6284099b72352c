"""All measurements and tests that need a GPU, in stages of at most ten minutes, the most important first: ``GPU_STAGE=1 make gpu``, or all.

If a command fails, the next one runs all the same. Results (JSON) and logs are written at once, into the folder that
TENSORLITE_RESULTS names, or else benchmarks/results. Nothing is installed or downloaded. The exit code is 0 if every command succeeded.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common
from benchmarks.common import options_of

TESTS = "pytest -m gpu -W default -p no:cacheprovider -p no:benchmark --continue-on-collection-errors"
FIRST = ("attention", "rows", "gemm")  # kernels that everything else needs
MODEL = " ".join([*(f"tests/test_kernels_cuda_{name}.py" for name in FIRST), "tests/test_gpt_on_gpu.py", "tests/test_cuda_graph.py"])
STEP = "benchmarks train_step gpt2 course smollm2 --backend cupy --rounds 5"


def with_a_gpu() -> list[str]:
    """The files whose tests can run on a GPU; the others may need packages that a machine with a GPU does not have."""
    root = Path(__file__).resolve().parent.parent
    files = sorted((root / "tests").glob("test_*.py"))
    return [f"tests/{path.name}" for path in files if re.search(r"any_cupy|mark\.gpu", path.read_text(encoding="utf-8"))]


STAGES: dict[int, dict[str, tuple[str, float]]] = {  # name of the log: the command, and the seconds it may take
    1: {
        "tests_of_the_model": (f"{TESTS} {MODEL}", 240),
        "train_step_bfloat16": (f"{STEP} --precisions bfloat16 --compile", 300),
        "gpu_kernels": ("benchmarks gpu_kernels gpt2", 60),
    },
    2: {"tests": (f"{TESTS} {' '.join(with_a_gpu())}", 590)},
    3: {
        "gpu_kernels_apart": ("benchmarks gpu_kernels gpt2 --apart", 50),
        "ops": ("benchmarks ops --backend cupy", 240),
        "generate_gpu": ("benchmarks generate_gpu", 120),
        "matmul": ("benchmarks matmul --backend numpy cupy", 100),
        "gpu_kernels_course": ("benchmarks gpu_kernels course", 40),
        "gpu_kernels_smollm2": ("benchmarks gpu_kernels smollm2", 40),
    },
    4: {"train_step_others": (f"{STEP} --precisions float32 tf32 float16 --compile", 590)},
    5: {"scaling_gpu": ("benchmarks scaling_gpu", 300), "scaling_gpu_zero": ("benchmarks scaling_gpu --zero", 290)},  # of several GPUs
}


def run(name: str, command: str, limit: float) -> bool:
    """Run ``python -m command``; return whether it succeeded in time. Its output is shown, and kept in a log beside the results."""
    print(f"{sys.executable} -m {command}", flush=True)
    start = time.perf_counter()
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    with (common.RESULTS / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command.split()], stdout=log, stderr=subprocess.STDOUT)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
    lines = (common.RESULTS / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    print("\n".join(lines[-60:]))
    how = f"stopped after {limit:.0f} seconds" if code is None else f"exit code {code}"
    print(f"{name}: {how}, {time.perf_counter() - start:.0f} s\n", flush=True)
    return code == 0


def main(argv: list[str]) -> None:
    """``python -m benchmarks gpu_stages [STAGE ...]``"""
    parser = options_of("gpu_stages", __doc__)
    parser.add_argument("stages", type=int, nargs="*", help="some of 1 to 5; default: all")
    options = parser.parse_args(argv)
    if unknown := set(options.stages) - set(STAGES):
        parser.error(f"there is no stage {min(unknown)}: there are {', '.join(map(str, STAGES))}.")
    os.environ["PYTHONUNBUFFERED"] = "1"
    commands = [item for stage in options.stages or STAGES for item in STAGES[stage].items()]
    failed = [name for name, (command, limit) in commands if not run(name, command, limit)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see their logs in {common.RESULTS}.")
