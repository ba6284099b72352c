"""The progress of a run: a bar at a terminal, and a line now and then in a log."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from tqdm import tqdm

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"  # with the status it fits into 80 columns
FIRST_LINE, INTERVAL = 2.0, 10.0  # seconds until the first line of a log, and between two lines


class Progress:
    """The progress of a run of ``total`` steps, for a ``with`` block.

    A bar is redrawn in one line, which only a terminal can show: in a log every redrawing would be a line of its own.

    Args:
        done: steps that were made before.
        on_terminal: whether to show a bar on standard error; if not given, whether that is a terminal.
    """

    def __init__(self, total: int, done: int = 0, on_terminal: bool | None = None) -> None:
        self.total, self.done = total, done
        self._bar: Any = None
        if sys.stderr.isatty() if on_terminal is None else on_terminal:
            self._bar = tqdm(total=total, initial=done, unit="step", mininterval=0.1, bar_format=BAR)
        self._status = ""
        self._start, self._start_step = time.monotonic(), done
        self._next_line = self._start + FIRST_LINE
        self._lock = threading.Lock()

    def step(self) -> None:
        """Count one more step."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
        elif self.done < self.total:
            self._print_if_due(self._line)

    def set_status(self, text: str) -> None:
        """Show ``text`` beside the count from now on."""
        self._status = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def write(self, text: str) -> None:
        """Print a line on standard output."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    @contextlib.contextmanager
    def evaluation(self, text: str, batches: int) -> Iterator[Callable[[], None]]:
        """Show the progress of an evaluation on ``text``; yield a function to call after each of its batches, from any thread."""
        done = 0
        bar = None
        if self._bar is not None:
            bar = tqdm(total=batches, desc=f"evaluating, {text}", unit="batch", leave=False, mininterval=0.1, delay=0.5)

        def batch_done() -> None:
            nonlocal done
            with self._lock:
                done += 1
                if bar is not None:
                    bar.update()
                elif done < batches:
                    self._print_if_due(lambda: f"step {self.done}: evaluating, {done} of {batches} batches of the {text}")

        try:
            yield batch_done
        finally:
            if bar is not None:
                bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            print(self._line(), file=sys.stderr)

    def _print_if_due(self, line: Callable[[], str]) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + INTERVAL
            print(line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        """Such as: step 120/3000, 0:10 gone, 3:58 to go, loss 2.345, …"""
        gone = time.monotonic() - self._start
        parts = [f"step {self.done}/{self.total}", f"{tqdm.format_interval(gone)} gone"]
        if self._start_step < self.done < self.total:
            parts.append(f"{tqdm.format_interval(gone / (self.done - self._start_step) * (self.total - self.done))} to go")
        return ", ".join([*parts, self._status] if self._status else parts)
