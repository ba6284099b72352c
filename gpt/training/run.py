"""A run: a trainer, and the folder in which it is kept. `gpt.training.pretraining` and `gpt.finetuning.run` are the two kinds.

`Run.resume` goes on with a run as if it had never stopped: the same weights, the same optimizer, the same batches, the same dropout, bit
for bit, on the same machine with the same number of shards. `Run.run` is what the programs call.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from data.console import error_text, ignore_write_errors
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.model_folder import save_model
from gpt.checkpoints.retention import Checkpoints
from gpt.checkpoints.training_state import TrainingState
from gpt.checkpoints.weights import CheckpointError
from gpt.config import RandomStream, TrainConfig
from gpt.errors import EXIT_INTERRUPTED, fail
from gpt.generation.stream import stream_text
from gpt.llama import GroupedSelfAttention
from gpt.model import CausalSelfAttention, LanguageModel
from gpt.training.memory import MemoryEstimate, advise, estimate_memory
from gpt.training.metrics import require_tensorboard
from gpt.training.ranks import require_same_run
from gpt.training.resume import (
    MAY_CHANGE,
    checkpoint_files,
    note_other_learning_rate,
    refuse_changes,
    refuse_fewer_steps,
    require_run_folder,
    restore,
    warn_of_other_versions,
)
from gpt.training.run_folder import RunFolder
from gpt.training.stopping import Stopped, TimeIsUp
from gpt.training.team import choose_device, join_ranks
from gpt.training.trainer import RunRecord, Trainer
from tensorlite.backend import Device
from tensorlite.parallel import TeamError
from tensorlite.precision import use_precision
from tensorlite.random import make_generator

AMPERE = (8, 0)  # the lowest compute capability with tensor cores for all precisions


class Run(RunRecord):
    """See the module's docstring. Before `use_folder`, nothing is written, and `save` must not be called.

    Attributes:
        trainer: makes the steps.
        model: the model to use when training is over; the trainer's, or one within it.
        tokenizer: its tokenizer.
        program: the program whose run it is.
        block_size_is_free: whether the user may choose another block_size.
        may_change: the settings that `resume` may change.
        extra: what checkpoints hold besides the trainer's state and the settings, fit for JSON.
    """

    program: ClassVar[str]
    block_size_is_free: ClassVar[bool] = True
    may_change: ClassVar[Collection[str]] = MAY_CHANGE

    def __init__(self, trainer: Trainer, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.trainer, self.model, self.tokenizer = trainer, model, tokenizer
        self.extra: dict[str, Any] = {}

    # --- what each kind has of its own ---

    @classmethod
    def from_checkpoint(cls, state: TrainingState, changes: Mapping[str, Any], path: Path) -> Self:
        """The run that ``state`` belongs to, as it was at its beginning; `resume` then restores the state.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can correct.
        """
        raise NotImplementedError

    def describe(self, expected: MemoryEstimate) -> str:
        """What is about to happen."""
        raise NotImplementedError

    def begin(self) -> None:
        """Called on all ranks before the first step of a new run."""

    def end(self) -> None:
        """Called on all ranks when the last step is saved."""

    def finish(self, seconds: float) -> None:
        """Called after `end` on the first rank: report the result."""
        raise NotImplementedError

    def sample(self) -> str:
        raise NotImplementedError

    def write_model(self, folder: Path) -> None:
        """Write all that is needed to use the model.

        Raises:
            CheckpointError: if the folder cannot be written to.
        """
        trainer = self.trainer
        losses = asdict(trainer.last) if trainer.last else {}
        save_model(folder, self.model, self.tokenizer, trainer.config, step=trainer.step, **losses, **self.extra)

    # --- what both kinds share ---

    @classmethod
    def resume(cls, path: Path, changes: Mapping[str, Any]) -> Self:
        """The run in ``path``, as it was when its newest complete checkpoint was written.

        Args:
            changes: settings that the user gives now.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can correct, such as a setting that is not in `may_change`.
        """
        world = join_ranks(TrainConfig())
        opened: list[tuple[RunFolder, Checkpoints]] = []  # by the first rank alone

        def load() -> TrainingState:
            require_run_folder(path)
            folder = RunFolder.reopen(path)
            opened.append((folder, Checkpoints(folder.path)))
            opened[0][1].clean_up()
            return opened[0][1].load_latest()

        try:
            state = world.from_first(load)
            with world.together():
                if state.program != cls.program:
                    fail(f"{path} is a run of another program: python -m {state.program} --resume {path}")
                refuse_changes(state.settings, changes, cls.may_change)
                allowed = {name: value for name, value in changes.items() if name in cls.may_change}
                run = cls.from_checkpoint(state, allowed, expand_path(path))
                refuse_fewer_steps(run.trainer.config.steps, state.step)
                restore(run.trainer, run.tokenizer, state)
            require_same_run(run.trainer)
            with world.together():
                for folder, checkpoints in opened:
                    folder.truncate_metrics(state.record["trainer"]["logged"])
                    checkpoints.keep_last = run.trainer.config.keep_last
                    run.use_folder(folder, checkpoints)
        except BaseException:
            for folder, _ in opened:
                folder.lock.release()
            raise
        warn_of_other_versions(state.record["versions"])
        note_other_learning_rate(run.trainer, state.config)
        return run

    def make_folder(self, wanted: Path) -> Self:
        """`use_folder` with a new folder. Only the first rank has one.

        Raises:
            UserError: if it cannot be written to, or if another rank is about to make another run.
        """
        require_same_run(self.trainer)
        with self.trainer.world.together():
            if self.is_first:
                self.use_folder(RunFolder(wanted))
        return self

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that speaks and saves; the only one without MPI."""
        return self.trainer.world.rank == 0

    def use_folder(self, folder: RunFolder, checkpoints: Checkpoints | None = None) -> Self:
        """Keep metrics and checkpoints in ``folder`` from now on.

        Raises:
            UserError: if it cannot be written to.
        """
        config = self.trainer.config
        self.folder = folder
        self.checkpoints = checkpoints or Checkpoints(folder.path, config.keep_last)
        if config.tensorboard:
            folder.open_tensorboard()
        return self

    def run(self) -> int:
        """Train from the first checkpoint to the final report; return the exit code.

        Raises:
            UserError: for what the user can correct, too little memory for example.
        """
        if not self.is_first:
            return self._follow()
        expected = None
        with ignore_write_errors("stdout", self._warn_of_lost_output):
            try:
                if not self.trainer.step:
                    self.begin()
                self.save()  # a full disk is reported now, not when all the work is done
                expected = estimate_memory(self.trainer)
                print(self.describe(expected))
                start = time.perf_counter()
                if stopped := self._train_and_save():
                    return self._report_stop(stopped)
                seconds = time.perf_counter() - start
                self.end()
                self.finish(seconds)
                return 0
            except MemoryError as error:
                fail(advise(error, self.trainer, expected, self.block_size_is_free) + self._last_checkpoint())
            except CheckpointError as error:
                fail(f"{error}{self._last_checkpoint()}")
            except TeamError as error:
                fail(f"{error}{self._last_checkpoint()}")
            except KeyboardInterrupt:
                print(f"\nEnded in step {self.trainer.step + 1}.{self._last_checkpoint()}", file=sys.stderr)
                raise
            finally:
                self.folder.close()

    def _follow(self) -> int:
        """`run` of every other rank: it computes, and takes part when the first one saves."""
        if not self.trainer.step:
            self.begin()
        self.save()
        try:
            stopped = self._train_and_save()
        except TeamError as error:
            fail(str(error))
        if stopped is None:
            self.end()
        return EXIT_INTERRUPTED if stopped and not isinstance(stopped, TimeIsUp) else 0

    def _train_and_save(self) -> Stopped | None:
        """Make all steps that are left, and save the last; return why training stopped early, if it did.

        A signal that asks to stop is caught until all is saved: programs that end others may send it more than once.
        """
        stopped = None
        with self.trainer.stop:
            try:
                self.trainer.train(record=self)
            except Stopped as request:
                stopped = request
            except TeamError:
                self.save()
                raise
            self.save()
        return stopped

    # --- what the trainer calls ---

    def log(self, **metrics: Any) -> None:
        if self.is_first:
            self.folder.log(**metrics)

    def save_checkpoint(self) -> None:
        """`save`. In the middle of a run a failure is only a warning: there may be room on the disk again at the end."""
        try:
            self.save()
        except CheckpointError as error:
            print(f"\nwarning: {error} Training goes on.", file=sys.stderr)

    def save(self) -> None:
        """Write a checkpoint to resume from, unless there is one of this step, and the weights to use.

        Raises:
            CheckpointError: if it cannot be written. What was there before is still there. Where there is room for the weights alone, which
                take a third, they are written, and the message says so.
        """
        trainer, optimizer = self.trainer, None
        trainer.stepper.wait()
        if trainer.world.from_first(lambda: self.checkpoints.last_saved != trainer.step):
            trainer.stepper.finalize_step_count()
            optimizer = trainer.optimizer.state_dict()  # all ranks take part
        with trainer.world.together():
            if self.is_first:
                self._write(optimizer)

    def _write(self, optimizer: Mapping[str, Any] | None) -> None:
        """Write the checkpoint, if there is a state of the optimizer, and the weights."""
        trainer = self.trainer
        try:
            if optimizer is not None:
                best = trainer.best.step if trainer.last else None
                files = checkpoint_files(trainer, optimizer, self.tokenizer, self.program, self.extra, self.folder.logged)
                self.checkpoints.save(trainer.step, files, best)
        except CheckpointError as error:
            self.write_model(self.folder.path)
            raise CheckpointError(f"{error} The weights of step {trainer.step} alone are saved in {self.folder.path}.") from error
        self.write_model(self.folder.path)

    # --- what it says ---

    def sample_text(self, prompt: str = "", **options: Any) -> str:
        """A continuation of ``prompt``. Sampling uses its own random stream, seeded by the step, so it does not change training."""
        config, was_training = self.trainer.config, self.model.training
        generator = make_generator(config.seed, RandomStream.SAMPLE, self.trainer.step)
        self.model.eval()
        text = "".join(self._stream(prompt, generator, options))
        self.model.train(was_training)
        return text

    def print_text(self, prompt: str = "", **options: Any) -> None:
        """Print ``prompt`` and a continuation, piece by piece, drawn with the seed of the run."""
        print(prompt, end="", flush=True)
        for piece in self._stream(prompt, make_generator(self.trainer.config.seed, RandomStream.SAMPLE), options):
            print(piece, end="", flush=True)
        print()

    def _stream(self, prompt: str, generator: np.random.Generator, options: Mapping[str, Any]) -> Iterator[str]:
        """A sample. Half of a full context is kept: to read all of it again for each token could take longer than training."""
        keep, length = max(1, self.model.config.block_size // 2), self.trainer.config.sample_length
        return stream_text(self.model, self.tokenizer, prompt, length, generator=generator, context_keep=keep, **options)

    @property
    def best_path(self) -> Path:
        """Where the weights with the lowest validation loss are."""
        return self.checkpoints.path(self.trainer.best.step)

    def _report_stop(self, stopped: Stopped) -> int:
        """Say that training stopped early, and how to go on; return the exit code."""
        why = "The time is up: stopped" if isinstance(stopped, TimeIsUp) else "Stopped"
        print(
            f"\n{why} after step {self.trainer.step} of {self.trainer.config.steps}. The weights are saved in {self.folder.path}. "
            f"To go on: python -m {self.program} --resume {self.folder.path}"
        )
        return 0 if isinstance(stopped, TimeIsUp) else EXIT_INTERRUPTED

    def _last_checkpoint(self) -> str:
        """A sentence about the checkpoint to resume from, if there is one."""
        step = self.checkpoints.last_saved
        return f" The checkpoint of step {step} is complete: --resume {self.folder.path}." if step is not None else ""

    def _warn_of_lost_output(self, error: Exception) -> None:
        print(
            f"\nwarning: standard output cannot be written ({error_text(error)}). What follows is in {self.folder.path}.", file=sys.stderr
        )


def require_backend(config: TrainConfig) -> None:
    """Check that backend, precision and extras work on this machine, and limit the memory of a GPU as ``config`` says.

    Raises:
        UserError: for an unknown backend, a precision that the GPU does not have, or a package that is missing.
        DeviceUnavailableError: for a backend that does not work here.
    """
    try:
        name = Device(config.backend).name
    except ValueError as error:
        fail(str(error))
    if not config.backend.startswith(name):
        fail(f"{config.backend!r} is torch's name for a backend. Use {name!r}.")
    device = choose_device(config)
    if name != "numpy":
        _require_precision(device, config.precision)
        if config.memory_limit is not None:
            device.limit_memory(int(config.memory_limit * 2**30))
    if config.tensorboard:
        require_tensorboard()


def _require_precision(device: Device, precision: str) -> None:
    """Raise UserError for a precision that the GPU, or this installation, does not have."""
    has = device.compute_capability
    if precision != "float32" and has < AMPERE:
        needed, found = (".".join(map(str, version)) for version in (AMPERE, has))
        fail(f"--precision {precision} needs a GPU of compute capability {needed} or above (Ampere), this one has {found}.")
    try:
        with use_precision(precision):
            pass
    except ImportError as error:
        fail(str(error))


def set_attention_recompute(model: LanguageModel, recompute: bool) -> None:
    """Let attention compute its weights again in backward, or keep them."""
    for module in model.modules():
        if isinstance(module, CausalSelfAttention | GroupedSelfAttention):
            module.recompute = recompute
