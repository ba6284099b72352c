"""A run that begins with what another model has learnt: `python -m gpt.finetune`.

    runs/finetuned/
        model.safetensors …     the newest weights, of a model with LoRA those that the corrections are merged into
        adapter.*               the corrections alone
        best/                   the same, at the lowest validation loss
        checkpoints/            to go on from

The loop is `gpt.training.trainer`'s, and what the model is to learn is a task's (`gpt.finetuning.tasks`). What is here is around them:
which weights may change, and what was gained and forgotten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from data.errors import DataError
from data.files import explain
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.loading import open_model
from gpt.checkpoints.model_folder import CONFIG, CheckpointError
from gpt.checkpoints.training_state import TRAINING, TrainingState
from gpt.config import TrainConfig, from_preset, require_type
from gpt.errors import fail
from gpt.finetuning.config import DEFAULTS, FinetuneConfig
from gpt.finetuning.freezing import freeze_blocks, train_only, trainable
from gpt.finetuning.lora import add_lora, merged, save_adapter
from gpt.finetuning.tasks import ClassifyTask, InstructTask, Task, TextTask, guess_task, read_tokens, text_loss, with_unknown
from gpt.generation.chat_template import load_template
from gpt.model import LanguageModel, build_model
from gpt.training.memory import Estimate
from gpt.training.report import final_table, machine_rows, table
from gpt.training.run import MAY_CHANGE, Run, changed, recompute_attention, require_working
from gpt.training.run_folder import RunFolder
from gpt.training.trainer import WEIGHTS
from tensorlite.random import make_generator, use_generator

BEST = "best"


class Finetuning(Run):
    """See `Run`. Everything that can be wrong with the settings or the data is wrong before a folder is made.

    Args:
        model, tokenizer: who is taught. The model becomes part of this run.
        options, config: what is taught and how.
        template: the file or folder with the marks of a conversation, if it has any.
        pretraining: what the model learnt first, see `known_of`.

    Attributes:
        task: what it learns; its model wraps the language model where the task needs that.
        losses: on the new and on the old validation text: {"new": {"before": …, "after": …}, "old": …}.
    """

    program = "gpt.finetune"
    block_size_is_free = False
    may_change = MAY_CHANGE | {"old_data"}

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        options: FinetuneConfig,
        config: TrainConfig,
        template: str | Path,
        pretraining: Mapping[str, Any],
    ) -> None:
        self.options, self.pretraining = options, pretraining
        recompute_attention(model, config.attention_recompute)
        with use_generator(make_generator(config.seed, WEIGHTS)):  # the new weights of LoRA, or of a classifier
            _free(model, options)
            self.task = _task(model, tokenizer, options, config, template)
        self.trained = trainable(self.task.model)
        self.old_text, self.why_not = _old_text(options, pretraining, tokenizer)
        super().__init__(self.task.trainer(self.task.model, config, self.task.train, self.task.val), model, tokenizer)
        self.losses: dict[str, dict[str, float]] = {}
        self.facts = {
            "task": options.task, "finetuned_from": options.checkpoint,
            "finetuning": asdict(options), "pretraining": pretraining, "losses": self.losses,
        }  # fmt: skip

    @classmethod
    def new(cls, given: Mapping[str, Any]) -> Self:
        """A run from the beginning, in a folder of its own.

        Args:
            given: what the user has said.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can mend.
        """
        options = _options(given)
        if not (options.checkpoint and options.data):
            fail("finetuning needs a model and something to teach it: --checkpoint DIR --data FILE.")
        pretraining = known_of(options.checkpoint)
        config = _train_config(given, pretraining)
        require_working(config)
        model, tokenizer, _ = open_model(options.checkpoint, config.backend)
        template = options.template or options.checkpoint
        options = replace(options, task=options.task or guess_task(options.data))
        run = cls(_with_dropout(model, options.dropout), tokenizer, options, config, template, pretraining)
        return run.keep_in(RunFolder(Path(config.out or "runs/finetuned")))

    @classmethod
    def made_again(cls, state: TrainingState, changes: Mapping[str, Any], path: Path) -> Self:
        try:
            known = _known(state.record["pretraining"])
            losses = {name: {when: float(loss) for when, loss in both.items()} for name, both in state.record["losses"].items()}
            options = _options({**state.record["finetuning"], **changes})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{state.where} is not a checkpoint that this version of tensorlite can read ({error}).") from error
        config = changed(state.config, {**changes, "out": str(path)})
        require_working(config)
        with use_generator(make_generator(0)):  # the first weights are thrown away
            model = build_model(state.model_config)
        if any(array.dtype == np.float64 for array in state.weights.values()):
            model.to(dtype=np.float64)
        run = cls(model.to(device=config.backend), state.tokenizer, options, config, path, known)
        run.losses.update(losses)
        return run

    def begin(self) -> None:
        """Measure what there is to gain, and to forget."""
        self._measure("before")

    def describe(self, expected: Estimate) -> str:
        trainer, total = self.trainer, self.task.model.num_parameters()
        config = trainer.config
        batch = (f"{config.accumulation} x " if config.accumulation > 1 else "") + f"{config.batch_size} rows"
        rows = {
            "data": self.task.summary,
            "model": f"{self.options.checkpoint}: {total:,} parameters, of which {self.trained:,} ({self.trained / total:.1%}) are trained",
            "training": f"{config.steps:,} steps of {batch}, learning rate {config.learning_rate:g}, seed {config.seed}",
        }
        rows_of_machine, warnings = machine_rows(self, expected)
        return "\n".join([*table({**rows, **rows_of_machine}), *warnings]) + "\n"

    def save(self) -> None:
        if self.trainer.last and self.trainer.best.step == self.trainer.step:
            self.write_model(self.best_path)  # before the checkpoint: whoever goes on from that finds the best one there
        super().save()

    def write_model(self, folder: Path) -> None:
        plain = self.model
        try:
            folder.mkdir(exist_ok=True)
            if self.options.lora_rank is not None:
                save_adapter(folder, self.model, finetuned_from=self.options.checkpoint)
                self.model = merged(plain)
            super().write_model(folder)
            self.task.save(folder)
        except OSError as error:
            raise CheckpointError(f"the checkpoint cannot be saved: {explain(error, folder)}") from error
        finally:
            self.model = plain

    @property
    def best_path(self) -> Path:
        return self.folder.path / BEST

    def sample(self) -> str:
        """What the model says to a prompt of the task; nothing where it is not one that writes."""
        prompt = self.task.sample_prompt()
        return "" if prompt is None else prompt + self.write_text(prompt, stop=self._stop)

    def finish(self, seconds: float) -> None:
        self._measure("after")
        self.write_model(self.folder.path)  # once more, with these figures
        print(final_table(self, seconds))
        self.folder.plot()
        old = self.options.old_data or self.pretraining["data"]
        names = {"new": f"new: {self.options.data}, a {self.task.unit}", "old": f"old: {old}, a token"}
        where = f"The result is in {self.folder.path}, the weights with the lowest validation loss in {self.best_path}." + (
            f" The corrections alone: {self.folder.path}/adapter.*" if self.options.lora_rank is not None else ""
        )
        where += f"\nTo use it: python -m {self.task.program} --checkpoint {self.folder.path}"
        compared = loss_table({names[name]: (both["before"], both["after"]) for name, both in self.losses.items()}) + self.why_not
        print("\n" + "\n\n".join(filter(None, [compared, self.task.closing(), where])) + "\n")
        prompt = self.task.sample_prompt()
        if prompt is not None and self.trainer.config.sample_length:
            self.print_text(prompt, stop=self._stop)

    @property
    def _stop(self) -> tuple[str, ...]:
        """Where an answer ends."""
        return self.task.template.stop if isinstance(self.task, InstructTask) else ()

    def _measure(self, when: str) -> None:
        """The loss on the new validation text and, if it can be had, on the old."""
        self.losses.setdefault("new", {})[when] = self.task.val_loss()
        if self.old_text is not None:
            self.losses.setdefault("old", {})[when] = text_loss(self.model, self.old_text)


def loss_table(losses: Mapping[str, tuple[float, float]]) -> str:
    """The losses before and after, in nats, and in one word what that means."""
    title = "validation loss"
    width = max(len(title), *map(len, losses)) + 2
    lines = [f"{title:<{width}}{'before':>8}{'after':>8}{'change':>9}"]
    for name, (before, after) in losses.items():
        word = "forgotten" if name.startswith("old") else "lost"
        word = "gained" if after < before else word if after > before else "unchanged"
        lines.append(f"{name:<{width}}{before:>8.3f}{after:>8.3f}{after - before:>+9.3f}  {word}")
    return "\n".join(lines)


def known_of(checkpoint: str) -> dict[str, Any]:
    """What the model learnt first, from where it is written down: data, val_fraction and learning_rate.

    A model of somebody else's comes without. Then it is taken for a GPT-2.
    """
    path = expand_path(checkpoint)
    folder = path if path.is_dir() else path.parent
    for name in (CONFIG, TRAINING):  # of a run, and of a checkpoint within one
        try:
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            return _known(record.get("pretraining") or record["training"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
    return {"data": None, "val_fraction": 0.1, "learning_rate": from_preset("gpt2")[1].learning_rate}


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """What is needed of a record of pretraining. Raises whatever is wrong with it: ValueError, TypeError, KeyError, OverflowError."""
    data, val_fraction, rate = (record[name] for name in ("data", "val_fraction", "learning_rate"))
    require_type(str | None, "data", data)
    TrainConfig(val_fraction=val_fraction, learning_rate=rate, min_learning_rate=0)  # whether they are such numbers
    return {"data": data, "val_fraction": val_fraction, "learning_rate": float(rate)}


def _options(given: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return FinetuneConfig(**{name: value for name, value in given.items() if name in FinetuneConfig.__dataclass_fields__})
    except ValueError as error:
        fail(str(error))


def _train_config(given: Mapping[str, Any], pretraining: Mapping[str, Any]) -> TrainConfig:
    """The settings as the trainer takes them."""
    rate = given.get("learning_rate", pretraining["learning_rate"] / 10)
    return changed(TrainConfig(), {**DEFAULTS, "learning_rate": rate, "min_learning_rate": rate / 10, **given})


def _with_dropout(model: LanguageModel, dropout: float | None) -> LanguageModel:
    """``model``, or where another dropout is wanted, one that is built with it and has the same weights."""
    if dropout is None:
        return model
    weight = next(iter(model.parameters()))
    with use_generator(make_generator(0)):  # the first weights are thrown away
        built = build_model(replace(model.config, dropout=dropout)).to(device=weight.device, dtype=weight.dtype)
    built.load_state_dict(model.state_dict())
    return built.eval()


def _free(model: LanguageModel, options: FinetuneConfig) -> None:
    """Freeze what shall stay as it is."""
    if options.lora_rank is not None:
        alpha = 2.0 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
        try:
            add_lora(model, options.lora_targets.split(","), options.lora_rank, alpha)
        except ValueError as error:
            fail(str(error))
    elif options.train_only:
        train_only(model, options.train_only)
    else:
        freeze_blocks(model, options.freeze_blocks)


def _task(model: LanguageModel, tokenizer: Tokenizer, options: FinetuneConfig, config: TrainConfig, template: str | Path) -> Task:
    assert options.data
    tokenizer = with_unknown(tokenizer, options.unknown)
    match options.task:
        case "classify":
            return ClassifyTask(model, tokenizer, options.data, config.val_fraction, config.seed, options.pooling)
        case "instruct":
            return InstructTask(model, tokenizer, options.data, config.val_fraction, config.seed, load_template(template), options.packing)
        case _:
            return TextTask(model, tokenizer, options.data, config.val_fraction)


def _old_text(options: FinetuneConfig, pretraining: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[Any, str]:
    """The validation part of what the model learnt first, or None and why it cannot be had. One that was asked for must be there."""
    if options.old_data:
        return read_tokens(options.old_data, tokenizer, pretraining["val_fraction"])[1], ""
    why_not = "the checkpoint does not say what it was trained on"
    if pretraining["data"]:
        try:
            return read_tokens(pretraining["data"], tokenizer, pretraining["val_fraction"])[1], ""
        except DataError as error:
            why_not = str(error).rstrip(".")
    return None, f"\nWhat was forgotten is not known: {why_not}; name a text with --old-data."
