"""Train a model:  python -m gpt.train

With no options this takes two minutes on two cores, and ends with a sample of what the model has learnt to write. Every option is a
field of the dataclasses in `gpt.config`, see --help.

    python -m gpt.train --data my.txt --steps 500 --out runs/mine
    python -m gpt.train --data a-folder-from-data.prepare
    python -m gpt.train --preset course --config my.yaml --dropout 0
    python -m gpt.train --resume runs/mine
    python -m gpt.train --preset course --profile
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt.counting import counted_bigram_loss
from gpt.errors import EXIT_INTERRUPTED, fail, run_main
from gpt.estimate import Estimate, advice, estimate, in_words
from gpt.inference import stream_text
from gpt.options import configs_of, parse_settings
from gpt.run import SAMPLE_TEMPERATURE, Run
from gpt.stopping import Stopped, TimeIsUp
from gpt.trainer import SAMPLE
from tensorlite.memory import keep_freed_memory, peak_memory
from tensorlite.op import kernel_table
from tensorlite.profile import Profile
from tensorlite.random import make_generator

WARM_UP = 3  # steps before those that are profiled


def main(argv: Sequence[str] | None = None) -> int:
    """Train as the options say; returns the exit code.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend; most of it shows before the first step.
    """
    given = parse_settings(argv, "python -m gpt.train", "Train a GPT on a text, and read what it writes.", actions=("resume", "profile"))
    resumed, profiled = given.pop("resume", None), given.pop("profile", None)
    if resumed is not None:
        run = Run.resume(_folder_to_resume(resumed, given), given)
    else:
        run = Run.new(*configs_of(given), keep=profiled is None)
    expected = None
    try:
        if profiled is not None:
            return _profile(run, profiled)
        run.save()  # a disk without room shows now, not when all the work is done
        expected = estimate(run.trainer)
        print(_describe(run, expected))
        return _train(run)
    except MemoryError as error:
        fail(advice(error, run.trainer, expected) + _last_checkpoint(run))
    finally:
        run.close()


def _train(run: Run) -> int:
    """Train to the end, or until the user wants to stop; returns the exit code."""
    trainer, folder, start = run.trainer, run.folder, time.perf_counter()
    try:
        trainer.train()
    except Stopped as stopped:
        run.save()
        why = "The time is up: stopped" if isinstance(stopped, TimeIsUp) else "Stopped"
        print(
            f"\n{why} after step {trainer.step} of {trainer.config.steps}. The weights are saved in {folder.path}. "
            f"To go on: python -m gpt.train --resume {folder.path}"
        )
        return 0 if isinstance(stopped, TimeIsUp) else EXIT_INTERRUPTED
    run.save()
    print(_summary(run, time.perf_counter() - start))
    if trainer.model.config.model == "bigram":
        counted = counted_bigram_loss(run.dataset.train, run.dataset.val, run.dataset.tokenizer.vocab_size)
        print(f"Counting pairs in the training text gives validation loss {counted:.4f}.")
    folder.plot()
    print(f"\nWeights, tokenizer and metrics are in {folder.path}: python -m gpt.generate --checkpoint {folder.path}\n")
    _write_sample(run)
    return 0


def _profile(run: Run, steps: int) -> int:
    """Say where the time of some steps goes; nothing is kept."""
    trainer = run.trainer
    if steps < 1:
        fail(f"--profile takes a number of steps, at least 1, got {steps}.")
    with trainer.workers:
        for _ in range(WARM_UP):
            trainer.update()
        with Profile(trainer.workers.count) as profile:
            for _ in range(steps):
                trainer.update()
    speed = steps * trainer.tokens_per_step / profile.seconds
    print(f"{steps} steps of {trainer.tokens_per_step:,} tokens: {speed:,.0f} tokens a second\n\n{profile.table()}")
    return 0


def _folder_to_resume(resumed: str, given: dict[str, Any]) -> Path:
    if not resumed and not given.get("out"):
        fail("which run is to go on? Name its folder: --resume runs/<name>.")
    return Path(resumed or given["out"]).expanduser()


def _last_checkpoint(run: Run) -> str:
    """What is there to go on from."""
    saved = run.trainer.folder and run.checkpoints.saved
    return f" The checkpoint of step {saved} is whole: --resume {run.folder.path}." if saved is not None else ""


def _describe(run: Run, expected: Estimate) -> str:
    """What is about to happen, as a table."""
    trainer, dataset, folder = run.trainer, run.dataset, run.folder
    model, config = trainer.model, trainer.config
    shape = model.config
    layers = f"{shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, block {shape.block_size}"
    kernels = kernel_table("cpu" if config.backend == "numpy" else "cuda")
    faster = {name: pairs[0] for name, pairs in kernels.items() if pairs[0] != "book"}
    workers = trainer.workers.count
    where = f"{workers} workers" if config.backend == "numpy" else config.backend
    batch = (f"{config.accumulation} x " if config.accumulation > 1 else "") + f"{config.batch_size} x {shape.block_size}"
    rows = {
        "corpus": dataset.summary,
        "first line": dataset.first_line[:100],
        "model": f"{'bigram table' if shape.model == 'bigram' else layers}: {model.num_parameters():,} parameters",
        "training": f"{config.steps:,} steps of {batch} tokens by {where}, seed {config.seed}",
        "ops": ", ".join([f"{name}: {pair}" for name, pair in faster.items()] + ["all others: book" if faster else "all from the book"]),
        "memory": f"about {expected}",
        "folder": f"{folder.path}" + (f" ({folder.wanted} is taken)" if folder.path != folder.wanted else ""),
    }
    if trainer.step:
        rows["resumed"] = f"after step {trainer.step:,}"
    lines = [*_table(rows), *dataset.notes]
    if expected.is_too_much:
        lines.append("warning: that is more than is free. A smaller --batch-size with more --accumulation makes the same steps in less.")
    return "\n".join(lines) + "\n"


def _summary(run: Run, seconds: float) -> str:
    """What has happened, as a table."""
    trainer = run.trainer
    last, best, peak = trainer.last, trainer.best, peak_memory()
    ended = f": {best.waited} evaluations without a better validation loss" if trainer.is_stuck else ""
    rows = {
        "steps": f"{trainer.step:,} of {trainer.config.steps:,}{ended}",
        "time": f"{seconds / 60:.1f} minutes",
        "loss": f"training {last.train_loss:.4f}, validation {last.val_loss:.4f}" if last else "not evaluated",
        "best": f"validation {best.val_loss:.4f} after step {best.step:,}: {run.checkpoints.path(best.step)}",
        "memory": f"{in_words(peak)} at most" if peak else "not known here",
    }
    return "\n".join(["", *_table(rows)])


def _table(rows: dict[str, str]) -> list[str]:
    return [f"{name:<12}{text}" for name, text in rows.items()]


def _write_sample(run: Run) -> None:
    """Let the model show what it has learnt."""
    config = run.trainer.config
    generator = make_generator(config.seed, SAMPLE)
    model, tokenizer = run.trainer.model, run.dataset.tokenizer
    for piece in stream_text(model, tokenizer, max_new_tokens=config.sample_length, generator=generator, temperature=SAMPLE_TEMPERATURE):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    keep_freed_memory()  # here, since it holds for the whole process, and this is the one that was started to train
    sys.exit(run_main(main))
