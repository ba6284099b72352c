"""What is counted, as text for Prometheus.

Source: Prometheus, "Text-based format", https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # seconds
WINDOW = 10.0  # seconds, for tokens a second


class Histogram:
    """How many observations were at most as large as each of ``bounds``."""

    def __init__(self, bounds: Sequence[float] = BUCKETS) -> None:
        self.bounds, self.counts = tuple(bounds), [0] * len(bounds)
        self.sum, self.count = 0.0, 0

    def observe(self, value: float) -> None:
        """Count one."""
        self.sum, self.count = self.sum + value, self.count + 1
        for i, bound in enumerate(self.bounds):
            self.counts[i] += value <= bound

    def lines(self, name: str) -> Iterator[str]:
        """In the text format."""
        for bound, count in zip(self.bounds, self.counts, strict=True):
            yield f'{name}_bucket{{le="{bound:g}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self.count}'
        yield f"{name}_sum {self.sum:.6f}"
        yield f"{name}_count {self.count}"


class Metrics:
    """Counters that any thread may change."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._first, self._started = Histogram(), time.monotonic()
        self._prompt = self._generated = self._cancelled = self._steps = 0
        self._recent: deque[float] = deque()  # when the latest tokens were written

    def answered(self, route: str, status: int) -> None:
        """A request has its status."""
        with self._lock:
            self._requests[route, status] += 1

    def began(self, prompt_tokens: int) -> None:
        """The model begins to read a prompt."""
        with self._lock:
            self._prompt += prompt_tokens

    def stepped(self) -> None:
        """One pass through the model."""
        with self._lock:
            self._steps += 1

    def wrote_token(self) -> None:
        """One more token of a text."""
        now = time.monotonic()
        with self._lock:
            self._generated += 1
            self._recent.append(now)
            self._forget(now)

    def first_token(self, seconds: float) -> None:
        """So long after it was asked for, a text has its first token."""
        with self._lock:
            self._first.observe(seconds)

    def gave_up(self) -> None:
        """A client has gone before its text had ended."""
        with self._lock:
            self._cancelled += 1

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0] < now - WINDOW:
            self._recent.popleft()

    def text(self, running: int, waiting: int) -> str:
        """All of them."""
        now = time.monotonic()
        with self._lock:
            self._forget(now)
            speed = len(self._recent) / min(WINDOW, max(now - self._started, 1e-9))
            lines = [
                *_metric("requests_total", "counter", "Requests, by route and status."),
                *(f'gpt_requests_total{{route="{r}",status="{s}"}} {count}' for (r, s), count in sorted(self._requests.items())),
                *_metric("prompt_tokens_total", "counter", "Tokens of prompts.", self._prompt),
                *_metric("generated_tokens_total", "counter", "Tokens that the model has written.", self._generated),
                *_metric(
                    "steps_total", "counter", "Passes through the model; each brings a token to every text that is ready.", self._steps
                ),
                *_metric("cancelled_total", "counter", "Texts whose client went away.", self._cancelled),
                *_metric("running", "gauge", "Texts that are being written.", running),
                *_metric("waiting", "gauge", "Texts in the queue.", waiting),
                *_metric("tokens_per_second", "gauge", f"Tokens a second, over the last {WINDOW:.0f} seconds.", f"{speed:.3f}"),
                *_metric("time_to_first_token_seconds", "histogram", "From the request to the first token of a text."),
                *self._first.lines("gpt_time_to_first_token_seconds"),
            ]
        return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, what: str, value: object = None) -> Iterator[str]:
    yield f"# HELP gpt_{name} {what}"
    yield f"# TYPE gpt_{name} {kind}"
    if value is not None:
        yield f"gpt_{name} {value}"
