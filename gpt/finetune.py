"""Teach a trained model something more:  python -m gpt.finetune --checkpoint runs/tiny --data my.txt

    python -m gpt.finetune --checkpoint runs/tiny --data plays.txt                          another text
    python -m gpt.finetune --checkpoint runs/tiny --data answers.jsonl                      to answer (see gpt.instructions)
    python -m gpt.finetune --checkpoint runs/tiny --data reviews.csv --task classify        to tell texts apart (see gpt.classify)

    … --lora-rank 8                      learn a small correction instead of all weights (see gpt.lora)
    … --freeze-blocks 3                  leave the embeddings and the first three blocks as they are
    … --train-only "*ln_*" "h.3.*"       leave everything as it is but the parameters of these names

What is new pushes out what was known. So at the end there is a table: the loss on the new and on the old validation text, before and after.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.files import explain
from data.tokenizer import Tokenizer
from gpt.arguments import Parser, add_model_options
from gpt.checkpoint import CONFIG, CheckpointError, save_model
from gpt.classify import POOLINGS
from gpt.config import TrainConfig, from_preset
from gpt.errors import EXIT_INTERRUPTED, fail, run_main
from gpt.freezing import freeze_blocks, train_only, trainable
from gpt.inference import stream_text
from gpt.lora import TARGETS, add_lora, merged, save_adapter
from gpt.model import LanguageModel
from gpt.pretrained import open_model
from gpt.run_folder import RunFolder
from gpt.stopping import Stopped
from gpt.tasks import ClassifyTask, InstructTask, Task, TextTask, guess_task, read_tokens, text_loss, with_unknown
from gpt.template import load_template
from gpt.trainer import SAMPLE, WEIGHTS
from gpt.training_state import TRAINING
from tensorlite.backend import Device
from tensorlite.memory import keep_freed_memory
from tensorlite.random import make_generator, use_generator

TASKS = ("text", "instruct", "classify")


def main(argv: Sequence[str] | None = None) -> int:
    """Finetune as the options say; returns the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend; most of it shows before the first step.
    """
    finetuning = Finetuning(_parse(argv))
    try:
        return finetuning.run()
    finally:
        finetuning.folder.lock.release()


class Finetuning:
    """One run, from a checkpoint to another. Everything that can be wrong with the options or the data is wrong before a folder is made."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.model, self.tokenizer, _ = open_model(options.checkpoint, options.backend)
        self.pretraining = _pretraining(options.checkpoint)
        self.config = config = _train_config(options, self.pretraining)
        with use_generator(make_generator(config.seed, WEIGHTS)):  # the new weights of LoRA, or of a classifier
            _free(self.model, options)
            self.task = _task(self.model, self.tokenizer, options)
        self.trained = trainable(self.task.model)
        self.old_text, self.why_not = _old_text(options, self.pretraining, self.tokenizer)
        self.trainer = self.task.trainer(self.task.model, config, self.task.train, self.task.val, keep=self.keep)
        self.folder = self.trainer.folder = RunFolder(Path(config.out or "runs/finetuned"))
        self.facts: dict[str, Any] = {"task": options.task, "finetuned_from": options.checkpoint, "pretraining": self.pretraining}

    def run(self) -> int:
        """Measure, train, measure again; returns the exit code."""
        print(self._describe())
        before = self.measure()
        try:
            self.trainer.train()
        except Stopped:
            self.save()
            print(f"\nStopped after step {self.trainer.step} of {self.config.steps}. The weights are saved in {self.folder.path}.")
            return EXIT_INTERRUPTED
        after = self.measure()
        self.facts["losses"] = {name: {"before": before[name], "after": after[name]} for name in before}
        self.save()
        self.folder.plot()
        print(f"\n{self._report(before, after)}\n")
        _write_sample(self.model, self.tokenizer, self.task, self.config)
        return 0

    def measure(self) -> dict[str, float]:
        """The loss on the new validation text and, if it can be had, on the old."""
        losses = {"new": self.task.val_loss()}
        return losses if self.old_text is None else {**losses, "old": text_loss(self.model, self.old_text)}

    def save(self, whole: bool = True) -> None:
        """Write all that there is; of a model with LoRA the corrections and, if it shall be ``whole``, the model they are merged into.

        Raises:
            CheckpointError: if the folder cannot be written to.
        """
        folder, has_lora = self.folder.path, self.options.lora_rank is not None
        try:
            if has_lora:
                save_adapter(folder, self.model, finetuned_from=self.options.checkpoint)
            if whole or not has_lora:
                plain = merged(self.model) if has_lora else self.model
                save_model(folder, plain, self.tokenizer, self.config, step=self.trainer.step, **self.facts)
            self.task.save(folder)
        except OSError as error:
            raise CheckpointError(f"the checkpoint cannot be saved: {explain(error, folder)}") from error

    def keep(self) -> None:
        """In the middle of a run, weights that cannot be saved are worth a warning: there may be room again at the end."""
        try:
            self.save(whole=False)
        except CheckpointError as error:
            print(f"\nwarning: {error} Training goes on.", file=sys.stderr)

    def _describe(self) -> str:
        """What is about to happen."""
        config, folder, total = self.config, self.folder, self.task.model.num_parameters()
        share = f"{self.trained:,} ({self.trained / total:.1%})"
        taken = f" ({folder.wanted} is taken)" if folder.path != folder.wanted else ""
        return (
            f"data        {self.task.summary}\n"
            f"model       {self.options.checkpoint}: {total:,} parameters, of which {share} are trained\n"
            f"training    {config.steps:,} steps of {config.batch_size} rows, learning rate {config.learning_rate:g}, seed {config.seed}\n"
            f"folder      {folder.path}{taken}\n"
        )

    def _report(self, before: dict[str, float], after: dict[str, float]) -> str:
        """What has been gained and forgotten, and where the result is."""
        old = self.options.old_data or self.pretraining["data"]
        names = {"new": f"new: {self.options.data}, a {self.task.unit}", "old": f"old: {old}, a token"}
        table = _table({names[name]: (before[name], after[name]) for name in before}) + self.why_not
        where = f"The result is in {self.folder.path}." + (
            f" The corrections alone: {self.folder.path}/adapter.*" if self.options.lora_rank is not None else ""
        )
        return "\n\n".join(filter(None, [table, self.task.closing(), where]))


# --- what is asked for --------------------------------------------------------------------------------


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, each of them possible in itself."""
    parser = Parser(prog="python -m gpt.finetune", description="Teach a trained model something more.")
    add_model_options(parser)
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="a text, a prepared folder, or examples: .jsonl or .csv")
    add("--task", choices=TASKS, help="without it: text, and for examples what they look like")
    add("--out", metavar="DIR", help="folder for the result (default: runs/finetuned, or with -2, -3, … if that exists)")
    add("--old-data", metavar="FILE", help="the text to measure forgetting on (default: what the checkpoint was trained on)")
    add("--unknown", choices=("error", "skip", "replace"), default="error", help="characters that the tokenizer never saw (default: error)")
    add("--template", metavar="FILE", help="instruct: JSON with other marks than '### User:' (default: the checkpoint's, if it has one)")
    add("--pooling", choices=POOLINGS, default="mean", help="classify: read the mean over the text, or its last token (default: mean)")

    what = parser.add_argument_group("what is trained (default: everything)").add_argument
    what("--freeze-blocks", type=int, default=0, metavar="K", help="leave the embeddings and the first K blocks as they are")
    what("--train-only", nargs="+", metavar="PATTERN", help='leave everything as it is but the parameters of these names: "*ln_*"')
    what("--lora-rank", type=int, metavar="R", help="leave all weights as they are, and learn corrections of rank R to some")
    what("--lora-alpha", type=float, metavar="A", help="how much corrections count: they are multiplied by A / R (default: 2 R)")
    what("--lora-targets", metavar="NAMES", help=f"which layers get one, with commas (default: {','.join(TARGETS)})")

    how = parser.add_argument_group("how").add_argument
    how("--learning-rate", type=float, metavar="LR", help="(default: a tenth of pretraining's)")
    for name, default, text in (
        ("steps", 300, "updates of the weights"),
        ("batch_size", 12, "rows in one step"),
        ("warmup_steps", 20, "steps in which the learning rate grows from 0"),
        ("eval_interval", 100, "steps between two evaluations"),
        ("eval_iters", 20, "batches in one evaluation"),
        ("log_interval", 10, "steps between two looks at the training loss"),
        ("seed", 1337, "of new weights, of the order of the data and of dropout"),
        ("sample_length", 200, "tokens written at the end; 0 for none"),
    ):
        how(f"--{name.replace('_', '-')}", type=int, default=default, metavar="N", help=f"{text} (default: {default})")
    how("--workers", type=int, metavar="N", help="threads on the CPU (default: one for each core)")
    how("--weight-decay", type=float, default=0.1, metavar="W", help="AdamW's pull towards zero, on matrices (default: 0.1)")
    how("--val-fraction", type=float, default=0.1, metavar="F", help="share of the data that is kept for validation (default: 0.1)")

    options = parser.parse_args(argv)
    if options.lora_rank is None and (options.lora_alpha is not None or options.lora_targets is not None):
        fail("--lora-alpha and --lora-targets need --lora-rank, which says how large the corrections are.")
    ways = [name for name in ("--freeze-blocks", "--train-only", "--lora-rank") if getattr(options, name[2:].replace("-", "_"))]
    if len(ways) > 1:
        fail(f"{' and '.join(ways)} exclude each other: each says what is trained.")
    try:
        Device(options.backend)
    except ValueError as error:
        fail(str(error))
    options.task = options.task or guess_task(options.data)
    return options


def _train_config(options: argparse.Namespace, pretraining: dict[str, Any]) -> TrainConfig:
    """The options as the trainer takes them."""
    rate = options.learning_rate if options.learning_rate is not None else pretraining["learning_rate"] / 10
    same = ("data", "backend", "workers", "seed", "steps", "batch_size", "warmup_steps", "weight_decay", "val_fraction", "out")
    settings = {name: getattr(options, name) for name in (*same, "eval_interval", "eval_iters", "log_interval", "sample_length")}
    try:
        return replace(TrainConfig(), **settings, learning_rate=rate, min_learning_rate=rate / 10, schedule="cosine")
    except ValueError as error:
        fail(str(error))


def _free(model: LanguageModel, options: argparse.Namespace) -> None:
    """Freeze what shall stay as it is."""
    if options.lora_rank is not None:
        targets = options.lora_targets.split(",") if options.lora_targets else TARGETS
        alpha = 2.0 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
        try:
            add_lora(model, targets, options.lora_rank, alpha)
        except ValueError as error:
            fail(str(error))
    elif options.train_only:
        train_only(model, options.train_only)
    else:
        freeze_blocks(model, options.freeze_blocks)


def _task(model: LanguageModel, tokenizer: Tokenizer, options: argparse.Namespace) -> Task:
    tokenizer = with_unknown(tokenizer, options.unknown)
    match options.task:
        case "classify":
            return ClassifyTask(model, tokenizer, options.data, options.val_fraction, options.seed, options.pooling)
        case "instruct":
            template = load_template(options.template or options.checkpoint)
            return InstructTask(model, tokenizer, options.data, options.val_fraction, options.seed, template)
        case _:
            return TextTask(model, tokenizer, options.data, options.val_fraction)


# --- what was known before ----------------------------------------------------------------------------


def _pretraining(checkpoint: str) -> dict[str, Any]:
    """What the model learnt first, from where it is written down: data, val_fraction and learning_rate.

    A model of somebody else's comes without. Then it is taken for a GPT-2.
    """
    path = Path(checkpoint).expanduser()
    folder = path if path.is_dir() else path.parent
    for name in (CONFIG, TRAINING):  # of a run, and of a checkpoint within one
        try:
            record = json.loads((folder / name).read_text(encoding="utf-8"))
            known = record.get("pretraining") or record["training"]
            return {"data": known["data"], "val_fraction": known["val_fraction"], "learning_rate": float(known["learning_rate"])}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return {"data": None, "val_fraction": 0.1, "learning_rate": from_preset("gpt2")[1].learning_rate}


def _old_text(options: argparse.Namespace, pretraining: dict[str, Any], tokenizer: Tokenizer) -> tuple[Any, str]:
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


# --- what is said -------------------------------------------------------------------------------------


def _table(losses: dict[str, tuple[float, float]]) -> str:
    """The losses before and after, in nats, and in one word what that means."""
    title = "validation loss"
    width = max(len(title), *map(len, losses)) + 2
    lines = [f"{title:<{width}}{'before':>8}{'after':>8}{'change':>9}"]
    for name, (before, after) in losses.items():
        word = "forgotten" if name.startswith("old") else "lost"
        word = "gained" if after < before else word if after > before else "unchanged"
        lines.append(f"{name:<{width}}{before:>8.3f}{after:>8.3f}{after - before:>+9.3f}  {word}")
    return "\n".join(lines)


def _write_sample(model: LanguageModel, tokenizer: Tokenizer, task: Task, config: TrainConfig) -> None:
    """Let the model show what it has learnt, if it is one that writes."""
    prompt = task.sample_prompt()
    if prompt is None or not config.sample_length:
        return
    print(prompt, end="", flush=True)
    stop = task.template.stop if isinstance(task, InstructTask) else ()
    generator = make_generator(config.seed, SAMPLE)
    for piece in stream_text(model, tokenizer, prompt, config.sample_length, generator=generator, stop=stop):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    sys.exit(run_main(main))
