"""The loop: batch, forward, backward, clip, step; now and then a look at the loss. `Trainer.train` reads from top to bottom.

Between two looks nothing is read back from the device, so that a GPU is never made to wait for Python.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

import tensorlite as tl
from data.loader import RandomBatches, Tokens
from gpt.config import TrainConfig
from gpt.errors import fail
from gpt.model import LanguageModel
from gpt.run_folder import RunFolder
from gpt.stopping import StopRequest
from tensorlite import Tensor, optim
from tensorlite.optim import schedule
from tensorlite.parallel import BatchShards, Workers, available_cores
from tensorlite.random import make_generator

# The independent streams of random numbers of a run; `make_generator(seed, stream)` starts one.
WEIGHTS, BATCHES, DROPOUT, EVALUATION, SAMPLE = range(5)


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, in nats a token, over the same batches every time."""

    train_loss: float
    val_loss: float


class Trainer:
    """One model, what it learns from, and how.

    Args:
        model: is trained in place; it is on the device where training happens.
        train_tokens, val_tokens: (N,) ids, all below the model's vocab_size.
        folder: where the metrics go.
        keep: called after every evaluation, to save what has been learnt so far.

    Attributes:
        step: updates made so far.
        last: the latest evaluation.

    Raises:
        BatchError: if one of the two texts is shorter than a context.
    """

    def __init__(
        self,
        model: LanguageModel,
        config: TrainConfig,
        train_tokens: Tokens,
        val_tokens: Tokens,
        folder: RunFolder | None = None,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.config, self.folder, self.keep = model, config, folder, keep
        self.tokens = {"training text": train_tokens, "validation text": val_tokens}
        self.batches = self._batches("training text", BATCHES)
        self._batches("validation text", EVALUATION)  # too short a text is told now, not after the first steps
        self.optimizer = make_optimizer(model, config)
        self.schedule = optim.LambdaLR(self.optimizer, lambda step: learning_rate_factor(step, config))
        self.step = 0
        self.last: Evaluation | None = None
        self.workers = Workers(config.workers or (available_cores() if config.backend == "numpy" else 1))
        self.shards = BatchShards(model, self.optimizer.flats, config.shards or self.workers.count, self.workers)
        self.stop = StopRequest()
        self._lap = (0, time.perf_counter())

    def train(self) -> None:
        """Make every step that is left, with an evaluation before the first, after the last, and every eval_interval steps.

        Raises:
            Stopped: after Ctrl-C, between two steps.
            UserError: if the loss is no longer a number.
        """
        config = self.config
        patience = 0.1 if sys.stderr.isatty() else 10.0  # seconds between two drawings of the bar; a log file wants few
        with self.stop, self.workers, tqdm(total=config.steps, initial=self.step, unit="step", mininterval=patience) as bar:
            while self.step < config.steps:
                if self.step % config.eval_interval == 0:
                    self.report(self.evaluate(), bar)
                loss = self.update()
                bar.update()
                if self.step % config.log_interval == 0 or self.step == config.steps:
                    self.log(loss.item(), bar)  # the one place where Python waits for the device
                self.stop.check()
            self.report(self.evaluate(), bar)

    def update(self) -> Tensor:
        """One step: the loss of one batch, its gradient, and new weights. The workers share the batch (see `tensorlite.parallel`)."""
        batch = self.to_device(self.batches.next_batch())
        loss = self.shards.loss_and_gradients(batch, self._dropout_stream)
        if self.config.grad_clip:
            optim.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss

    def evaluate(self) -> Evaluation:
        """How well the model does on each half of the text, without dropout.

        The batches are drawn by a generator that starts afresh, so two evaluations differ by what the model has learnt alone.
        """

        @tl.no_grad()
        def loss_of(batch: tuple[np.ndarray, np.ndarray]) -> float:
            _, loss = self.model(*self.to_device(batch))
            self.stop.check()
            return loss.item()

        self.model.eval()
        means = []
        for name in self.tokens:
            batches = self._batches(name, EVALUATION)
            losses = self.workers.map(loss_of, (batches.next_batch() for _ in range(self.config.eval_iters)))
            means.append(math.fsum(losses) / len(losses))
        self.model.train()
        return Evaluation(*means)

    def report(self, evaluation: Evaluation, bar: tqdm) -> None:
        """Print and keep an evaluation."""
        self.last = evaluation
        bar.write(f"step {self.step:>5}: train loss {evaluation.train_loss:.4f}, validation loss {evaluation.val_loss:.4f}")
        if self.folder:
            self.folder.log(step=self.step, **dataclasses.asdict(evaluation))
        if self.keep:
            self.keep()
        self._lap = (self.step, time.perf_counter())

    def log(self, loss: float, bar: tqdm) -> None:
        """Show and keep the loss of the last batch, and the speed since the last look."""
        if not math.isfinite(loss):
            fail(f"the loss became {loss} at step {self.step}: start again with a smaller learning rate, or with gradient clipping.")
        (step, start), now = self._lap, time.perf_counter()
        tokens_per_second = (self.step - step) * self.config.batch_size * self.model.config.block_size / (now - start)
        self._lap = (self.step, now)
        bar.set_postfix_str(f"loss {loss:.3f}, {tokens_per_second:,.0f} tokens/s", refresh=False)
        if self.folder:
            rate = self.optimizer.param_groups[0]["lr"]
            self.folder.log(step=self.step, loss=loss, learning_rate=rate, tokens_per_second=round(tokens_per_second))

    def _dropout_stream(self, shard: int) -> np.random.Generator:
        """The random numbers of one shard in one step; whoever computes it, whenever, draws the same."""
        return make_generator(self.config.seed, DROPOUT, self.step, shard)

    def to_device(self, batch: tuple[np.ndarray, np.ndarray]) -> tuple[Tensor, Tensor]:
        """The two arrays of a batch as tensors where the model is."""
        x, y = (tl.tensor(array, device=self.config.backend) for array in batch)
        return x, y

    def _batches(self, name: str, stream: int) -> RandomBatches:
        """Random batches of one of the two texts, from the start of a stream."""
        generator = make_generator(self.config.seed, stream)
        return RandomBatches(self.tokens[name], self.config.batch_size, self.model.config.block_size, generator, name=name)


def make_optimizer(model: LanguageModel, config: TrainConfig) -> optim.AdamW:
    """AdamW that decays matrices, and spares biases and the weights of layer norms: these have nothing to shrink towards."""
    parameters = list(model.parameters())
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
