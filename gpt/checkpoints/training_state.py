"""All that a training run is at one moment, as files.

    model.safetensors       the weights, with config and tokenizer: `gpt.generate --checkpoint` takes this folder, too
    optimizer.safetensors   the optimizer's arrays for each parameter
    tokenizer.json          the tokenizer
    training.json           the settings, the step, the position in the data, the schedule, the evaluations, the versions

No stream of random numbers is kept but that of the batches: dropout's begins anew in every step, from the seed, the step and the shard.
The files hold numbers and text, no code: reading them can fail, and can do nothing else. `gpt.training.resume` makes the files of a
trainer, and gives a trainer the state that was read.
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
from gpt.checkpoints.model_folder import WEIGHTS, arithmetic, model_bytes, versions
from gpt.checkpoints.weights import CheckpointError, WeightsFile, require_enough_numbers
from gpt.config import GPTConfig, TrainConfig, require_type
from gpt.model import LanguageModel

OPTIMIZER = "optimizer.safetensors"
TOKENIZER = "tokenizer.json"
TRAINING = "training.json"


def training_files(
    model: LanguageModel, optimizer: Mapping[str, Any], tokenizer: Tokenizer, config: TrainConfig, **extra: Any
) -> Iterator[tuple[str, bytes]]:
    """The names and contents of the files, one after the other, so that one content at a time is in memory.

    Args:
        optimizer: the state_dict of the optimizer.
        extra: further entries for training.json.
    """
    arrays = {f"{number}.{name}": value for number, entry in optimizer["state"].items() for name, value in entry.items() if name != "step"}
    record = {
        "model": dataclasses.asdict(model.config),
        "training": dataclasses.asdict(config),
        "steps": {str(number): entry["step"] for number, entry in optimizer["state"].items()},
        "param_groups": optimizer["param_groups"],
        "tokenizer_hash": tokenizer.hash,
        "versions": versions() | arithmetic(),
        **extra,
    }
    yield WEIGHTS, model_bytes(model, tokenizer)
    yield OPTIMIZER, safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})
    yield TOKENIZER, json.dumps(tokenizer.to_dict()).encode()
    yield TRAINING, json.dumps(record, indent=2).encode()


@dataclasses.dataclass(frozen=True)
class TrainingState:
    """The content of these files, read and checked, but not yet given to a trainer.

    Attributes:
        source: where the files come from; for messages.
        record: the content of training.json.
        optimizer: the arrays of optimizer.safetensors, see `optimizer_state`.
    """

    source: str
    model_config: GPTConfig
    config: TrainConfig
    record: dict[str, Any]
    weights: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    tokenizer: Tokenizer

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], source: str) -> TrainingState:
        """Read the files of `training_files`.

        Raises:
            CheckpointError: if one is missing or is not what it should be.
        """
        missing = [name for name in (WEIGHTS, OPTIMIZER, TOKENIZER, TRAINING) if name not in files]
        if missing:
            raise CheckpointError(f"{source} is no checkpoint of a training run: it lacks {', '.join(missing)}.")
        try:
            record = json.loads(files[TRAINING])
            config, stored = GPTConfig(**record["model"]), WeightsFile(files[WEIGHTS])
            require_enough_numbers(config, stored.entries)  # a model of that size will be built
            weights, optimizer = stored.read_all(), WeightsFile(files[OPTIMIZER]).read_all()
            tokenizer = tokenizer_from_dict(json.loads(files[TOKENIZER]))
            for name in ("step", "logged"):
                require_type(int, name, record["trainer"][name])
            for name in ("trainer", "data", "versions"):
                require_type(dict, name, record[name])
            return cls(source, config, TrainConfig(**record["training"]), record, weights, optimizer, tokenizer)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
            raise CheckpointError(f"{source} is not a checkpoint that this version of tensorlite can read ({error}).") from error

    @property
    def step(self) -> int:
        """How many updates had been made."""
        return int(self.record["trainer"]["step"])

    @property
    def program(self) -> str:
        """The program that made the run."""
        return str(self.record.get("program", "gpt.train"))

    @property
    def settings(self) -> dict[str, Any]:
        """All that the user could choose, by name; what an older version did not know has its default."""
        return {**dataclasses.asdict(self.model_config), **dataclasses.asdict(self.config), **self.record.get("finetuning", {})}

    def optimizer_state(self) -> dict[str, Any]:
        """What ``load_state_dict`` of the optimizer takes.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: if the files do not fit together.
        """
        state: dict[str, dict[str, Any]] = {number: {"step": step} for number, step in self.record["steps"].items()}
        for name, array in self.optimizer.items():
            number, _, kind = name.partition(".")
            state[number][kind] = array
        known = {str(number) for group in self.record["param_groups"] for number in group["params"]}
        if not state.keys() <= known:
            raise ValueError(f"the optimizer's state is for parameters that it does not have: {', '.join(sorted(state.keys() - known))}")
        return {"state": state, "param_groups": self.record["param_groups"]}
