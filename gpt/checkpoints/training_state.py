"""All that a training run is at one moment, as files, and back.

    model.safetensors       the weights, with config and tokenizer: `gpt.generate --checkpoint` takes this folder, too
    optimizer.safetensors   what the optimizer keeps for each parameter
    tokenizer.json          the tokenizer
    training.json           the settings, the step, where the batches stand, the schedule, what was evaluated, the versions

There is no stream of random numbers to keep beside the one of the batches: dropout's begins anew in every step, from the seed, the
step and the shard. Numbers and text, no code: opening one of these can fail, and can do nothing else.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from data.tokenizer import Tokenizer, tokenizer_from_dict
from gpt.checkpoints.model_folder import WEIGHTS, CheckpointError, arithmetic, fill_model, model_bytes, versions
from gpt.checkpoints.weights import WeightsFile, require_room
from gpt.config import GPTConfig, TrainConfig, require_type
from gpt.training.fingerprint import agree
from gpt.training.trainer import Trainer

OPTIMIZER = "optimizer.safetensors"
TOKENIZER = "tokenizer.json"
TRAINING = "training.json"


def files_of(trainer: Trainer, tokenizer: Tokenizer, program: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint, one after the other.

    Args:
        program: that goes on with it.
        facts: what else it shall remember, fit for JSON.
    """
    trainer.settle()
    optimizer = trainer.optimizer.state_dict()
    arrays = {f"{number}.{name}": value for number, entry in optimizer["state"].items() for name, value in entry.items() if name != "step"}
    state = {
        "model": dataclasses.asdict(trainer.model.config),
        # as many shards as there were, not as many as the next machine has cores
        "training": dataclasses.asdict(dataclasses.replace(trainer.config, shards=trainer.shard_count)),
        "trainer": trainer.state_dict(),
        "steps": {str(number): entry["step"] for number, entry in optimizer["state"].items()},
        "param_groups": optimizer["param_groups"],
        "data": trainer.fingerprint,
        "tokenizer_hash": tokenizer.hash,
        "versions": versions() | arithmetic(),
        "program": program,
        **facts,
    }
    yield WEIGHTS, model_bytes(trainer.model, tokenizer)
    yield OPTIMIZER, safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    yield TOKENIZER, json.dumps(tokenizer.to_dict()).encode()
    yield TRAINING, json.dumps(state, indent=2).encode()


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """What `files_of` wrote, read and understood, but not yet put anywhere.

    Attributes:
        where: for messages.
        record: training.json.
    """

    where: str
    model_config: GPTConfig
    config: TrainConfig
    record: dict[str, Any]
    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    tokenizer: Tokenizer

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], where: str) -> TrainingState:
        """Read the files of `files_of`.

        Raises:
            CheckpointError: if one is missing or is not what it should be.
        """
        missing = [name for name in (WEIGHTS, OPTIMIZER, TOKENIZER, TRAINING) if name not in files]
        if missing:
            raise CheckpointError(f"{where} is no checkpoint of a training run: it lacks {', '.join(missing)}.")
        try:
            record = json.loads(files[TRAINING])
            config, stored = GPTConfig(**record["model"]), WeightsFile(files[WEIGHTS])
            require_room(config, stored.entries)  # a model of that size will be made
            weights, optimizer = stored.read_all(), WeightsFile(files[OPTIMIZER]).read_all()
            tokenizer = tokenizer_from_dict(json.loads(files[TOKENIZER]))
            for name in ("step", "logged"):
                require_type(int, name, record["trainer"][name])
            for name in ("trainer", "data", "versions"):
                require_type(dict, name, record[name])
            return cls(where, config, TrainConfig(**record["training"]), record, weights, optimizer, tokenizer)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{where} is not a checkpoint that this version of tensorlite can read ({error}).") from error

    @property
    def step(self) -> int:
        """How many updates had been made."""
        return int(self.record["trainer"]["step"])

    @property
    def program(self) -> str:
        """That made the run."""
        return str(self.record.get("program", "gpt.train"))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the user could choose, by name."""
        return {**self.record["model"], **self.record["training"], **self.record.get("finetuning", {})}

    def put_into(self, trainer: Trainer, tokenizer: Tokenizer) -> None:
        """Let ``trainer`` go on from here. It was made for the same model and the same settings.

        Raises:
            CheckpointError: if it learns from another text, or if something does not fit.
        """
        if tokenizer.hash != self.record.get("tokenizer_hash"):
            raise CheckpointError(
                f"{self.where} was trained with another tokenizer, with hash {self.record.get('tokenizer_hash')}: that of "
                f"{trainer.config.data} has {tokenizer.hash}; its text, or its tokenizer's file, has changed since."
            )
        if not agree(self.record["data"], trainer.fingerprint):
            raise CheckpointError(
                f"{self.where} was trained on another text than {trainer.config.data} now holds; "
                "restore the text it had, or start a new run from its weights with python -m gpt.finetune."
            )
        fill_model(trainer.model, dict(self.weights), self.where)
        try:
            trainer.optimizer.load_state_dict({"state": self._optimizer_state(), "param_groups": self.record["param_groups"]})
            trainer.load_state_dict(self.record["trainer"])
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{self.where} does not fit together ({error}).") from error

    def _optimizer_state(self) -> dict[str, dict[str, Any]]:
        state: dict[str, dict[str, Any]] = {number: {"step": step} for number, step in self.record["steps"].items()}
        for name, array in self.optimizer.items():
            number, _, kind = name.partition(".")
            state[number][kind] = array
        known = {str(number) for group in self.record["param_groups"] for number in group["params"]}
        if not state.keys() <= known:
            raise ValueError(f"the optimizer's state is for parameters that it does not have: {', '.join(sorted(state.keys() - known))}")
        return state
