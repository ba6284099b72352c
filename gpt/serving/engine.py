"""One thread that owns the model, and writes many texts at once.

    submit ──▶ queue ──▶ a free slot ──▶ step, step, step … ──▶ deliver(piece)

A step is one pass through the model for the texts in all slots. Texts join and leave between two steps (continuous batching), and a
long prompt is read over several steps, so that others do not wait for all of it. Whatever else needs the model is run between two steps.

Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative Models", section 3.2.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import numpy as np

from data.tokenizer import Tokenizer
from gpt.errors import UserError
from gpt.generation.decoders import make_batch_decoder
from gpt.generation.stream import limit_threads, model_logits
from gpt.model import LanguageModel
from gpt.serving.metrics import Metrics
from gpt.serving.sequence import Piece, Sequence, Settings
from tensorlite.backend import Array, array_module

PROMPT_TOKENS_A_STEP = 256
_T = TypeVar("_T")


class QueueFullError(UserError):
    """There are more requests than the queue holds; ``retry_after`` says in how many seconds to ask again."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting:,} texts are waiting, as many as the queue holds: try again in {retry_after} seconds.")
        self.retry_after = retry_after


class StoppedError(UserError):
    """The engine has been stopped."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down.")


class SlotDecoder(Protocol):
    """What `Engine` needs of a decoder; see `gpt.generation.batch_decoder.BatchDecoder`."""

    slots: int

    def common_prefix(self, slot: int, context: np.ndarray) -> int:
        """How many ids at the start of ``context`` need not be computed."""
        ...

    def forget(self, slot: int) -> None:
        """Empty a slot."""
        ...

    def rounding(self, logits: Array) -> float:
        """A bound on the difference to the model's own logits."""
        ...

    def __call__(self, contexts: Mapping[int, np.ndarray]) -> Array:
        """The logits after each context, in the order of the slots."""
        ...


class ModelEvaluator:
    """A `SlotDecoder` for models that no decoder knows: evaluates each text whole, and keeps nothing."""

    def __init__(self, model: LanguageModel, slots: int) -> None:
        self.model, self.slots = model, slots

    def common_prefix(self, slot: int, context: np.ndarray) -> int:
        """All but the last: nothing is gained by reading a prompt in parts."""
        return len(context) - 1

    def forget(self, slot: int) -> None:
        """There is nothing to forget."""

    def rounding(self, logits: Array) -> float:
        """They are the model's own."""
        return 0.0

    def __call__(self, contexts: Mapping[int, np.ndarray]) -> Array:
        """The model's logits after each context."""
        rows = [model_logits(self.model, contexts[slot][None]) for slot in sorted(contexts)]
        return array_module(rows[0]).concatenate(rows)


class Generation:
    """A text that was asked for."""

    def __init__(self, sequence: Sequence, deliver: Callable[[Piece], None]) -> None:
        self.sequence, self.deliver = sequence, deliver
        self.asked, self.cancelled = time.monotonic(), False

    def cancel(self) -> None:
        """Nobody waits for it any more: its slot is free before the next step."""
        self.cancelled = True


class Engine:
    """Texts for many at once.

    Args:
        slots: how many texts are written at once.
        queue: how many may wait.
    """

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, *, slots: int = 16, queue: int = 64) -> None:
        self.model, self.tokenizer, self.queue, self.slots = model, tokenizer, queue, slots
        self.metrics = Metrics()
        self.decoder: SlotDecoder = make_batch_decoder(model, slots) or ModelEvaluator(model, slots)
        self._running: dict[int, Generation] = {}
        self._waiting: deque[Generation] = deque()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> None:
        """Give up whatever runs or waits, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    @property
    def running(self) -> int:
        """How many texts are being written."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many are in the queue."""
        return len(self._waiting) + len(self._calls)

    def submit(
        self, prompts: list[np.ndarray], settings: Settings, generators: list[np.random.Generator], delivers: list[Callable[[Piece], None]]
    ) -> list[Generation]:
        """Ask for a text after each of the prompts (T,); its pieces are given to its ``deliver``, in the engine's thread.

        Raises:
            QueueFullError: if not all of them fit into the queue; then none is taken.
            StoppedError: if the engine has been stopped.
        """
        config = self.model.config
        generations = [
            Generation(Sequence(self.tokenizer, ids, settings, generator, config.block_size, config.vocab_size), deliver)
            for ids, generator, deliver in zip(prompts, generators, delivers, strict=True)
        ]
        with self._changed:
            self._require_room(len(generations))
            self._waiting.extend(generations)
            self._changed.notify()
        return generations

    def call(self, function: Callable[[], _T]) -> Future[_T]:
        """Run ``function`` between two steps, in the thread that owns the model.

        Raises:
            QueueFullError, StoppedError: as for `submit`.
        """
        future: Future[_T] = Future()
        with self._changed:
            self._require_room(1)
            self._calls.append((future, function))
            self._changed.notify()
        return future

    def _require_room(self, more: int) -> None:
        if self._stopping:
            raise StoppedError
        free = max(0, self.slots - len(self._running))
        if self.waiting + more > self.queue + free:
            raise QueueFullError(self.waiting, 1 + self.waiting // max(1, self.slots))

    def _run(self) -> None:
        with limit_threads(self.model):
            while self._wait_for_work():
                self._run_a_call()
                self._admit()
                if self._running:
                    self._step()
        for generation in [*self._running.values(), *self._waiting]:
            generation.deliver(Piece(error=StoppedError()))
        for future, _ in self._calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(StoppedError())

    def _wait_for_work(self) -> bool:
        """False when there is no more."""
        with self._changed:
            while not (self._stopping or self._running or self._waiting or self._calls):
                self._changed.wait()
            return not self._stopping

    def _run_a_call(self) -> None:
        with self._changed:
            if not self._calls:
                return
            future, function = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for; the engine goes on
            future.set_exception(error)

    def _admit(self) -> None:
        """Give free slots to those who wait, each the slot that has seen most of its prompt; and take them from those who have gone."""
        for slot, generation in list(self._running.items()):
            if generation.cancelled:
                self._end(slot)
                self.metrics.gave_up()
        with self._changed:
            while self._waiting and len(self._running) < self.slots:
                generation = self._waiting.popleft()
                if generation.cancelled:
                    self.metrics.gave_up()
                    continue
                free = [slot for slot in range(self.slots) if slot not in self._running]
                context = generation.sequence.context
                self._running[max(free, key=lambda slot: self.decoder.common_prefix(slot, context))] = generation
                self.metrics.began(generation.sequence.prompt_length)

    def _end(self, slot: int) -> None:
        with self._changed:
            del self._running[slot]

    def _step(self) -> None:
        """One pass through the model, and one more token for every text whose prompt has been read."""
        contexts, complete = self._contexts()
        try:
            logits = self.decoder(contexts)
        except Exception as error:  # noqa: BLE001 - for example too little memory: these texts end, and the engine goes on
            traceback.print_exc()
            for slot in contexts:
                self._fail(slot, error)
            return
        self.metrics.stepped()
        for row, slot in zip(logits, sorted(contexts), strict=True):
            if slot in complete:
                self._append(slot, row)

    def _contexts(self) -> tuple[dict[int, np.ndarray], set[int]]:
        """What the model reads in this step, by slot, and in which slots that is all there is to read."""
        contexts, complete, left = {}, set(), PROMPT_TOKENS_A_STEP
        for slot, generation in sorted(self._running.items(), key=lambda item: item[1].asked):
            whole = generation.sequence.context
            known = self.decoder.common_prefix(slot, whole)
            new = max(1, len(whole) - known)
            if new > 1:
                new = min(new, left)
                left -= new
            if new:
                end = min(len(whole), known + new)
                contexts[slot] = whole[:end]
                if end == len(whole):
                    complete.add(slot)
        return contexts, complete

    def _append(self, slot: int, logits: Array) -> None:
        generation = self._running[slot]
        sequence = generation.sequence
        is_first = sequence.length == sequence.prompt_length
        try:
            context = sequence.context
            piece = sequence.append_next(logits, self.decoder.rounding(logits), lambda: model_logits(self.model, context[None])[0])
        except Exception as error:  # noqa: BLE001 - of this text alone, for example logits that are not finite
            self._fail(slot, error)
            return
        self.metrics.wrote_token()
        if is_first:
            self.metrics.first_token(time.monotonic() - generation.asked)
        if piece.is_last:
            self._end(slot)
        generation.deliver(piece)

    def _fail(self, slot: int, error: Exception) -> None:
        generation = self._running[slot]
        self._end(slot)
        self.decoder.forget(slot)
        generation.deliver(Piece(error=error))
