"""A run that begins with random weights: `python -m gpt.train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from data.dataset import open_dataset
from gpt.checkpoints.training_state import TrainingState
from gpt.config import GPTConfig, RandomStream, TrainConfig
from gpt.model import build_model
from gpt.training.evaluation import counted_bigram_loss
from gpt.training.memory import MemoryEstimate
from gpt.training.report import final_table, machine_rows, table
from gpt.training.resume import change_config
from gpt.training.run import Run, require_backend, set_attention_recompute
from gpt.training.team import join_ranks
from gpt.training.trainer import Trainer
from tensorlite.random import make_generator, use_generator

SAMPLE_TEMPERATURE = 0.8  # a little below 1, where a small model keeps to words that it knows


class Pretraining(Run):
    """See `Run`. The trainer's model is the one that is kept.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct.
    """

    program = "gpt.train"

    def __init__(self, model_config: GPTConfig, config: TrainConfig) -> None:
        require_backend(config)
        self.dataset = open_dataset(config.data, config.val_fraction, config.tokenizer, config.vocab_size)
        with use_generator(make_generator(config.seed, RandomStream.WEIGHTS)):
            model = build_model(replace(model_config, vocab_size=self.dataset.vocab_size)).to(device=config.backend)
        set_attention_recompute(model, config.attention_recompute)
        super().__init__(Trainer(model, config, self.dataset.train, self.dataset.val), model, self.dataset.tokenizer)

    @classmethod
    def new(cls, model_config: GPTConfig, config: TrainConfig) -> Self:
        """A new run, in a new folder.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can correct.
        """
        with join_ranks(config).together():
            run = cls(model_config, config)
        return run.make_folder(Path(config.out or f"runs/{config.preset}"))

    @classmethod
    def from_checkpoint(cls, state: TrainingState, changes: Mapping[str, Any], path: Path) -> Self:
        return cls(state.model_config, change_config(state.config, {**changes, "out": str(path)}))

    def describe(self, expected: MemoryEstimate) -> str:
        trainer, dataset, shape = self.trainer, self.dataset, self.model.config
        layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, block {shape.block_size}"
        config, workers = trainer.config, trainer.workers.count
        device = f"{workers} workers" if config.backend == "numpy" else config.backend
        batch = (f"{config.accumulation} x " if config.accumulation > 1 else "") + f"{config.batch_size} x {shape.block_size}"
        rows = {
            "corpus": dataset.summary,
            "first line": dataset.first_line[:100],
            "model": f"{'bigram table' if shape.model == 'bigram' else layers}: {self.model.num_parameters():,} parameters",
            "training": f"{config.steps:,} steps of {batch} tokens by {device}, seed {config.seed}",
        }
        rows_of_machine, warnings = machine_rows(self, expected, "--preset tiny takes minutes")
        return "\n".join([*table({**rows, **rows_of_machine}), *dataset.notes, *warnings]) + "\n"

    def sample(self) -> str:
        return "" if not self.is_first else self.sample_text(temperature=SAMPLE_TEMPERATURE)

    def finish(self, seconds: float) -> None:
        dataset, folder = self.dataset, self.folder
        print(final_table(self, seconds))
        if self.model.config.model == "bigram":
            counted = counted_bigram_loss(dataset.train, dataset.val, dataset.tokenizer.vocab_size)
            print(f"Counting pairs in the training text gives validation loss {counted:.4f}.")
        folder.plot()
        print(f"\nWeights, tokenizer and metrics are in {folder.path}: python -m gpt.generate --checkpoint {folder.path}\n")
        self.print_text(temperature=SAMPLE_TEMPERATURE)
