"""What it takes to go on with a run exactly: a trainer's state as files, the way back, and what is refused or reported.

A run is resumed in its own folder, with its own data and tokenizer. Only settings that do not change the numbers may be changed, and the
number of steps (`MAY_CHANGE`).
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.model_folder import arithmetic, load_weights, versions
from gpt.checkpoints.retention import FOLDER
from gpt.checkpoints.training_state import TrainingState, training_files
from gpt.checkpoints.weights import CheckpointError, is_pickle
from gpt.config import TrainConfig
from gpt.errors import fail
from gpt.training.fingerprint import is_same_data
from gpt.training.trainer import Trainer, learning_rate_factor

# What may differ when a run is resumed: how long it is, where it runs, and what is shown. Everything else decides what is computed.
MAY_CHANGE = frozenset({
    "data", "out", "backend", "workers", "team", "steps", "eval_interval", "patience", "log_interval", "sample_interval", "sample_length",
    "checkpoint_interval", "keep_last", "tensorboard", "time_limit", "attention_recompute", "precision",
    "cuda_graph", "memory_limit", "zero", "rank_limit",
})  # fmt: skip


def checkpoint_files(
    trainer: Trainer, optimizer: Mapping[str, Any], tokenizer: Tokenizer, program: str, extra: Mapping[str, Any], logged: int = 0
) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint of ``trainer``, one after the other.

    Args:
        optimizer: the state of its optimizer, whose steps are counted (`Stepper.finalize_step_count`).
        program: the program that resumes it.
        extra: further entries for training.json, fit for JSON.
        logged: how many lines of metrics there are.
    """
    yield from training_files(
        trainer.model,
        optimizer,
        tokenizer,
        replace(trainer.config, shards=trainer.stepper.shard_count),  # as many as there were, not as many as the next machine has cores
        trainer={**trainer.state_dict(), "logged": logged},
        data=trainer.fingerprint,
        program=program,
        **extra,
    )


def restore(trainer: Trainer, tokenizer: Tokenizer, state: TrainingState) -> None:
    """Let ``trainer`` go on from ``state``. It was made for the same model and the same settings.

    Raises:
        CheckpointError: if it learns from another text, or if something does not fit.
    """
    if tokenizer.hash != state.record.get("tokenizer_hash"):
        raise CheckpointError(
            f"{state.source} was trained with another tokenizer, with hash {state.record.get('tokenizer_hash')}: that of "
            f"{trainer.config.data} has {tokenizer.hash}; its text, or its tokenizer's file, has changed since."
        )
    if not is_same_data(state.record["data"], trainer.fingerprint):
        raise CheckpointError(
            f"{state.source} was trained on another text than {trainer.config.data} now holds; "
            "restore the text it had, or start a new run from its weights with python -m gpt.finetune."
        )
    load_weights(trainer.model, dict(state.weights), state.source)
    try:
        trainer.optimizer.load_state_dict(state.optimizer_state())
        trainer.load_state_dict(state.record["trainer"])
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{state.source} does not fit together ({error}).") from error


def folder_to_resume(resumed: str, given: Mapping[str, Any]) -> Path:
    """The folder that ``--resume [DIR]`` and ``--out`` mean together.

    Raises:
        UserError: if neither names a folder, or each names another.
    """
    if not resumed and not given.get("out"):
        fail("which run is to go on? Name its folder: --resume runs/<name>.")
    folders = [expand_path(name) for name in (resumed, given.get("out")) if name]
    if folders[0].resolve() != folders[-1].resolve():
        fail(f"a run goes on in its own folder, {folders[0]}: leave out --out {folders[1]}, or copy the folder and resume the copy.")
    return folders[0]


def change_config(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """``config`` with those of ``changes`` that are fields of it.

    Raises:
        UserError: for a value that cannot work.
    """
    try:
        return replace(config, **{name: value for name, value in changes.items() if name in TrainConfig.__dataclass_fields__})
    except ValueError as error:
        fail(str(error))


def require_run_folder(path: Path) -> None:
    """Raise CheckpointError for a file, or for one checkpoint within a run: people may take either for the run's folder."""
    path = expand_path(path)
    if path.is_file():
        with open(path, "rb") as file:
            pickled = is_pickle(file.read(2))
        what = "is a pickle or a torch file, which can run code when it is opened and is therefore not read" if pickled else "is a file"
        raise CheckpointError(f"{path} {what}: give the folder of a run, runs/<name>.")
    if path.parent.name == FOLDER:
        raise CheckpointError(f"{path} is one checkpoint of a run: give the folder of the run, {path.parent.parent}.")


def refuse_changes(settings: Mapping[str, Any], changes: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise UserError for a setting of the run that cannot be changed, unless its value is the same as before."""
    for name, value in changes.items():
        if name not in allowed and value != settings[name]:
            option = name.replace("_", "-")
            fail(f"--{option} is {settings[name]} in this run, and cannot be changed to {value}: leave it out, or start a new run.")


def refuse_fewer_steps(wanted: int, made: int) -> None:
    """Raise UserError if the run has made more steps already than are ``wanted``."""
    if wanted < made:
        fail(f"--steps is {wanted:,}, but this run has made {made:,} steps already: leave it out, or ask for more.")


def note_other_learning_rate(trainer: Trainer, before: TrainConfig) -> None:
    """Say on standard error how the learning rate of this step has changed with the number of steps: the schedule now ends elsewhere."""
    planned, now = before.learning_rate * learning_rate_factor(trainer.step, before), trainer.schedule.get_last_lr()[0]
    if now != planned:
        print(
            f"note: the learning rate now falls (schedule {before.schedule}) until step {trainer.config.steps:,} instead of "
            f"{before.steps:,}: it goes on at {now:.3g} instead of {planned:.3g}.",
            file=sys.stderr,
        )


def warn_of_other_versions(then: Mapping[str, str]) -> None:
    """Say on standard error which versions differ from those that the checkpoint was written with."""
    now = versions() | arithmetic()
    others = [f"{name} {then[name]} (now {now[name]})" for name in now if name in then and then[name] != now[name]]
    if others:
        print(f"warning: the checkpoint was written with {', '.join(others)}: the last bits of what follows may differ.", file=sys.stderr)
