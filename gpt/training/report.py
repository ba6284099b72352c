"""What a run prints before its first step, and after its last."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping

import numpy as np

from data.console import error_text
from data.cores import available_cores
from gpt.errors import format_bytes
from gpt.training.duration import estimate_seconds, format_duration
from gpt.training.memory import MemoryEstimate
from gpt.training.metrics import METRICS
from gpt.training.run import Run
from gpt.training.team import describe_team
from tensorlite.memory import peak_memory
from tensorlite.op import kernel_table

NAMES = 12  # the width of their column
LONG = 3600  # seconds; a run that takes longer on a CPU gets a warning


def table(rows: Mapping[str, str], width: int | None = None) -> list[str]:
    """Lines with the names in a column of their own.

    Args:
        width: where longer lines are broken, between two words; without one, the width of the terminal. In a file lines are not broken.
    """
    lines = []
    for name, text in rows.items():
        broken = wrap(text, NAMES, width)
        lines += [f"{start:<{NAMES}}{part}" for start, part in zip([name, *[""] * len(broken)], broken or [""], strict=False)]
    return lines


def wrap(text: str, indent: int = 0, width: int | None = None) -> list[str]:
    """``text`` in lines that leave ``indent`` columns free; see `table` for the width."""
    if width is None and sys.stdout.isatty():
        width = shutil.get_terminal_size().columns
    return textwrap.wrap(text, max(1, width - indent), break_long_words=False, break_on_hyphens=False) if width else [text]


def machine_rows(run: Run, expected: MemoryEstimate, quicker: str) -> tuple[dict[str, str], list[str]]:
    """The time, memory, folder, kernels and team of a run, as rows of a table; and warnings. ``quicker`` is advice for a long run."""
    trainer, folder = run.trainer, run.folder
    kernels = kernel_table("cpu" if trainer.config.backend == "numpy" else "cuda")
    faster = {name: pairs[0] for name, pairs in kernels.items() if pairs[0] != "book"}
    rows = {
        "memory": f"about {expected}",
        "folder": f"{folder.path}" + (f" ({folder.wanted} is taken)" if folder.path != folder.wanted else ""),
        "kernels": f"{', '.join(faster)}; all other ops are the book's" if faster else "none: all ops are the book's",
    }
    if trainer.step:
        rows["resumed"] = f"after step {trainer.step:,}"
    if trainer.config.backend == "numpy" or trainer.world.size > 1:
        rows["workers"] = describe_team(trainer.config, trainer.workers, trainer.world.size)
    warnings = []
    if trainer.config.backend == "numpy" and trainer.workers.count > available_cores():
        warnings.append(f"warning: {trainer.workers.count} workers take turns on {available_cores()} cores: leave --workers out.")
    if expected.is_too_much:
        advice = "A smaller --batch-size with more --accumulation makes the same steps in less."
        warnings.append(f"warning: that is more memory than is free. {advice}")
    seconds = estimate_seconds(trainer)
    if seconds is not None:
        rows = {"time": f"about {format_duration(seconds)}", **rows}
        if seconds > LONG:
            advice = f"{quicker}; on an NVIDIA GPU add --backend cupy. Ctrl-C stops the run, --resume continues it."
            warnings.append(f"warning: on this CPU the run takes about {format_duration(seconds)}. {advice}")
    return rows, [line for warning in warnings for line in wrap(warning)]


def final_table(run: Run, seconds: float) -> str:
    """The result of a run, as a table."""
    trainer, peak = run.trainer, peak_memory()
    last, best = trainer.last, trainer.best
    ended = f": {best.waited} evaluations without a better validation loss" if trainer.is_stuck else ""
    rows = {
        "steps": f"{trainer.step:,} of {trainer.config.steps:,}{ended}",
        "time": format_duration(seconds),
        "speed": _speed(run),
        "loss": f"training {last.train_loss:.4f}, validation {last.val_loss:.4f}" if last else "not evaluated",
        "best": f"validation {best.val_loss:.4f} after step {best.step:,}: {run.best_path}",
        "memory": f"{format_bytes(peak)} at most" if peak else "not known here",
    }
    return "\n".join(["", *table(rows)])


def _speed(run: Run) -> str:
    """The median of the speeds that were logged."""
    try:
        records = [record for record in run.folder.records() if "tokens_per_second" in record]
    except OSError as error:
        return f"not known: {METRICS} cannot be read ({error_text(error)})"
    if not records:
        return "not measured"
    text = f"{np.median([record['tokens_per_second'] for record in records]):,.0f} tokens a second"
    rates = [record["operations_per_second"] for record in records if record.get("operations_per_second") is not None]
    if rates and run.trainer.speed.peak:
        rate = float(np.median(rates))
        peak = max(run.trainer.speed.peak, rate)  # a resumed run may have been on a faster machine before
        text += f": {rate / peak:.0%} of what large matrix products reach here, {peak / 1e9:,.0f} GFLOP/s"
    return text
