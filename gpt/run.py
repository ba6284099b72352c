"""A run: a trainer, what it learns from, and the folder where it can be found again.

`Run.new` begins one. `Run.resume` goes on with one as if it had never ended: the same weights, the same optimizer, the same batches,
the same dropout, bit for bit, on the same machine with the same number of shards.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from data.dataset import Dataset, open_dataset
from gpt.checkpoint import CheckpointError, is_pickle, save_model, versions
from gpt.checkpoints import FOLDER, Checkpoints
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import fail
from gpt.inference import stream_text
from gpt.model import CausalSelfAttention, build_model
from gpt.run_folder import RunFolder
from gpt.tensorboard import require_tensorboard
from gpt.trainer import SAMPLE, WEIGHTS, Trainer
from gpt.training_state import files_of
from tensorlite.backend import Device
from tensorlite.random import make_generator, use_generator

# What may be another than before when a run goes on: how long, on what, and what is shown. All else decides what is computed.
MAY_CHANGE = {
    "data", "out", "backend", "workers", "steps", "eval_interval", "patience", "log_interval", "sample_interval", "sample_length",
    "checkpoint_interval", "keep_last", "tensorboard", "time_limit", "attention_recompute",
}  # fmt: skip

SAMPLE_TEMPERATURE = 0.8  # a little below 1, where a small model keeps to words that it knows


class Run:
    """See the module's docstring. Without a folder (``keep=False`` in `new`) nothing is written, and `save` must not be called."""

    def __init__(self, trainer: Trainer, dataset: Dataset, folder: RunFolder | None = None) -> None:
        self.trainer, self.dataset = trainer, dataset
        trainer.show = self.sample
        if folder:
            self.folder = trainer.folder = folder
            if trainer.config.tensorboard:
                folder.open_tensorboard()
            self.checkpoints = Checkpoints(folder.path, trainer.config.keep_last)
            trainer.keep = self._save_or_warn

    @classmethod
    def new(cls, model_config: GPTConfig, config: TrainConfig, keep: bool = True) -> Self:
        """A run from the beginning, in a folder of its own.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can mend.
        """
        trainer, dataset = _make(model_config, config)
        return cls(trainer, dataset, RunFolder(Path(config.out or f"runs/{config.preset}")) if keep else None)

    @classmethod
    def resume(cls, path: Path, changes: Mapping[str, Any]) -> Self:
        """The run in ``path``, as it was when its newest whole checkpoint was made.

        Args:
            changes: settings that the user has given now.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can mend, such as a setting that is not in `MAY_CHANGE`.
        """
        _require_run(path)
        folder = RunFolder.reopen(path)
        try:
            checkpoints = Checkpoints(folder.path)
            checkpoints.clean_up()
            state = checkpoints.newest_whole()
            _refuse_changes({**asdict(state.model_config), **asdict(state.config)}, changes)
            config = _changed(state.config, {**changes, "out": str(path)})
            trainer, dataset = _make(state.model_config, config)
            state.put_into(trainer, dataset.tokenizer)
            folder.forget_after(state.record["trainer"]["logged"])
        except BaseException:
            folder.lock.release()
            raise
        _warn_of_other_versions(state.record["versions"])
        run = cls(trainer, dataset, folder)
        checkpoints.keep_last = config.keep_last
        run.checkpoints = checkpoints
        return run

    def save(self) -> None:
        """Write a checkpoint to go on from, unless there is one of this step, and the weights to write with.

        Raises:
            CheckpointError: if that cannot be done. What was there before is there still.
        """
        trainer, tokenizer = self.trainer, self.dataset.tokenizer
        if self.checkpoints.saved != trainer.step:
            best = trainer.best.step if trainer.last else None
            self.checkpoints.save(trainer.step, files_of(trainer, tokenizer), best)
        facts = asdict(trainer.last) if trainer.last else {}
        save_model(self.folder.path, trainer.model, tokenizer, trainer.config, step=trainer.step, **facts)

    def _save_or_warn(self) -> None:
        """In the middle of a run, a checkpoint that cannot be saved is worth a warning: there may be room again at the end."""
        try:
            self.save()
        except CheckpointError as error:
            print(f"\nwarning: {error} Training goes on.", file=sys.stderr)

    def sample(self) -> str:
        """What the model writes by now. The luck is that of the step, and training does not notice."""
        model, config = self.trainer.model, self.trainer.config
        generator = make_generator(config.seed, SAMPLE, self.trainer.step)
        was_training = model.training
        model.eval()
        pieces = stream_text(
            model, self.dataset.tokenizer, max_new_tokens=config.sample_length, generator=generator, temperature=SAMPLE_TEMPERATURE
        )
        text = "".join(pieces)
        model.train(was_training)
        return text

    def close(self) -> None:
        """Let others have the folder."""
        if self.trainer.folder:
            self.trainer.folder.close()


def _make(model_config: GPTConfig, config: TrainConfig) -> tuple[Trainer, Dataset]:
    """The trainer at its beginning, and its data."""
    _require_device(config.backend)
    if config.tensorboard:
        require_tensorboard()
    dataset = open_dataset(config.data, config.val_fraction, config.tokenizer, config.vocab_size)
    with use_generator(make_generator(config.seed, WEIGHTS)):
        model = build_model(replace(model_config, vocab_size=dataset.vocab_size)).to(device=config.backend)
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.recompute = config.attention_recompute
    return Trainer(model, config, dataset.train, dataset.val), dataset


def _require_device(backend: str) -> None:
    """Raises UserError for an unknown backend, DeviceUnavailableError for one that does not work here."""
    try:
        device = Device(backend)
    except ValueError as error:
        fail(str(error))
    device.asarray(0)  # the first array asks the driver


def _require_run(path: Path) -> None:
    """Raises CheckpointError for what is no run's folder, but something that people may take for one."""
    path = path.expanduser()
    if path.is_file():
        with open(path, "rb") as file:
            pickled = is_pickle(file.read(2))
        what = "is a pickle or a torch file, which can run code when it is opened and is therefore not read" if pickled else "is a file"
        raise CheckpointError(f"{path} {what}: give the folder of a run, runs/<name>.")
    if path.parent.name == FOLDER:
        raise CheckpointError(f"{path} is one checkpoint of a run: give the folder of the run, {path.parent.parent}.")


def _refuse_changes(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    for name, value in changes.items():
        if name not in MAY_CHANGE and value != settings[name]:
            option = name.replace("_", "-")
            fail(f"--{option} is {settings[name]} in this run, and cannot become {value} on the way: leave it out, or start a new run.")


def _changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    try:
        return replace(config, **{name: value for name, value in changes.items() if name in MAY_CHANGE})
    except ValueError as error:
        fail(str(error))


def _warn_of_other_versions(then: Mapping[str, str]) -> None:
    now = versions()
    others = [f"{name} {then.get(name)} (now {now[name]})" for name in now if then.get(name) != now[name]]
    if others:
        print(f"warning: the checkpoint was written with {', '.join(others)}: the last bits of what follows may differ.", file=sys.stderr)
