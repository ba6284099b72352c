"""Heartbeats: a process shows that it is alive, and the one that waits for its answer notices when it no longer is.

A process that ends closes its pipe. One that was stopped (SIGSTOP) does not, and whoever reads from the pipe waits for ever. A limit on
the time until an answer comes would be a limit on the length of a step. So each process has a thread that adds 1 to a counter in shared
memory every second, whatever the process computes: NumPy releases Python's lock meanwhile. A thread of the calling process, the watch,
kills a process whose counter has stayed the same for too long. That closes its pipe, which whoever reads or writes there sees as before.

The watch reads no clock. It counts how often it has looked, so time in which it did not run itself does not count: if all
processes are stopped and go on (Ctrl-Z, a computer that sleeps), each has a whole limit again to show that it is alive.

A process whose own code waits for something that never comes still has a heartbeat: nobody can tell that from a long step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Protocol

from tensorlite.backend import Array

INTERVAL = 1.0  # seconds between two heartbeats, and between two looks of the watch

# Seconds without a heartbeat until a process is killed. In one that is alive two things delay the heartbeat: a call that keeps Python's
# lock, which here takes less than a second, and memory that the system has swapped out, which on a slow disk may take a minute. The
# limit is half of that of ranks (`tensorlite.parallel.ranks.LIMIT`), so that a rank ends its run before the others give it up.
LIMIT = 300.0


class Watched(Protocol):
    """What the watch asks of a process.

    Attributes:
        heartbeats: the counter in shared memory, an array of no axes.
    """

    heartbeats: Array

    def give_up(self, seconds: float) -> None:
        """Kill the process, if it has not ended: there was no heartbeat for so many seconds."""


def start_heartbeat(counter: Array) -> None:
    """Add 1 to ``counter``, an array of no axes, every `INTERVAL` seconds until this process ends."""

    def beat() -> None:
        while True:
            counter[...] += 1
            time.sleep(INTERVAL)

    threading.Thread(target=beat, name="tensorlite-heartbeat", daemon=True).start()


class Watch:
    """Gives up each of ``processes`` that has had no heartbeat for ``limit`` seconds, in a thread that looks every `INTERVAL` seconds."""

    def __init__(self, processes: Sequence[Watched], limit: float = LIMIT) -> None:
        self.processes, self.limit = list(processes), limit
        self._counts = [int(process.heartbeats) for process in self.processes]
        self._missed = [0] * len(self.processes)  # looks in a row that have found the same count
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tensorlite-watch", daemon=True)

    def start(self) -> None:
        """Start to look."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it gives up no process any more."""
        self._end.set()
        self._thread.join()

    def look(self) -> None:
        """Look at all counters once."""
        for i, process in enumerate(self.processes):
            count = int(process.heartbeats)
            self._missed[i] = self._missed[i] + 1 if count == self._counts[i] else 0
            self._counts[i] = count
            if self._missed[i] * INTERVAL >= self.limit:
                process.give_up(self._missed[i] * INTERVAL)

    def _run(self) -> None:
        while not self._end.wait(INTERVAL):
            self.look()
