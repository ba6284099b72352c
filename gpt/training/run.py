"""A run: a trainer, and the folder where it can be found again. `gpt.training.pretraining` and `gpt.finetuning.run` are the two kinds.

`Run.resume` goes on with one as if it had never ended: the same weights, the same optimizer, the same batches, the same dropout, bit for
bit, on the same machine with the same number of shards. `Run.carry_out` is what the programs do with one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from data.console import error_text, ignore_write_errors
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.model_folder import CheckpointError, arithmetic, is_pickle, save_model, versions
from gpt.checkpoints.retention import FOLDER, Checkpoints
from gpt.checkpoints.training_state import TrainingState, files_of
from gpt.config import TrainConfig
from gpt.errors import EXIT_INTERRUPTED, fail
from gpt.generation.stream import stream_text
from gpt.model import CausalSelfAttention, LanguageModel
from gpt.training.memory import Estimate, advice, estimate
from gpt.training.metrics import require_tensorboard
from gpt.training.run_folder import RunFolder
from gpt.training.stopping import Stopped, TimeIsUp
from gpt.training.trainer import SAMPLE, Trainer, learning_rate_factor
from tensorlite.backend import Device
from tensorlite.precision import use_precision
from tensorlite.random import make_generator

# What may be another than before when a run goes on: how long, on what, and what is shown. All else decides what is computed.
MAY_CHANGE = frozenset({
    "data", "out", "backend", "workers", "steps", "eval_interval", "patience", "log_interval", "sample_interval", "sample_length",
    "checkpoint_interval", "keep_last", "tensorboard", "time_limit", "attention_recompute", "precision",
    "cuda_graph", "memory_limit",
})  # fmt: skip
AMPERE = (8, 0)  # the compute capability from which on there are tensor cores for all precisions


class Run:
    """See the module's docstring. Until `keep_in` nothing is written, and `save` must not be called.

    Attributes:
        trainer: does the work.
        model: what is left for use when it is done; the trainer's, or one within it.
        tokenizer: reads and writes for it.
        program: of which it is a run.
        block_size_is_free: whether the user may choose another.
        may_change: settings that `resume` takes.
        facts: what checkpoints shall remember besides trainer and settings, fit for JSON.
    """

    program: ClassVar[str]
    block_size_is_free: ClassVar[bool] = True
    may_change: ClassVar[Collection[str]] = MAY_CHANGE

    def __init__(self, trainer: Trainer, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.trainer, self.model, self.tokenizer = trainer, model, tokenizer
        self.facts: dict[str, Any] = {}

    # --- what each kind has of its own ---

    @classmethod
    def made_again(cls, state: TrainingState, changes: Mapping[str, Any], path: Path) -> Self:
        """The run that ``state`` is of, as it was at its beginning.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can mend.
        """
        raise NotImplementedError

    def describe(self, expected: Estimate) -> str:
        """What is about to happen."""
        raise NotImplementedError

    def begin(self) -> None:
        """Before the first step of all."""

    def finish(self, seconds: float) -> None:
        """After the last step, of which all is saved: tell how it went."""
        raise NotImplementedError

    def sample(self) -> str:
        """What the model writes by now."""
        raise NotImplementedError

    def write_model(self, folder: Path) -> None:
        """Write what it takes to use the model.

        Raises:
            CheckpointError: if the folder cannot be written to.
        """
        trainer = self.trainer
        facts = asdict(trainer.last) if trainer.last else {}
        save_model(folder, self.model, self.tokenizer, trainer.config, step=trainer.step, **facts, **self.facts)

    # --- what both do alike ---

    @classmethod
    def resume(cls, path: Path, changes: Mapping[str, Any]) -> Self:
        """The run in ``path``, as it was when its newest whole checkpoint was made.

        Args:
            changes: settings that the user has given now.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can mend, such as a setting that is not in `may_change`.
        """
        _require_run(path)
        folder = RunFolder.reopen(path)
        try:
            checkpoints = Checkpoints(folder.path)
            checkpoints.clean_up()
            state = checkpoints.newest_whole()
            if state.program != cls.program:
                fail(f"{path} is a run of another program: python -m {state.program} --resume {path}")
            cls._refuse_changes(state.settings, changes)
            run = cls.made_again(state, {name: value for name, value in changes.items() if name in cls.may_change}, folder.path)
            _refuse_fewer_steps(run.trainer.config.steps, state.step)
            state.put_into(run.trainer, run.tokenizer)
            folder.forget_after(state.record["trainer"]["logged"])
            checkpoints.keep_last = run.trainer.config.keep_last
            run.keep_in(folder, checkpoints)
        except BaseException:
            folder.lock.release()
            raise
        _warn_of_other_versions(state.record["versions"])
        _note_another_rate(run.trainer, state.config)
        return run

    def keep_in(self, folder: RunFolder, checkpoints: Checkpoints | None = None) -> Self:
        """From now on what is learnt is kept in ``folder``.

        Raises:
            UserError: if it cannot be written to.
        """
        config = self.trainer.config
        self.folder = self.trainer.folder = folder
        self.checkpoints = checkpoints or Checkpoints(folder.path, config.keep_last)
        self.trainer.keep, self.trainer.show = self._save_or_warn, self.sample
        if config.tensorboard:
            folder.open_tensorboard()
        return self

    def carry_out(self) -> int:
        """From the first checkpoint to the last word; returns the exit code.

        Raises:
            UserError: for what the user can mend, too little memory among it.
        """
        expected = None
        with ignore_write_errors("stdout", self._nobody_listens):
            try:
                if not self.trainer.step:
                    self.begin()
                self.save()  # a disk without room shows now, not when all the work is done
                expected = estimate(self.trainer)
                print(self.describe(expected))
                start = time.perf_counter()
                if stopped := self._train_and_save():
                    return self._stopped(stopped)
                self.finish(time.perf_counter() - start)
                return 0
            except MemoryError as error:
                fail(advice(error, self.trainer, expected, self.block_size_is_free) + self._last_checkpoint())
            except CheckpointError as error:
                fail(f"{error}{self._last_checkpoint()}")
            except KeyboardInterrupt:
                print(f"\nEnded in step {self.trainer.step + 1}.{self._last_checkpoint()}", file=sys.stderr)
                raise
            finally:
                self.close()

    def _train_and_save(self) -> Stopped | None:
        """All steps that are left, and a checkpoint of the last; returns why it was stopped early, if it was.

        A signal that asks to stop is heard until all is saved: those who end programs may send it more than once.
        """
        stopped = None
        with self.trainer.stop:
            try:
                self.trainer.train()
            except Stopped as request:
                stopped = request
            self.save()
        return stopped

    def save(self) -> None:
        """Write a checkpoint to go on from, unless there is one of this step, and the weights to use.

        Raises:
            CheckpointError: if that cannot be done. What was there before is there still. Where there is room for the weights alone, which
                take a third, they are written, and the message says so.
        """
        trainer = self.trainer
        try:
            if self.checkpoints.saved != trainer.step:
                best = trainer.best.step if trainer.last else None
                self.checkpoints.save(trainer.step, files_of(trainer, self.tokenizer, self.program, self.facts), best)
        except CheckpointError as error:
            self.write_model(self.folder.path)
            raise CheckpointError(f"{error} The weights of step {trainer.step} alone are saved in {self.folder.path}.") from error
        self.write_model(self.folder.path)

    def write_text(self, prompt: str = "", **options: Any) -> str:
        """What the model writes by now after ``prompt``. The luck is that of the step, and training does not notice."""
        config, was_training = self.trainer.config, self.model.training
        generator = make_generator(config.seed, SAMPLE, self.trainer.step)
        self.model.eval()
        text = "".join(self._stream(prompt, generator, options))
        self.model.train(was_training)
        return text

    def print_text(self, prompt: str = "", **options: Any) -> None:
        """Write after ``prompt``, visibly, with the luck of the run."""
        print(prompt, end="", flush=True)
        for piece in self._stream(prompt, make_generator(self.trainer.config.seed, SAMPLE), options):
            print(piece, end="", flush=True)
        print()

    def _stream(self, prompt: str, generator: np.random.Generator, options: Mapping[str, Any]) -> Iterator[str]:
        """A sample to look at. Half of a full context is kept, for to read all of it again for each token can take longer than to train."""
        keep, length = max(1, self.model.config.block_size // 2), self.trainer.config.sample_length
        return stream_text(self.model, self.tokenizer, prompt, length, generator=generator, context_keep=keep, **options)

    @property
    def best_path(self) -> Path:
        """Where the weights with the lowest validation loss are."""
        return self.checkpoints.path(self.trainer.best.step)

    def close(self) -> None:
        """Let others have the folder."""
        if self.trainer.folder:
            self.trainer.folder.close()

    @classmethod
    def _refuse_changes(cls, settings: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
        for name, value in changes.items():
            if name not in cls.may_change and value != settings[name]:
                option = name.replace("_", "-")
                fail(f"--{option} is {settings[name]} in this run, and cannot become {value} on the way: leave it out, or start a new run.")

    def _nobody_listens(self, error: Exception) -> None:
        print(
            f"\nwarning: standard output cannot be written ({error_text(error)}). What follows is in {self.folder.path}.", file=sys.stderr
        )

    def _save_or_warn(self) -> None:
        """In the middle of a run, a checkpoint that cannot be saved is worth a warning: there may be room again at the end."""
        try:
            self.save()
        except CheckpointError as error:
            print(f"\nwarning: {error} Training goes on.", file=sys.stderr)

    def _stopped(self, stopped: Stopped) -> int:
        """Say so; returns the exit code."""
        why = "The time is up: stopped" if isinstance(stopped, TimeIsUp) else "Stopped"
        print(
            f"\n{why} after step {self.trainer.step} of {self.trainer.config.steps}. The weights are saved in {self.folder.path}. "
            f"To go on: python -m {self.program} --resume {self.folder.path}"
        )
        return 0 if isinstance(stopped, TimeIsUp) else EXIT_INTERRUPTED

    def _last_checkpoint(self) -> str:
        """What is there to go on from."""
        saved = self.checkpoints.saved
        return f" The checkpoint of step {saved} is whole: --resume {self.folder.path}." if saved is not None else ""


def folder_to_resume(resumed: str, given: Mapping[str, Any]) -> Path:
    """What ``--resume [DIR]`` and ``--out`` mean together.

    Raises:
        UserError: if neither names a folder, or each another.
    """
    if not resumed and not given.get("out"):
        fail("which run is to go on? Name its folder: --resume runs/<name>.")
    folders = [expand_path(name) for name in (resumed, given.get("out")) if name]
    if folders[0].resolve() != folders[-1].resolve():
        fail(f"a run goes on in its own folder, {folders[0]}: leave out --out {folders[1]}, or copy the folder and resume the copy.")
    return folders[0]


def require_working(config: TrainConfig) -> None:
    """Raises UserError for an unknown backend or a missing extra, DeviceUnavailableError for a backend that does not work here."""
    try:
        device = Device(config.backend)
    except ValueError as error:
        fail(str(error))
    if not config.backend.startswith(device.name):
        fail(f"{config.backend!r} is torch's name for a backend. Use {device.name!r}.")
    device.asarray(0)  # the first array asks the driver
    if device.name != "numpy":
        _require_precision(device, config.precision)
        device.use()
        if config.memory_limit is not None:
            device.limit_memory(int(config.memory_limit * 2**30))
    if config.tensorboard:
        require_tensorboard()


def _require_precision(device: Device, precision: str) -> None:
    """Raises UserError for a precision that the GPU, or this installation, does not have."""
    has = device.compute_capability
    if precision != "float32" and has < AMPERE:
        needed, found = (".".join(map(str, version)) for version in (AMPERE, has))
        fail(f"--precision {precision} needs a GPU of compute capability {needed} or above (Ampere), this one has {found}.")
    try:
        with use_precision(precision):
            pass
    except ImportError as error:
        fail(str(error))


def recompute_attention(model: LanguageModel, recompute: bool) -> None:
    """Let attention make its weights anew in backward, or keep them."""
    for module in model.modules():
        if isinstance(module, CausalSelfAttention):
            module.recompute = recompute


def changed(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """``config`` with those of ``changes`` that it knows.

    Raises:
        UserError: for a value that cannot work.
    """
    try:
        return replace(config, **{name: value for name, value in changes.items() if name in TrainConfig.__dataclass_fields__})
    except ValueError as error:
        fail(str(error))


def _require_run(path: Path) -> None:
    """Raises CheckpointError for what is no run's folder, but something that people may take for one."""
    path = expand_path(path)
    if path.is_file():
        with open(path, "rb") as file:
            pickled = is_pickle(file.read(2))
        what = "is a pickle or a torch file, which can run code when it is opened and is therefore not read" if pickled else "is a file"
        raise CheckpointError(f"{path} {what}: give the folder of a run, runs/<name>.")
    if path.parent.name == FOLDER:
        raise CheckpointError(f"{path} is one checkpoint of a run: give the folder of the run, {path.parent.parent}.")


def _refuse_fewer_steps(wanted: int, made: int) -> None:
    if wanted < made:
        fail(f"--steps is {wanted:,}, but this run has made {made:,} steps already: leave it out, or ask for more.")


def _note_another_rate(trainer: Trainer, before: TrainConfig) -> None:
    """A schedule that ends at another step is another one at this step, too: say what that makes of the learning rate."""
    planned, now = before.learning_rate * learning_rate_factor(trainer.step, before), trainer.schedule.get_last_lr()[0]
    if now != planned:
        print(
            f"note: the learning rate now falls (schedule {before.schedule}) until step {trainer.config.steps:,} instead of "
            f"{before.steps:,}: it goes on at {now:.3g} instead of {planned:.3g}.",
            file=sys.stderr,
        )


def _warn_of_other_versions(then: Mapping[str, str]) -> None:
    now = versions() | arithmetic()
    others = [f"{name} {then[name]} (now {now[name]})" for name in now if name in then and then[name] != now[name]]
    if others:
        print(f"warning: the checkpoint was written with {', '.join(others)}: the last bits of what follows may differ.", file=sys.stderr)
