"""Training steps on 1, 2 and 4 ranks of MPI on this machine: time, and bytes sent, against the model in docs/scaling.md.

    python -m benchmarks scaling
    python -m benchmarks scaling --ranks 1 2 --zero

Each rank has one worker, and the batch has four shards whatever the number of ranks, so that all runs compute the same bits. Bytes are
counted where they are handed to MPI (`World.sent`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import options_of, save, spread, table
from benchmarks.configurations import CONFIGURATIONS
from benchmarks.side import LEARNING_RATE, batches

SHARDS = 4
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write scaling.json."""
    parser = options_of("scaling", __doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--configuration", default="A", choices=CONFIGURATIONS)
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured")
    parser.add_argument("--zero", action="store_true", help="share out the optimizer's state")
    given = parser.parse_args(argv)
    results = [measure(ranks, given.configuration, given.steps, given.zero) for ranks in given.ranks]
    if len({result["sha256"] for result in results}) > 1:
        sys.exit("the weights differ with the number of ranks.")
    print(table([_row(result) for result in results]))
    save("scaling_zero" if given.zero else "scaling", results)


def bytes_by_model(ranks: int, parameter_bytes: int, zero: bool) -> float:
    """What a rank sends in a step, as docs/scaling.md has it: each slice of the gradients' sums to its owner, and the totals; with ZeRO
    the new weights as well.
    """
    return (3 if zero else 2) * (ranks - 1) / ranks * parameter_bytes


def measure(ranks: int, configuration: str, steps: int, zero: bool) -> dict[str, Any]:
    """Start ``ranks`` ranks, and return what the first one has measured."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "benchmarks.scaling", configuration, str(steps), str(int(zero))]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _row(result: dict[str, Any]) -> dict[str, Any]:
    return {
        "ranks": result["ranks"],
        "ms a step": result["milliseconds"]["median"],
        "of it for the sum": result["sum_milliseconds"]["median"],
        "MB sent by a rank": result["sent"] / 1e6,
        "by the model": result["sent_by_model"] / 1e6,
    }


def rank(configuration: str, steps: int, zero: bool) -> None:
    """The program of one rank; the first one prints what it has measured, as a line of JSON."""
    import tensorlite as tl
    from gpt.model import GPT
    from tensorlite.memory import keep_freed_memory
    from tensorlite.optim.state import SharedState
    from tensorlite.parallel import BatchShards, Workers, connect
    from tensorlite.random import make_generator

    keep_freed_memory()
    world, chosen = connect(), CONFIGURATIONS[configuration]
    tl.manual_seed(0)
    model = GPT(chosen.model)
    optimizer = tl.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    if zero:
        optimizer.share_state(SharedState(world.slice_of, world.gather_to_first))
    (flat,) = optimizer.flats
    draw, times, sums, sent = batches(chosen, 0), [], [], 0
    with Workers(1) as team:
        parallel = BatchShards(model, [flat], SHARDS, team, world=world)
        for step in range(-2, steps):  # the first two warm up
            x, y = (tl.from_numpy(ids) for ids in draw())
            world.gather(np.zeros(1))  # all begin at the same time
            sent_before, start = world.sent, time.perf_counter()
            losses = parallel.accumulate((x, y), functools.partial(make_generator, 0, step + 2))
            computed = time.perf_counter()
            parallel.add_gradients([losses])
            added = time.perf_counter()
            tl.optim.clip_grad_norm_(model.parameters(), 1.0)
            spans = optimizer.begin_step()
            optimizer.update_slice(spans, flat, world.slice_of(len(flat.data)) if zero else slice(0, len(flat.data)))
            optimizer.end_step(spans)
            if zero:
                world.gather_slices(flat.data)
            optimizer.zero_grad()
            end = time.perf_counter()
            world.gather(np.zeros(1))
            if step >= 0:
                times.append(1e3 * (end - start))
                sums.append(1e3 * (added - computed))
                sent += world.sent - sent_before
    if world.rank == 0:
        print(
            json.dumps(
                {
                    "ranks": world.size,
                    "configuration": configuration,
                    "zero": zero,
                    "parameter_bytes": flat.data.nbytes,
                    "milliseconds": spread(times),
                    "sum_milliseconds": spread(sums),
                    "sent": sent / steps,
                    "sent_by_model": bytes_by_model(world.size, flat.data.nbytes, zero),
                    "sha256": hashlib.sha256(flat.data.tobytes()).hexdigest(),
                }
            )
        )


if __name__ == "__main__":
    rank(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1")
