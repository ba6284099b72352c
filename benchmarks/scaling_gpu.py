"""Training steps of GPT-2 on 1, 2, 4, … GPUs of this machine: time, and whether the weights have the same bits.

    python -m benchmarks scaling_gpu
    python -m benchmarks scaling_gpu --ranks 1 8 --zero

Each rank of MPI has a GPU and a batch of its own of the same size. A second run of each number of ranks has the same batch for all of them
together, cut into the same shards, and shows the SHA-256 of its weights. docs/scaling.md has the model to compare the times with.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import options_of, save, spread, table
from benchmarks.configurations import CONFIGURATIONS
from tensorlite.backend import Device

ROUNDS = 5
SHARDS = 8  # of the run whose bits are compared


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write scaling_gpu.json. On a machine with one GPU there is nothing to measure."""
    parser = options_of("scaling_gpu", __doc__)
    parser.add_argument("--ranks", type=int, nargs="+", help="default: 1, 2, 4, … as far as there are GPUs")
    parser.add_argument("--configuration", default="gpt2", choices=CONFIGURATIONS)
    parser.add_argument("--steps", type=int, default=10, help="steps in each of the rounds that are measured")
    parser.add_argument("--zero", action="store_true", help="share out the optimizer's state")
    given = parser.parse_args(argv)
    count = Device("cupy").module.cuda.runtime.getDeviceCount()
    if count == 1 and not given.ranks:
        print("This machine has one GPU, so there is nothing to measure.")
        return
    numbers = given.ranks or [1 << i for i in range(count.bit_length())]
    results = [measure(ranks, given.configuration, given.steps, given.zero) for ranks in numbers]
    first = results[0]["milliseconds"]["median"]
    print(
        table(
            [
                {"GPUs": one["ranks"], "ms a step": one["milliseconds"]["median"], "efficiency": first / one["milliseconds"]["median"]}
                for one in results
            ]
        )
    )
    save("scaling_gpu_zero" if given.zero else "scaling_gpu", results)
    if len({result["sha256"] for result in results}) > 1:
        sys.exit("the weights differ with the number of GPUs.")


def measure(ranks: int, configuration: str, steps: int, zero: bool) -> dict[str, Any]:
    """Start ``ranks`` ranks, and return what the first one has measured."""
    mpiexec = shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if mpiexec is None:
        sys.exit('several GPUs need mpiexec: pip install -e ".[mpi]".')
    program = ["-m", "mpi4py", "-m", "benchmarks.scaling_gpu", configuration, str(steps), str(int(zero))]
    done = subprocess.run([mpiexec, "-n", str(ranks), sys.executable, *program], capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{ranks} ranks ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rank(name: str, steps: int, zero: bool) -> None:
    """The program of one rank; the first one prints what it has measured, as a line of JSON."""
    import tensorlite as tl
    from gpt.config import TrainConfig
    from gpt.model import GPT
    from gpt.training.stepper import WARM_UP
    from gpt.training.team import choose_device
    from gpt.training.trainer import Trainer
    from tensorlite.parallel import connect

    world, chosen = connect(), CONFIGURATIONS[name]
    each = chosen.batch_size
    config = TrainConfig(backend="cupy", precision="bfloat16", steps=10**6, zero=int(zero), batch_size=each * world.size)
    choose_device(config)

    def trainer(config: TrainConfig) -> Trainer:
        tl.manual_seed(0)
        tokens = np.random.default_rng(0).integers(chosen.model.vocab_size, size=10**5).astype(np.uint16)
        return Trainer(GPT(chosen.model).to("cupy"), config, tokens, tokens)

    compared = trainer(replace(config, batch_size=SHARDS, shards=SHARDS))
    for _ in range(WARM_UP + 2):
        compared.update()
    compared.stepper.wait()
    (flat,) = compared.optimizer.flats
    digest = hashlib.sha256(flat.data.get().tobytes()).hexdigest()

    measured, times = trainer(config), []
    for _ in range(WARM_UP + 2):
        measured.update()
    for _ in range(ROUNDS):
        measured.stepper.wait()
        world.gather(np.zeros(1))  # all begin at the same time
        start = time.perf_counter()
        for _ in range(steps):
            loss = measured.update()
        loss.item()
        times.append(1e3 * (time.perf_counter() - start) / steps)
    if world.rank == 0:
        result = {"ranks": world.size, "configuration": name, "zero": zero, "milliseconds": spread(times), "sha256": digest}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    rank(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
