"""The loop: batch, forward, backward, clip, step; now and then a look at the loss. `Trainer.train` reads from top to bottom.

Between two looks nothing is read back from the device, so that a GPU is never made to wait for Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

import numpy as np

import tensorlite as tl
from data.cores import available_cores
from data.loader import Batch, RandomBatches, Tokens
from gpt.config import TrainConfig
from gpt.errors import fail
from gpt.model import LanguageModel
from gpt.training.diagnosis import first_not_finite
from gpt.training.fingerprint import Fingerprint, fingerprint
from gpt.training.metrics import norms_by_layer
from gpt.training.progress import Progress
from gpt.training.rows import IGNORE
from gpt.training.run_folder import RunFolder
from gpt.training.speed import Speed
from gpt.training.stepper import CapturedStep
from gpt.training.stopping import StopRequest
from tensorlite import Tensor, optim
from tensorlite.backend import Array, Device
from tensorlite.memory import peak_memory
from tensorlite.op import kernel_mode
from tensorlite.optim import schedule
from tensorlite.parallel import BatchShards, Workers
from tensorlite.precision import use_precision
from tensorlite.random import draw_dropout_key, make_generator

# The independent streams of random numbers of a run; `make_generator(seed, stream)` starts one.
WEIGHTS, BATCHES, DROPOUT, EVALUATION, SAMPLE = range(5)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, in nats a token, over the same batches every time. Every token counts the same, in whichever batch it is."""

    train_loss: float
    val_loss: float


@dataclass
class Best:
    """The lowest validation loss so far, the step that had it, and how many evaluations there have been since."""

    val_loss: float = math.inf
    step: int = 0
    waited: int = 0

    def see(self, val_loss: float, step: int) -> None:
        """Take a new evaluation into account."""
        if val_loss < self.val_loss:
            self.val_loss, self.step, self.waited = val_loss, step, 0
        else:
            self.waited += 1


class Trainer:
    """One model, what it learns from, and how.

    Args:
        model: is trained in place; it is on the device where training happens.
        train_tokens, val_tokens: (N,) ids, all below the model's vocab_size.
        folder: where the metrics go.
        keep: called after every evaluation and every ``checkpoint_interval`` steps, to save what has been learnt so far.
        show: called every ``sample_interval`` steps; the text that the model writes by now.

    Attributes:
        step: updates made so far.
        last: the latest evaluation.
        best: the best one.
        gradient_norm: the length of the last gradient, before it was clipped.
        learning_rate: of the last step.
        speed: what goes through the model, and what the machine could do; see `gpt.training.speed`.

    Raises:
        BatchError: if one of the two texts is shorter than a context.
    """

    steps_are_alike: ClassVar[bool] = True  # whether all batches have one shape

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        train_tokens: Tokens,
        val_tokens: Tokens,
        folder: RunFolder | None = None,
        keep: Callable[[], None] | None = None,
        show: Callable[[], str] | None = None,
    ) -> None:
        self.model, self.config, self.folder, self.keep, self.show = model, config, folder, keep, show
        self.tokens = {"training text": train_tokens, "validation text": val_tokens}
        self.batches = self._batches("training text", BATCHES)
        self._batches("validation text", EVALUATION)  # too short a text is told now, not after the first steps
        self.optimizer = make_optimizer(model, config)
        half = config.precision == "float16" and kernel_mode() == "fast"  # the book computes in float32
        self.scaler = optim.GradScaler(self.optimizer) if half else None
        self.schedule = optim.LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, config))
        self.step = 0
        self.learning_rate = 0.0
        self.last: Evaluation | None = None
        self.best = Best()
        self.gradient_norm = tl.zeros(())
        self.captured = CapturedStep(self) if config.backend != "numpy" and config.cuda_graph else None  # steps without Python
        self.workers = Workers(config.workers or (available_cores() if config.backend == "numpy" else 1))
        self.shard_count = config.shards or self.workers.count
        self.shards = BatchShards(model, self.optimizer.flats, self.shard_count, self.workers)
        self.stop = StopRequest(config.time_limit)
        self._evaluated: int | None = None  # the step of the last evaluation
        self.speed = Speed()

    def train(self) -> None:
        """Make every step that is left, with an evaluation before the first, after the last, and every eval_interval steps.

        Raises:
            Stopped: after Ctrl-C or when the time is up, between two steps.
            UserError: if the loss is no longer a number.
        """
        config = self.config
        with use_precision(config.precision), self.stop, self.workers, Progress(config.steps, self.step) as progress:
            self.speed.calibrate(self.model, config.backend, self.workers)
            self.look_around(progress)
            self.speed.restart()
            while self.step < config.steps and not self.is_stuck:
                loss = self.update()
                if self.step % config.log_interval == 0 or self.step == config.steps:
                    self.log(loss.item(), progress)  # the one place where Python waits for the device
                progress.step()
                self.stop.check()
                self.look_around(progress)

    @functools.cached_property
    def fingerprint(self) -> Fingerprint:
        """Of both texts: reading all of them takes a moment, and they stay as they are."""
        return fingerprint(self.tokens)

    @property
    def is_stuck(self) -> bool:
        """Whether the validation loss has not fallen for longer than the user's patience lasts."""
        return 0 < self.config.patience <= self.best.waited

    def update(self) -> Tensor:
        """One step: the loss of one batch (or of several, accumulated), its gradient, and new weights."""
        batches = [self.batches.next_batch() for _ in range(self.config.accumulation)]
        with use_precision(self.config.precision):  # for whoever makes single steps, too
            loss, self.gradient_norm = self.captured(batches) if self.captured else self.plain_step(batches)
        self.learning_rate = self.schedule.get_last_lr()[0]
        self.schedule.step()
        self.step += 1
        for x, _ in batches:
            self.speed.add(x)
        return loss

    def plain_step(self, batches: list[Batch]) -> tuple[Tensor, Tensor]:
        """One step, op by op; returns the loss and the length of the gradient."""
        loss, norm = self.gradients([self.to_device(batch) for batch in batches], self.dropout_keys())
        if self.config.backend == "numpy" and not np.isfinite(loss.array + norm.array):  # on the CPU looking is free
            self.gradient_norm = norm
            self._diverged(float(loss.array), batches)
        self.make_step(norm)
        self.optimizer.zero_grad()
        return loss, norm

    def make_step(self, norm: Tensor, dials: optim.Dials | None = None) -> None:
        """Change the weights, in float16 only if the gradient, whose length is ``norm``, has not overflowed.

        Args:
            dials: read rates and counts from there; for a step that is captured.
        """
        if self.scaler and dials:
            self.scaler.step_by(dials, norm)
        elif self.scaler:
            self.scaler.step(norm)
        elif dials:
            self.optimizer.step_by(dials)
        else:
            self.optimizer.step()

    def settle(self) -> None:
        """Before the optimizer's state is saved: let it count only the steps that were made."""
        if self.scaler:
            self.scaler.settle()

    def gradients(self, batches: list[tuple[Tensor, Tensor]], keys: Array) -> tuple[Tensor, Tensor]:
        """The mean loss over ``batches``; its gradient, clipped, is then in the parameters, and its length before is returned, too.

        The workers share each batch (see `tensorlite.parallel`).

        Args:
            keys: those of this step, see `dropout_keys`.
        """
        share = (self.scaler.scale if self.scaler else 1) / len(batches)
        losses = [
            self.shards.forward_backward(batch, functools.partial(self._dropout_stream, number), share, keys[number])
            for number, batch in enumerate(batches)
        ]
        if self.scaler:
            self.scaler.unscale_(self.model.parameters())
        norm = optim.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        total = functools.reduce(operator.add, losses)  # no stack: of many arrays CuPy sends the addresses over from the host
        return total * (1 / len(losses)), norm

    def look_around(self, progress: Progress) -> None:
        """Between two steps: evaluate, show a sample, keep what has been learnt, each where it is due."""
        config = self.config

        def is_due(interval: int) -> bool:
            return interval > 0 and self.step % interval == 0

        evaluated = self._evaluated != self.step and (is_due(config.eval_interval) or self.step == config.steps)
        if evaluated:
            self.report(self.evaluate(progress), progress)
        if self.show and self.step and is_due(config.sample_interval) and (sample := self.show()):
            progress.write(f"step {self.step:>5}: the model writes\n{sample}\n")
        if self.keep and (evaluated or is_due(config.checkpoint_interval)):
            self.keep()
        if evaluated:
            self.speed.restart()  # it is that of training alone

    def evaluate(self, progress: Progress | None = None) -> Evaluation:
        """How well the model does on each half of the text, without dropout.

        The batches are drawn by a generator that starts afresh, so two evaluations differ by what the model has learnt alone.
        """
        self.model.eval()
        means = []
        for name in self.tokens:
            batches = list(self._evaluation_batches(name))
            with progress.evaluation(name, len(batches)) if progress else contextlib.nullcontext(lambda: None) as after_a_batch:
                means.append(self._mean_loss(batches, after_a_batch))
        self.model.train()
        return Evaluation(*means)

    def _mean_loss(self, batches: Sequence[Batch], after_a_batch: Callable[[], None]) -> float:
        """The mean over all tokens that are asked for in ``batches``, whichever batch they are in."""

        @tl.no_grad()
        def sum_and_count(batch: Batch) -> tuple[float, int]:
            self.stop.check()  # before the work: whoever asks to stop shall not wait for all batches
            _, loss = self.model(*self.to_device(batch))
            asked = int((batch[1] != IGNORE).sum())
            total = asked * loss.item()
            after_a_batch()
            return total, asked

        totals, counts = zip(*self.workers.map(sum_and_count, batches), strict=True)
        return math.fsum(totals) / sum(counts)

    def report(self, evaluation: Evaluation, progress: Progress) -> None:
        """Print and log an evaluation."""
        self.last, self._evaluated = evaluation, self.step
        self.best.see(evaluation.val_loss, self.step)
        progress.write(f"step {self.step:>5}: train loss {evaluation.train_loss:.4f}, validation loss {evaluation.val_loss:.4f}")
        if self.folder:
            self.folder.log(step=self.step, **dataclasses.asdict(evaluation))

    def log(self, loss: float, progress: Progress) -> None:
        """Show and keep the loss of the last batch, the length of its gradient, and the speed since the last look (see `Speed`)."""
        if not math.isfinite(loss):  # on a GPU, where nobody looked before
            self._diverged(loss, [])
        if self.scaler and self.scaler.state_dict()["scale"] < 1:
            fail(
                f"the gradient overflows float16 again and again, and no step has been made for a while, at step {self.step}: "
                "try --precision bfloat16, or a smaller learning rate."
            )
        reached = self.speed.look()
        of_peak = f", {reached.share_of_peak:.0%} of peak" if reached.share_of_peak is not None else ""
        gpu = self.gpu_memory()
        held = f", {gpu['gpu_memory'] / 2**30:.1f} of {gpu['gpu_memory_limit'] / 2**30:.1f} GiB" if gpu else ""
        progress.say(f"loss {loss:.3f}, {reached.tokens_per_second:,.0f} tokens/s{of_peak}{held}")
        if self.folder:
            self.folder.log(
                step=self.step,
                loss=loss,
                learning_rate=self.learning_rate,
                **self._gradient_norms(),
                **reached.rounded(),
                peak_memory=peak_memory(),
                **gpu,
            )

    def _gradient_norms(self) -> dict[str, Any]:
        """For the log: how long the gradient was, and of that each layer's part. In float16 its scale; no length if it overflowed."""
        length = self.gradient_norm.item()
        scale = {"loss_scale": self.scaler.state_dict()["scale"]} if self.scaler else {}
        if self.scaler and not math.isfinite(length):
            return scale
        return {"gradient_norm": length, "gradient_norms": norms_by_layer(self.model, length), **scale}

    def gpu_memory(self) -> dict[str, int]:
        """On a GPU: the bytes of its memory that training has taken, the graph's included, and how many it may take."""
        if self.config.backend == "numpy":
            return {}
        pool, graph = Device(self.config.backend).memory(), self.captured.memory if self.captured else 0
        allowed = self.config.memory_limit
        return {"gpu_memory": pool.reserved + graph, "gpu_memory_limit": pool.limit if allowed is None else int(allowed * 2**30)}

    @property
    def tokens_per_step(self) -> int:
        """How many predictions one step learns from."""
        return self.config.accumulation * self.config.batch_size * self.model.config.block_size

    def state_dict(self) -> dict[str, Any]:
        """Where the run stands, fit for JSON; weights and optimizer are for the caller to keep."""
        return {
            "step": self.step,
            "evaluated": self._evaluated,
            "last": dataclasses.asdict(self.last) if self.last else None,
            "best": dataclasses.asdict(self.best) if self.last else None,
            "batches": self.batches.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "logged": self.folder.logged if self.folder else 0,
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
        if self.scaler and state.get("scaler"):  # a run may have begun in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.last = Evaluation(**state["last"]) if state["last"] else None
        self.best = Best(**state["best"]) if state["best"] else Best()
        self._evaluated, self.step = state["evaluated"], state["step"]

    def _diverged(self, loss: float, batches: list[Batch]) -> NoReturn:
        """Look where the first number that is not finite came from, and end the run.

        Raises:
            UserError: always. The weights are those of before the step, unless ``batches`` is empty.
        """
        length = float(self.gradient_norm.array)
        what = f"the gradient became {length} long" if math.isfinite(loss) else f"the loss became {loss}"
        finding = first_not_finite(self.model, self._shares_of(batches))
        fail(f"{what} at step {self.step}: {finding}. Try a smaller learning rate, more warmup steps, or gradient clipping.")

    def _shares_of(self, batches: list[Batch]) -> Iterator[tuple[tuple[Tensor, ...], np.random.Generator]]:
        """What each shard computes in this step: its rows, and its random numbers."""
        for number, batch in enumerate(batches):
            tensors = self.to_device(batch)
            for shard, rows in enumerate(self.shards.split_rows(len(batch[0]))):
                yield tuple(tensor[rows] for tensor in tensors), self._dropout_stream(number, shard)

    def _dropout_stream(self, number: int, shard: int) -> np.random.Generator:
        """The random numbers of one shard of the step's number-th batch; whoever computes it, whenever, draws the same."""
        return make_generator(self.config.seed, DROPOUT, self.step * self.config.accumulation + number, shard)

    def dropout_keys(self) -> Array:
        """On a GPU the key of each shard of each of the step's batches, (accumulation, shards, 2); on the CPU none are needed."""
        count = self.config.accumulation
        if self.config.backend == "numpy":
            return np.empty((count, 0, 2), np.uint32)
        keys = [[draw_dropout_key(self._dropout_stream(number, shard)) for shard in range(self.shard_count)] for number in range(count)]
        return Device(self.config.backend).asarray(np.array(keys))

    def to_device(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        """The two arrays of a batch as tensors where the model is."""
        if self.config.backend != "numpy":
            self._check_ids(batch)  # on a GPU an id out of range raises nothing: it reads another row
        x, y = (tl.tensor(array, device=self.config.backend) for array in batch)
        return x, y

    def _check_ids(self, batch: tuple[np.ndarray, np.ndarray]) -> None:
        known = self.model.config.vocab_size
        largest, smallest = max(array.max() for array in batch), min(array[array != IGNORE].min(initial=0) for array in batch)
        if largest >= known or smallest < 0:
            wrong = largest if largest >= known else smallest
            raise ValueError(f"token id {wrong} is out of range: the model knows {known} tokens, 0 to {known - 1}.")

    def _evaluation_batches(self, name: str) -> Iterator[Batch]:
        """What an evaluation reads of one of the two texts."""
        batches = self._batches(name, EVALUATION)
        return (batches.next_batch() for _ in range(self.config.eval_iters))

    def _batches(self, name: str, stream: int) -> RandomBatches:
        """Random batches of one of the two texts, from the start of a stream."""
        generator = make_generator(self.config.seed, stream)
        return RandomBatches(self.tokens[name], self.config.batch_size, self.model.config.block_size, generator, name=name)


def make_optimizer(model: LanguageModel, config: TrainConfig) -> optim.AdamW:
    """AdamW that decays matrices, and spares biases and the weights of layer norms: these have nothing to shrink towards."""
    parameters = [p for p in model.parameters() if p.requires_grad]  # finetuning freezes some
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """What ``learning_rate`` is multiplied with in a step: up in a straight line in the warmup, then down to ``min_learning_rate``."""
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
