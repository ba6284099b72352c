"""The training loop. `Trainer.train` reads from top to bottom: evaluate, save, make a step, log.

The stepper makes a step (`gpt.training.stepper`), and a `RunRecord` keeps metrics and checkpoints. Between two log lines nothing is read
back from the device, so that a GPU never waits for Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import tensorlite as tl
from data.loader import Batch, RandomBatches, Tokens
from gpt.config import RandomStream, TrainConfig
from gpt.model import LanguageModel
from gpt.training.evaluation import BestEvaluation, Evaluation
from gpt.training.fingerprint import Fingerprint, fingerprint
from gpt.training.metrics import gradient_norms_by_layer
from gpt.training.optimizers import make_optimizer
from gpt.training.progress import Progress
from gpt.training.rows import IGNORE
from gpt.training.speed import Speed
from gpt.training.stepper import make_stepper
from gpt.training.stopping import Stopped, StopRequest
from gpt.training.team import choose_team, join_ranks
from tensorlite import Tensor, optim
from tensorlite.backend import Array, to_numpy
from tensorlite.memory import peak_memory
from tensorlite.optim import schedule
from tensorlite.optim.state import SharedState
from tensorlite.parallel import TeamError
from tensorlite.precision import use_precision
from tensorlite.random import make_generator

__all__ = ["RunRecord", "Trainer", "learning_rate_factor"]


class RunRecord:
    """What is kept of a run while it trains. This one keeps nothing; `gpt.training.run.Run` keeps it in a folder."""

    def log(self, **metrics: Any) -> None:
        """Keep a line of metrics."""

    def save_checkpoint(self) -> None:
        """Keep what has been learnt so far."""

    def sample(self) -> str:
        """A text that the model writes by now; empty if none is wanted."""
        return ""


class Trainer:
    """One model, what it learns from, and how.

    Args:
        model: is trained in place; it is on the device where training happens.
        train_tokens, val_tokens: (N,) ids, all below the model's vocab_size.

    Attributes:
        stepper: makes the steps, in one of three ways; see `gpt.training.stepper`.
        step: the number of updates made so far.
        last: the latest evaluation.
        best: the best one.
        gradient_norm: the length of the last gradient, before it was clipped.
        learning_rate: of the last step.
        world: the ranks of MPI that train together; usually one.
        speed: how fast training is, and how fast the machine could compute; see `gpt.training.speed`.

    Raises:
        BatchError: if one of the two texts is shorter than a context.
        UserError: if the user insists on a CUDA graph, and there cannot be one; or for Muon without a matrix to train.
    """

    batches_have_one_shape: ClassVar[bool] = True

    def __init__(self, model: LanguageModel, config: TrainConfig, train_tokens: Tokens, val_tokens: Tokens) -> None:
        self.model, self.config = model, config
        self.tokens = {"training text": train_tokens, "validation text": val_tokens}
        self.batches = self._make_batches("training text", RandomStream.BATCHES)
        self._make_batches("validation text", RandomStream.EVALUATION)  # a text that is too short is refused now, not after some steps
        self.optimizer = make_optimizer(model, config)
        self.schedule = optim.LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, config))
        self.stop = StopRequest(config.time_limit)
        self.world, self.workers = join_ranks(config), choose_team(config)
        self.stepper = make_stepper(model, self.optimizer, config, self.workers, self.stop, self.batches_have_one_shape, self.world)
        if config.zero and self.world.size > 1:
            self.optimizer.share_state(SharedState(self.world.slice_of, self._gather_to_first))
        self.step = 0
        self.learning_rate = 0.0
        self.gradient_norm = tl.zeros(())
        self.last: Evaluation | None = None
        self.best = BestEvaluation()
        self._evaluated: int | None = None  # the step of the last evaluation
        self.speed = Speed()

    def train(self, record: RunRecord | None = None) -> None:
        """Make every step that is left, with an evaluation before the first, after the last, and every eval_interval steps.

        Args:
            record: keeps metrics, checkpoints and samples.

        Raises:
            Stopped: after Ctrl-C or when the time is up. No step is half done.
            TeamError: if a process of the team ends or no longer answers. No step is half done.
            UserError: if the loss is no longer a finite number.
        """
        config, record = self.config, record or RunRecord()
        with use_precision(config.precision), self.stop, self.workers, Progress(config.steps, self.step) as progress:
            self.stepper.shards.zero_grad()  # a step that the user has interrupted leaves a part of its gradient
            self.speed.calibrate(self.model, config.backend, self.workers, self.world.size)
            while True:
                if any(map(self._is_due, (config.eval_interval, config.sample_interval))):
                    self.stepper.wait()
                if evaluated := self._is_due(config.eval_interval) and self._evaluated != self.step:
                    self.report(self.evaluate(progress), record, progress)
                if self.step and self._is_due(config.sample_interval, last=False) and (sample := record.sample()):
                    progress.write(f"step {self.step:>5}: the model writes\n{sample}\n")
                if evaluated or self._is_due(config.checkpoint_interval, last=False):
                    record.save_checkpoint()
                if evaluated:
                    self.speed.restart()  # it is the speed of training alone
                if self.step >= config.steps or self.is_stuck:
                    return
                loss = self.update()
                if self._is_due(config.log_interval):
                    self.stepper.wait()  # the only place where Python waits for the device
                    self.log(loss.item(), record, progress)
                progress.step()
                with self.world.together():
                    self.stop.check()

    def update(self) -> Tensor:
        """Make one step: the loss of one batch (or of several, accumulated), its gradient, and new weights. Return the loss, ().

        Raises:
            Stopped: if the user asks to stop before the gradient is complete; then no step was made, and no batch drawn.
            TeamError: if a process of the team ends or no longer answers; likewise.
            UserError: if the loss is no longer a finite number.
        """
        position = self.batches.state_dict()
        batches = [self.batches.next_batch() for _ in range(self.config.accumulation)]
        try:
            with use_precision(self.config.precision):  # also set here, because callers may call update() directly
                result = self.stepper.step(batches, self.step)
        except (Stopped, TeamError):
            self.batches.load_state_dict(position)
            raise
        self.gradient_norm = result.gradient_norm
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        for x, _ in batches:
            self.speed.add(x)
        return result.loss

    def evaluate(self, progress: Progress | None = None) -> Evaluation:
        """The mean loss on a part of each text, without dropout.

        The batches are drawn by a new generator with the same seed, so two evaluations differ only by what the model has learnt.
        """
        self.model.eval()
        means = []
        for name in self.tokens:
            batches = list(self._evaluation_batches(name))
            shown = progress.evaluation(name, len(batches)) if progress else contextlib.nullcontext(lambda: None)
            own = [batches[i] for i in self.world.share(range(len(batches)))]
            with self.world.together(), shown as batch_done, self.stop.interruptible():
                losses = self._losses(own, batch_done)
            totals, counts = zip(*itertools.chain(*self.world.gather_objects(losses)), strict=True)
            means.append(math.fsum(totals) / sum(counts))
        self.model.train()
        return Evaluation(*means)

    def report(self, evaluation: Evaluation, record: RunRecord, progress: Progress) -> None:
        """Print and log an evaluation."""
        self.last, self._evaluated = evaluation, self.step
        self.best.update(evaluation.val_loss, self.step)
        progress.write(f"step {self.step:>5}: train loss {evaluation.train_loss:.4f}, validation loss {evaluation.val_loss:.4f}")
        record.log(step=self.step, **dataclasses.asdict(evaluation))

    def log(self, loss: float, record: RunRecord, progress: Progress) -> None:
        """Show and log the loss of the last batch, the length of its gradient, and the speed since the last call (see `Speed`).

        Raises:
            UserError: if training has broken down.
        """
        norm = self.gradient_norm.item()
        with self.world.together():
            self.stepper.check(loss, norm, self.step)
        speed, metrics = self.speed.measure(), self.stepper.metrics()
        of_peak = f", {speed.share_of_peak:.0%} of peak" if speed.share_of_peak is not None else ""
        memory = (
            f", {metrics['gpu_memory'] / 2**30:.1f} of {metrics['gpu_memory_limit'] / 2**30:.1f} GiB" if "gpu_memory" in metrics else ""
        )
        progress.set_status(f"loss {loss:.3f}, {speed.tokens_per_second:,.0f} tokens/s{of_peak}{memory}")
        if math.isfinite(norm):  # in float16 it may have overflowed
            metrics = {"gradient_norm": norm, "gradient_norms": gradient_norms_by_layer(self.model, norm), **metrics}
        record.log(step=self.step, loss=loss, learning_rate=self.learning_rate, **metrics, **speed.rounded(), peak_memory=peak_memory())

    @property
    def is_stuck(self) -> bool:
        """Whether the validation loss has not fallen for `patience` evaluations."""
        return 0 < self.config.patience <= self.best.waited

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """The fingerprint of both texts. To read all of them takes a moment, and they do not change."""
        return fingerprint(self.tokens)

    @property
    def tokens_per_step(self) -> int:
        """How many predictions one step learns from."""
        return self.config.accumulation * self.config.batch_size * self.model.config.block_size

    def state_dict(self) -> dict[str, Any]:
        """Where training stands, fit for JSON; weights and optimizer are saved by the caller."""
        return {
            "step": self.step,
            "evaluated": self._evaluated,
            "last": dataclasses.asdict(self.last) if self.last else None,
            "best": dataclasses.asdict(self.best) if self.last else None,
            "batches": self.batches.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.stepper.scaler.state_dict() or None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``state`` was taken.

        Raises:
            ValueError, TypeError, KeyError: if it is no such state.
        """
        if not (isinstance(state["step"], int) and state["step"] >= 0):
            raise ValueError(f"a step is a number from 0 up, got {state['step']!r}")
        self.batches.load_state_dict(state["batches"])
        self.schedule.load_state_dict(state["schedule"])
        if state.get("scaler"):  # the run may have begun in a precision that needs none
            self.stepper.scaler.load_state_dict(state["scaler"])
        self.last = Evaluation(**state["last"]) if state["last"] else None
        self.best = BestEvaluation(**state["best"]) if state["best"] else BestEvaluation()
        self._evaluated, self.step = state["evaluated"], state["step"]

    def _is_due(self, interval: int, last: bool = True) -> bool:
        """Whether something that happens every ``interval`` steps, and after the last one if ``last``, happens at this step."""
        return (interval > 0 and self.step % interval == 0) or (last and self.step == self.config.steps)

    def _losses(self, batches: Sequence[Batch], batch_done: Callable[[], None]) -> list[tuple[float, int]]:
        """The sum of the losses over all targets in each of ``batches``, and their number."""

        @tl.no_grad()
        def sum_and_count(batch: Batch) -> tuple[float, int]:
            self.stop.check()  # before the work: a request to stop does not wait for all batches
            _, loss = self.model(*self.stepper.to_device(batch))
            count = int((batch[1] != IGNORE).sum())
            total = count * loss.item()
            batch_done()
            return total, count

        return self.workers.map(sum_and_count, batches)

    def _gather_to_first(self, part: Array, length: int) -> Array | None:
        """`World.gather_to_first` through the host's memory: the files that need it are written there."""
        return self.world.gather_to_first(to_numpy(part), length)

    def _evaluation_batches(self, name: str) -> Iterator[Batch]:
        """What an evaluation reads of one of the two texts."""
        batches = self._make_batches(name, RandomStream.EVALUATION)
        return (batches.next_batch() for _ in range(self.config.eval_iters))

    def _make_batches(self, name: str, stream: RandomStream) -> RandomBatches:
        """Random batches of one of the two texts, from the start of ``stream``."""
        generator = make_generator(self.config.seed, stream)
        return RandomBatches(self.tokens[name], self.config.batch_size, self.model.config.block_size, generator, name=name)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """The factor of ``learning_rate`` in a step: it rises linearly in the warmup, then falls to ``min_learning_rate``."""
    if step < config.warmup_steps:
        return (step + 1) / (config.warmup_steps + 1)
    step, length, end = step - config.warmup_steps, config.steps - config.warmup_steps, config.min_learning_rate / config.learning_rate
    match config.schedule:
        case "linear":
            return schedule.linear(step, 1.0, end, length)
        case "cosine":
            return schedule.cosine(step, length, end)
        case _:
            return 1.0
