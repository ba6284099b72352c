"""What a run says before its first step, and after its last."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gpt.sizes import in_words
from gpt.training.estimate import Estimate
from gpt.training.run import Run
from tensorlite.memory import peak_memory
from tensorlite.op import kernel_table


def table(rows: Mapping[str, str]) -> list[str]:
    """Lines with the names in a column of their own."""
    return [f"{name:<12}{text}" for name, text in rows.items()]


def machine_rows(run: Run, expected: Estimate) -> tuple[dict[str, str], list[str]]:
    """Where and with what a run will work, as rows of a table; and warnings."""
    trainer, folder = run.trainer, run.folder
    kernels = kernel_table("cpu" if trainer.config.backend == "numpy" else "cuda")
    faster = {name: pairs[0] for name, pairs in kernels.items() if pairs[0] != "book"}
    rows = {
        "ops": ", ".join([f"{name}: {pair}" for name, pair in faster.items()] + ["all others: book" if faster else "all from the book"]),
        "memory": f"about {expected}",
        "folder": f"{folder.path}" + (f" ({folder.wanted} is taken)" if folder.path != folder.wanted else ""),
    }
    if trainer.step:
        rows["resumed"] = f"after step {trainer.step:,}"
    too_much = "warning: that is more than is free. A smaller --batch-size with more --accumulation makes the same steps in less."
    return rows, [too_much] if expected.is_too_much else []


def final_table(run: Run, seconds: float) -> str:
    """What has happened."""
    trainer, peak = run.trainer, peak_memory()
    last, best = trainer.last, trainer.best
    ended = f": {best.waited} evaluations without a better validation loss" if trainer.is_stuck else ""
    rows = {
        "steps": f"{trainer.step:,} of {trainer.config.steps:,}{ended}",
        "time": f"{seconds / 60:.1f} minutes",
        "speed": _speed(run),
        "loss": f"training {last.train_loss:.4f}, validation {last.val_loss:.4f}" if last else "not evaluated",
        "best": f"validation {best.val_loss:.4f} after step {best.step:,}: {run.best_path}",
        "memory": f"{in_words(peak)} at most" if peak else "not known here",
    }
    return "\n".join(["", *table(rows)])


def _speed(run: Run) -> str:
    """The middle one of all that were logged."""
    records = [record for record in run.folder.records if "tokens_per_second" in record]
    if not records:
        return "not measured"
    said = f"{np.median([record['tokens_per_second'] for record in records]):,.0f} tokens a second"
    shares = [record["share_of_peak"] for record in records if record.get("share_of_peak") is not None]
    peak = run.trainer.speed.peak
    if shares and peak:
        said += f": {np.median(shares):.0%} of what large matrix products reach here, {peak / 1e9:,.0f} GFLOP/s"
    return said
