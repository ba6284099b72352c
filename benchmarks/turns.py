"""Processes that take turns.

Each side of a comparison is a separate process, with its own malloc, its own threads and its own peak
memory. The parent lets them work in turn, so other load on the machine affects all sides alike. The result is the ratio of
two neighbouring blocks.

A side runs `serve`; the parent holds a `Side` for each.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tensorlite.memory import peak_memory

LIMIT = 300.0  # seconds that a side may take for one answer, compilation included


class Side:
    """A process that works on request: ``python -m module *arguments``.

    Args:
        name: of the side; ``book`` runs with TENSORLITE_KERNELS=book.
    """

    def __init__(self, name: str, module: str, *arguments: str) -> None:
        self.name = name
        environment = dict(os.environ, TENSORLITE_KERNELS="book" if name == "book" else "fast")
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def ask(self, count: int, limit: float = LIMIT) -> dict[str, Any]:
        """Let it do its work ``count`` times: the time in seconds, its result, and its peak memory; for 0 only the last.

        Args:
            limit: seconds to wait for the answer.

        Raises:
            RuntimeError: if the process has stopped, or does not answer in time; then it is ended.
        """
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # it has stopped: the empty answer says so
            self.process.stdin.write(f"{count}\n")
            self.process.stdin.flush()
        try:
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.process.kill()
            raise RuntimeError(f"the side {self.name!r} did not answer within {limit:.0f} seconds.") from None
        if not line:
            raise RuntimeError(f"the side {self.name!r} stopped with exit code {self.process.wait()}.")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        """Pass its lines on; an empty line marks the end."""
        assert self.process.stdout
        with self.process.stdout:
            for line in self.process.stdout:
                self._answers.put(line)
        self._answers.put("")


@contextlib.contextmanager
def sides(made: Sequence[Side]) -> Iterator[Sequence[Side]]:
    """The processes for a ``with`` block; they end with it."""
    try:
        yield made
    finally:
        for side in made:
            side.close()


def in_turn(made: Sequence[Side], rounds: int, count: int) -> dict[str, list[float]]:
    """The seconds of each side for ``count`` runs of its work in each round; every second round is in reverse order."""
    seconds: dict[str, list[float]] = {side.name: [] for side in made}
    for round_ in range(rounds):
        for side in made if round_ % 2 == 0 else reversed(made):
            seconds[side.name].append(side.ask(count)["seconds"])
    return seconds


def serve(work: Callable[[int], Any], memory: Callable[[], int | None] = peak_memory) -> None:
    """The other end of a `Side`: answer every line of standard input, a count, with a line of JSON.

    Args:
        work: gets the count, and returns its result.
        memory: returns the bytes to report; by default the peak memory of the process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # the output of the work must not mix with the answers
    for line in sys.stdin:
        start = time.perf_counter()
        result = work(int(line)) if int(line) else None
        seconds, peak = time.perf_counter() - start, memory()
        answer = {"seconds": seconds, "result": result, "peak_memory": math.nan if peak is None else peak}
        print(json.dumps(answer), file=answers, flush=True)
