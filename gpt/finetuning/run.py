"""A run that begins with the weights of another model: `python -m gpt.finetune`.

    runs/finetuned/
        model.safetensors …     the newest weights; with LoRA, the corrections are merged into them
        adapter.*               LoRA's corrections alone
        peft/                   the same in PEFT's format, for models that transformers knows
        best/                   the same files for the lowest validation loss
        checkpoints/            to resume from

The loop is that of `gpt.training.trainer`, and the data and the loss are those of a task (`gpt.finetuning.tasks`). This page selects the
weights that are trained, and measures how the losses on the new and on the old data change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

from data.errors import DataError
from data.files import explain
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.adapter import save_adapter
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.model_folder import CONFIG
from gpt.checkpoints.peft_adapter import has_peft_form, save_peft_adapter
from gpt.checkpoints.training_state import TRAINING, TrainingState
from gpt.checkpoints.weights import CheckpointError
from gpt.config import OPTIMIZERS, RandomStream, TrainConfig, from_preset, require_type
from gpt.errors import fail
from gpt.finetuning.config import DEFAULTS, FinetuneConfig
from gpt.finetuning.find_template import find_template
from gpt.finetuning.freezing import count_trainable, freeze_blocks, train_only
from gpt.finetuning.lora import add_lora, merge_lora
from gpt.finetuning.tasks import ClassifyTask, InstructTask, Task, TextTask, guess_task, read_tokens, text_loss, with_unknown_policy
from gpt.generation.jinja_template import JinjaTemplate
from gpt.model import LanguageModel, build_model, build_model_for
from gpt.training.memory import MemoryEstimate
from gpt.training.report import final_table, machine_rows, table
from gpt.training.resume import MAY_CHANGE, change_config
from gpt.training.run import Run, require_backend, set_attention_recompute
from gpt.training.team import join_ranks
from tensorlite import nn
from tensorlite.random import make_generator, use_generator

BEST, PEFT = "best", "peft"
MOST_CONTEXT = 1024  # tokens in a row by default


class Finetuning(Run):
    """See `Run`. Errors in the settings or the data are found before a folder is made.

    Args:
        model, tokenizer: the model to finetune, which becomes part of this run, and its tokenizer.
        options, config: the settings of finetuning, and those of training.
        template: the file or folder with the chat template, if there is one.
        pretraining: the record of the model's pretraining, see `read_pretraining_record`.

    Attributes:
        task: the data and the loss; its model wraps the language model where the task needs that.
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
        set_attention_recompute(model, config.attention_recompute)
        with use_generator(make_generator(config.seed, RandomStream.WEIGHTS)):  # draws the new weights of LoRA, or of a classifier
            _select_trainable(model, options)
            self.task = _task(model, tokenizer, options, config, template)
        self.trained = count_trainable(self.task.model)
        self.old_text, self.why_no_old_text = _read_old_text(options, pretraining, tokenizer)
        if isinstance(self.task, InstructTask) and isinstance(self.task.template, JinjaTemplate):
            tokenizer = self.task.template.tokenizer(tokenizer)  # for samples: in a prompt the names of special tokens are tokens
        super().__init__(self.task.trainer(self.task.model, config, self.task.train, self.task.val), model, tokenizer)
        self.losses: dict[str, dict[str, float]] = {}
        self.extra = {
            "task": options.task, "finetuned_from": options.checkpoint,
            "finetuning": asdict(options), "pretraining": pretraining, "losses": self.losses,
        }  # fmt: skip

    @classmethod
    def new(cls, given: Mapping[str, Any]) -> Self:
        """A new run, in a new folder.

        Args:
            given: the settings that the user gives.

        Raises:
            UserError, DataError, DeviceUnavailableError: for what the user can correct.
        """
        options, config, pretraining = resolve_settings(given)
        assert options.checkpoint
        assert options.data
        with join_ranks(config).together():
            require_backend(config)
            model, tokenizer, _ = load_model(options.checkpoint, config.backend)
            template = options.template or options.checkpoint
            options = replace(options, task=options.task or guess_task(options.data))
            options = replace(options, context=_limit_context(model, options.context))
            run = cls(_with_dropout(model, options.dropout), tokenizer, options, config, template, pretraining)
        return run.make_folder(Path(config.out or "runs/finetuned"))

    @classmethod
    def from_checkpoint(cls, state: TrainingState, changes: Mapping[str, Any], path: Path) -> Self:
        try:
            pretraining = _checked_pretraining(state.record["pretraining"])
            losses = {name: {when: float(loss) for when, loss in both.items()} for name, both in state.record["losses"].items()}
            options = _finetune_config({**state.record["finetuning"], **changes})
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise CheckpointError(f"{state.source} is not a checkpoint that this version of tensorlite can read ({error}).") from error
        config = change_config(state.config, {**changes, "out": str(path)})
        require_backend(config)
        model = build_model_for(state.model_config, state.weights).to(device=config.backend)
        run = cls(model, state.tokenizer, options, config, path, pretraining)
        run.losses.update(losses)
        return run

    def begin(self) -> None:
        """Measure the losses before training."""
        self._measure_losses("before")

    def end(self) -> None:
        """Measure the losses after it."""
        self._measure_losses("after")

    def describe(self, expected: MemoryEstimate) -> str:
        trainer, total = self.trainer, self.task.model.num_parameters()
        config = trainer.config
        batch = (f"{config.accumulation} x " if config.accumulation > 1 else "") + f"{config.batch_size} rows"
        batch += f" of at most {self.model.config.block_size:,} tokens"
        rows = {
            "data": self.task.summary,
            "model": f"{self.options.checkpoint}: {total:,} parameters, of which {self.trained:,} ({self.trained / total:.1%}) are trained",
            "training": f"{config.steps:,} steps of {batch}, learning rate {config.learning_rate:g}, seed {config.seed}",
        }
        rows_of_machine, warnings = machine_rows(self, expected, "Fewer --steps take less")
        return "\n".join([*table({**rows, **rows_of_machine}), *warnings]) + "\n"

    def save(self) -> None:
        with self.trainer.world.together():
            if self.is_first and self.trainer.last and self.trainer.best.step == self.trainer.step:
                self.write_model(self.best_path)  # before the checkpoint, so that a run resumed from it finds the best model there
        super().save()

    def write_model(self, folder: Path) -> None:
        plain = self.model
        try:
            folder.mkdir(exist_ok=True)
            if self.options.lora_rank is not None:
                save_adapter(folder, self.model, finetuned_from=self.options.checkpoint)
                if has_peft_form(plain.config):
                    save_peft_adapter(folder / PEFT, plain, base=self.options.checkpoint or "")
                self.model = merge_lora(plain)
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
        prompt = self.task.sample_prompt() if self.is_first else None
        return "" if prompt is None else prompt + self.sample_text(prompt, stop=self._stop)

    def finish(self, seconds: float) -> None:
        self.write_model(self.folder.path)  # again, with these losses
        print(final_table(self, seconds))
        self.folder.plot()
        old = self.options.old_data or self.pretraining["data"]
        names = {"new": f"new: {self.options.data}, a {self.task.unit}", "old": f"old: {old}, a token"}
        where = f"The result is in {self.folder.path}, the weights with the lowest validation loss in {self.best_path}." + (
            f" The corrections alone: {self.folder.path}/adapter.*" if self.options.lora_rank is not None else ""
        )
        where += f"\nTo use it: python -m {self.task.program} --checkpoint {self.folder.path}"
        compared = loss_table({names[name]: (both["before"], both["after"]) for name, both in self.losses.items()}) + self.why_no_old_text
        print("\n" + "\n\n".join(filter(None, [compared, self.task.final_report(), where])) + "\n")
        prompt = self.task.sample_prompt()
        if prompt is not None and self.trainer.config.sample_length:
            self.print_text(prompt, stop=self._stop)

    @property
    def _stop(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return self.task.template.stop if isinstance(self.task, InstructTask) else ()

    def _measure_losses(self, when: str) -> None:
        """Measure the loss on the new validation data and, if there is one, on the old validation text."""
        world = self.trainer.world
        self.losses.setdefault("new", {})[when] = self.task.val_loss(world)
        if self.old_text is not None:
            self.losses.setdefault("old", {})[when] = text_loss(self.model, self.old_text, world=world)


def loss_table(losses: Mapping[str, tuple[float, float]]) -> str:
    """The losses before and after, in nats, and in one word how each has changed."""
    title = "validation loss"
    width = max(len(title), *map(len, losses)) + 2
    lines = [f"{title:<{width}}{'before':>8}{'after':>8}{'change':>9}"]
    for name, (before, after) in losses.items():
        word = "forgotten" if name.startswith("old") else "lost"
        word = "gained" if after < before else word if after > before else "unchanged"
        lines.append(f"{name:<{width}}{before:>8.3f}{after:>8.3f}{after - before:>+9.3f}  {word}")
    return "\n".join(lines)


def read_pretraining_record(checkpoint: str) -> dict[str, Any]:
    """What the checkpoint says about the model's pretraining: data, val_fraction, optimizer and learning_rate.

    Published weights come without such a record; then it is that of GPT-2.
    """
    path = expand_path(checkpoint)
    folder = path if path.is_dir() else path.parent
    for name in (CONFIG, TRAINING):  # in a run's folder, and in a checkpoint within it
        try:
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            return _checked_pretraining(record.get("pretraining") or record["training"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
    return {"data": None, "val_fraction": 0.1, "optimizer": "adamw", "learning_rate": from_preset("gpt2")[1].learning_rate}


def _checked_pretraining(record: Mapping[str, Any]) -> dict[str, Any]:
    """The needed part of a record of pretraining. Raises ValueError, TypeError, KeyError or OverflowError if it is not one."""
    data, val_fraction, rate = (record[name] for name in ("data", "val_fraction", "learning_rate"))
    require_type(str | None, "data", data)
    optimizer = record.get("optimizer", "adamw")  # an earlier version had no other
    TrainConfig(val_fraction=val_fraction, optimizer=optimizer, learning_rate=rate, min_learning_rate=0)  # checks all three
    return {"data": data, "val_fraction": val_fraction, "optimizer": optimizer, "learning_rate": float(rate)}


def resolve_settings(given: Mapping[str, Any]) -> tuple[FinetuneConfig, TrainConfig, dict[str, Any]]:
    """All settings of a new run, and the record of the pretraining from which some defaults come.

    Raises:
        UserError: without a checkpoint or data, and for a value that cannot work.
    """
    options = _finetune_config(given)
    if not (options.checkpoint and options.data):
        fail("finetuning needs a model and data to train it on: --checkpoint DIR --data FILE.")
    pretraining = read_pretraining_record(options.checkpoint)
    return options, _train_config(given, pretraining), pretraining


def _finetune_config(given: Mapping[str, Any]) -> FinetuneConfig:
    try:
        return FinetuneConfig(**{name: value for name, value in given.items() if name in FinetuneConfig.__dataclass_fields__})
    except ValueError as error:
        fail(str(error))


def _train_config(given: Mapping[str, Any], pretraining: Mapping[str, Any]) -> TrainConfig:
    """The settings of training, with the defaults of finetuning: as learning rate a tenth of that of pretraining.

    If pretraining used another optimizer, it is a tenth of the rate that the preset tiny has for this one.

    Raises:
        UserError: for a value that cannot work, or two that exclude each other.
    """
    optimizer = given.get("optimizer", "adamw")
    if optimizer == "muon" and given.get("lora_rank") is not None:
        fail("--optimizer muon moves whole matrices, and a correction of LoRA is the product of two: leave out one of the two options.")
    before = pretraining["learning_rate"]
    if optimizer != pretraining["optimizer"] and optimizer in OPTIMIZERS:  # another is refused below
        before = from_preset("tiny", optimizer=optimizer)[1].learning_rate
    rate = given.get("learning_rate", before / 10)
    return change_config(TrainConfig(), {**DEFAULTS, "learning_rate": rate, "min_learning_rate": rate / 10, **given})


def _with_dropout(model: LanguageModel, dropout: float | None) -> LanguageModel:
    """``model``, or a model with the same weights and another ``dropout`` if one is given."""
    if dropout is None:
        return model
    with nn.init.without_drawing():
        built = build_model(replace(model.config, dropout=dropout)).to(device=next(iter(model.parameters())).device)
    built.load_state_dict(model.state_dict(), assign=True)
    return built.eval()


def _limit_context(model: LanguageModel, context: int | None) -> int:
    """Let ``model`` read at most ``context`` tokens at once; return how many it reads.

    The memory of a row grows with its length, and published models have contexts of many thousand tokens.

    Raises:
        UserError: for more than the model has, or a model with a vector for each position.
    """
    block_size, is_rotary = model.config.block_size, model.config.model == "llama"
    if context is None:
        context = min(block_size, MOST_CONTEXT) if is_rotary else block_size
    if context > block_size:
        fail(f"--context must be at most {block_size:,}, the tokens that the model's own context holds, got {context:,}.")
    if context < block_size and not is_rotary:
        fail(f"--context is for models with rotary positions: this one has a vector for each of its {block_size:,} positions.")
    model.config = replace(model.config, block_size=context)
    return context


def _select_trainable(model: LanguageModel, options: FinetuneConfig) -> None:
    """Freeze all parameters that ``options`` exclude from training."""
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
    tokenizer = with_unknown_policy(tokenizer, options.unknown)
    match options.task:
        case "classify":
            return ClassifyTask(model, tokenizer, options.data, config.val_fraction, config.seed, options.pooling)
        case "instruct":
            return InstructTask(model, tokenizer, options.data, config.val_fraction, config.seed, find_template(template), options.packing)
        case _:
            return TextTask(model, tokenizer, options.data, config.val_fraction)


def _read_old_text(options: FinetuneConfig, pretraining: Mapping[str, Any], tokenizer: Tokenizer) -> tuple[Any, str]:
    """The validation part of the pretraining text, or None and why it is not known. A text that the user names must exist."""
    if options.old_data:
        return read_tokens(options.old_data, tokenizer, pretraining["val_fraction"])[1], ""
    reason = "the checkpoint does not say what it was trained on"
    if pretraining["data"]:
        try:
            return read_tokens(pretraining["data"], tokenizer, pretraining["val_fraction"])[1], ""
        except DataError as error:
            reason = str(error).rstrip(".")
    return None, f"\nHow much was forgotten is not known: {reason}; name a text with --old-data."
