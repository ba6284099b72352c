"""How far a run is: a bar at a terminal, and in a log a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from tqdm import tqdm

FIRST_LINE, PAUSE = 2.0, 10.0  # seconds until a log has its first line, and between two of them


class Progress:
    """Of a run of ``total`` steps, for a ``with`` block.

    A bar is drawn again and again in one line, which only a terminal can show: in a log each drawing would be a fragment of its own.

    Args:
        done: steps that were made before.
        on_terminal: whether standard error shows a bar.
    """

    def __init__(self, total: int, done: int = 0, on_terminal: bool | None = None) -> None:
        self.total, self.done = total, done
        self._bar: Any = None
        if sys.stderr.isatty() if on_terminal is None else on_terminal:
            self._bar = tqdm(total=total, initial=done, unit="step", mininterval=0.1)
        self._said = ""
        self._begin, self._begin_at = time.monotonic(), done
        self._next_line = self._begin + FIRST_LINE
        self._lock = threading.Lock()

    def step(self) -> None:
        """One more step is made."""
        self.done += 1
        if self._bar is not None:
            self._bar.update()
        elif self.done < self.total:
            self._line_now_and_then(self._line)

    def say(self, text: str) -> None:
        """What to show beside the count from now on."""
        self._said = text
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)

    def write(self, text: str) -> None:
        """A line of its own, on standard output."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    @contextlib.contextmanager
    def evaluation(self, text: str, batches: int) -> Iterator[Callable[[], None]]:
        """Show how far an evaluation on ``text`` is; yields what to call after each of its batches, from any thread."""
        done = 0
        bar = None
        if self._bar is not None:
            bar = tqdm(total=batches, desc=f"evaluating, {text}", unit="batch", leave=False, mininterval=0.1, delay=0.5)

        def after_a_batch() -> None:
            nonlocal done
            with self._lock:
                done += 1
                if bar is not None:
                    bar.update()
                elif done < batches:
                    self._line_now_and_then(lambda: f"step {self.done}: evaluating, {done} of {batches} batches of the {text}")

        try:
            yield after_a_batch
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

    def _line_now_and_then(self, line: Callable[[], str]) -> None:
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + PAUSE
            print(line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        """Such as: step 120/3000, 0:10 gone, 3:58 to go, loss 2.345, …"""
        gone = time.monotonic() - self._begin
        parts = [f"step {self.done}/{self.total}", f"{tqdm.format_interval(gone)} gone"]
        if self._begin_at < self.done < self.total:
            parts.append(f"{tqdm.format_interval(gone / (self.done - self._begin_at) * (self.total - self.done))} to go")
        return ", ".join([*parts, self._said] if self._said else parts)
