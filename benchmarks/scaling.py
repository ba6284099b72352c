"""Training steps on 1, 2 and 4 ranks of MPI: time, and bytes sent, against the model in docs/scaling.md.

    python -m benchmarks scaling
    bash scripts/two_hosts.sh python -m benchmarks scaling --ranks 2 4
    RATE=200mbit bash scripts/two_hosts.sh python -m benchmarks scaling --ranks 2 --bandwidth 25 --latency 0.05

Each rank has one worker, and the batch has four shards whatever the number of ranks, so that all runs compute the same bits. Steps are
measured without and with a shared optimizer's state (``--zero 1``). Bytes are counted where they are handed to MPI (`World.sent`), and on
the network interfaces of the first rank's machine, where Linux counts them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import options_of, save, spread, table
from benchmarks.configurations import CONFIGURATIONS, Configuration
from benchmarks.side import LEARNING_RATE, batches

SHARDS = 4
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
INTERFACES = Path("/proc/net/dev")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write the results: scaling.json, scaling_hosts.json of several machines, scaling_link.json with
    ``--bandwidth``.
    """
    parser = options_of("scaling", __doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--configuration", default="A", choices=CONFIGURATIONS)
    parser.add_argument("--steps", type=int, default=10, help="steps that are measured")
    parser.add_argument("--bandwidth", type=float, help="of a link, in MB a second: the time of the sum by the model is shown, too")
    parser.add_argument("--latency", type=float, default=0.0, help="of a link, in milliseconds")
    given = parser.parse_args(argv)
    results = [
        result | {"bandwidth": given.bandwidth, "latency": given.latency}
        for ranks in given.ranks
        for result in measure(ranks, given.configuration, given.steps)
    ]
    if len({result["sha256"] for result in results}) > 1:
        sys.exit("the weights differ with the number of ranks.")
    print(table(rows(results)))
    save("scaling_link" if given.bandwidth else "scaling_hosts" if results[-1]["hosts"] > 1 else "scaling", results)


def bytes_by_model(ranks: int, parameter_bytes: int, zero: bool) -> float:
    """What a rank sends in a step, as docs/scaling.md has it: each slice of the gradients' sums to its owner, and the totals; with ZeRO
    the new weights as well.
    """
    return (3 if zero else 2) * (ranks - 1) / ranks * parameter_bytes


def milliseconds_by_model(ranks: int, parameter_bytes: int, latency: float, bandwidth: float) -> float:
    """The time of the sum: that of a ring, as docs/scaling.md has it.

    Args:
        latency: in milliseconds.
        bandwidth: in MB a second, for each rank.
    """
    return 2 * (ranks - 1) * (latency + parameter_bytes / 1e3 / ranks / bandwidth)


def measure(ranks: int, configuration: str, steps: int) -> list[dict[str, Any]]:
    """Start ``ranks`` ranks, and return what the first one has measured without and with a shared state."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    command = [str(mpiexec), "-n", str(ranks), sys.executable, "-m", "benchmarks.scaling", configuration, str(steps)]
    done = subprocess.run(command, env=os.environ | ONE_THREAD, capture_output=True, encoding="utf-8")
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    results: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return results


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each number of ranks."""
    lines = []
    for plain, zero in zip(results[::2], results[1::2], strict=True):
        line = {
            "ranks": plain["ranks"],
            "ms a step": plain["milliseconds"]["median"],
            "of it for the sum": plain["sum_milliseconds"]["median"],
        }
        if plain["bandwidth"]:
            arguments = plain["ranks"], plain["parameter_bytes"], plain["latency"], plain["bandwidth"]
            line["sum by the model"] = milliseconds_by_model(*arguments)
        for name, result in (("MB sent by a rank", plain), ("with --zero 1", zero)):
            line[name], line["by the model" if result is plain else "by its model"] = result["sent"] / 1e6, result["sent_by_model"] / 1e6
        lines.append({**line, "MB sent by a machine": None if plain["wire"] is None else plain["wire"] / 1e6})
    return lines


def rank(configuration: str, steps: int) -> None:
    """The program of one rank; the first one prints what it has measured, as a line of JSON."""
    from tensorlite.memory import keep_freed_memory
    from tensorlite.parallel import connect

    keep_freed_memory()
    results = [_measured(CONFIGURATIONS[configuration], steps, zero) for zero in (False, True)]
    if connect().rank == 0:
        print(json.dumps(results))


def _measured(chosen: Configuration, steps: int, zero: bool) -> dict[str, Any]:
    """Train for some steps, after two that warm up."""
    import tensorlite as tl
    from gpt.model import GPT
    from tensorlite.optim.state import SharedState
    from tensorlite.parallel import BatchShards, Workers, connect
    from tensorlite.random import make_generator

    world = connect()
    tl.manual_seed(0)
    model = GPT(chosen.model)
    optimizer = tl.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    if zero:
        optimizer.share_state(SharedState(world.slice_of, world.gather_to_first))
    (flat,) = optimizer.flats
    draw, times, sums = batches(chosen, 0), [], []
    with Workers(1) as team:
        parallel = BatchShards(model, [flat], SHARDS, team, world=world)
        for step in range(-2, steps):
            x, y = (tl.from_numpy(ids) for ids in draw())
            world.gather(np.zeros(1))  # all begin at the same time
            if step == 0:
                sent_before, wire_before = world.sent, _sent_by_machine()
            start = time.perf_counter()
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
    wire = _sent_by_machine()
    return {
        "configuration": chosen.name,
        "ranks": world.size,
        "hosts": len(set(world.gather_objects(platform.node()))),
        "zero": zero,
        "parameter_bytes": flat.data.nbytes,
        "milliseconds": spread(times),
        "sum_milliseconds": spread(sums),
        "sent": (world.sent - sent_before) / steps,
        "sent_by_model": bytes_by_model(world.size, flat.data.nbytes, zero),
        "wire": None if wire is None or wire_before is None else (wire - wire_before) / steps,
        "sha256": hashlib.sha256(flat.data.tobytes()).hexdigest(),
    }


def _sent_by_machine() -> int | None:
    """The bytes that this machine has sent over all its interfaces but the loopback, where Linux counts them."""
    if not INTERFACES.exists():
        return None
    lines = (line.split(":") for line in INTERFACES.read_text(encoding="ascii").splitlines()[2:])
    return sum(int(counts.split()[8]) for name, counts in lines if name.strip() != "lo")


if __name__ == "__main__":
    rank(sys.argv[1], int(sys.argv[2]))
