"""Processes that take turns.

Each side of a comparison is a process of its own, so that each has its own malloc, its own threads and a peak memory that
can be read. The parent lets them work in turn: whatever else the machine is doing meets all sides alike, and the ratio of
two neighbouring blocks is what is believed.

A side runs `serve`; the parent holds a `Side` for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tensorlite.memory import peak_memory


class Side:
    """A process that works when it is told to: ``python -m module *arguments``.

    Args:
        name: of the side; ``book`` runs with TENSORLITE_KERNELS=book.
    """

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        environment = dict(os.environ, TENSORLITE_KERNELS="book" if name == "book" else "fast")
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(self, count: int) -> dict[str, Any]:
        """Let it do its work ``count`` times: the seconds that took, its result, and its peak memory; for 0 only the last.

        Raises:
            RuntimeError: if the process has stopped.
        """
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the side {self.name!r} stopped with exit code {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        self.process.communicate()  # closes its input, and waits


@contextmanager
def sides(made: Sequence[Side]) -> Iterator[Sequence[Side]]:
    """The processes for a ``with`` block; they end with it."""
    try:
        yield made
    finally:
        for side in made:
            side.close()


def in_turn(made: Sequence[Side], rounds: int, count: int) -> dict[str, list[float]]:
    """Seconds that ``count`` pieces of work took each side in each round; every second round goes backwards."""
    seconds: dict[str, list[float]] = {side.name: [] for side in made}
    for round_ in range(rounds):
        for side in made if round_ % 2 == 0 else reversed(made):
            seconds[side.name].append(side.ask(count)["seconds"])
    return seconds


def serve(work: Callable[[int], Any], memory: Callable[[], int] = peak_memory) -> None:
    """The other end of a `Side`: answer every line of standard input, a count, with a line of JSON.

    Args:
        work: is told how often, and returns its result.
        memory: the bytes to report: by default the most that the process ever held.
    """
    for line in sys.stdin:
        start = time.perf_counter()
        result = work(int(line)) if int(line) else None
        answer = {"seconds": time.perf_counter() - start, "result": result, "peak_memory": memory()}
        print(json.dumps(answer), flush=True)
