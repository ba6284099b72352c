"""The curve that everybody looks at first: loss over steps. Matplotlib is optional, and asked for only here."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOW_TO_GET_IT = "loss.png needs matplotlib: pip install 'tensorlite[plot]'."


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_losses(records: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Draw the records of metrics.jsonl: the loss of single batches as a faint line, both evaluations on top of it.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws to memory: needs no display, changes no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    curves: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("loss", "training, single batches", {"color": "0.8", "linewidth": 1}),
        ("train_loss", "training", {"color": "C0", "marker": "o", "markersize": 3}),
        ("val_loss", "validation", {"color": "C1", "marker": "o", "markersize": 3}),
    )
    for name, label, style in curves:
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel="step", ylabel="loss in nats a token", title=title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(path, dpi=150)
