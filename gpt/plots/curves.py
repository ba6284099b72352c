"""The curves of a run: the loss over the steps, and below it the learning rate and the gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt.plots.figure import new_figure, save_figure, style_axes, write_title

Records = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl


def plot_losses(records: Records, path: Path, title: str) -> None:
    """Draw the loss alone: that of single batches as a faint line, and both evaluations.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    _draw_losses(axes, {"": records})
    axes.set(xlabel="step")
    write_title(figure, title)
    save_figure(figure, path)


def plot_runs(runs: Mapping[str, Records], path: Path) -> None:
    """Draw the loss, the learning rate and the gradient's norm of several runs, each in a colour of its own.

    For a single run, the norm is drawn for each layer, if it was logged.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    figure = new_figure(9, 8.5)
    losses, rates, norms = figure.subplots(3, 1, sharex=True, height_ratios=(2, 0.8, 1.4))
    _draw_losses(losses, runs)
    for number, records in enumerate(runs.values()):
        later = len(runs) - 1 - number
        wide = 1.6 + 2 * later / max(1, len(runs) - 1)  # runs often have the same one: then the first is visible behind the last
        rates.plot(*_points(records, "learning_rate"), color=f"C{number}", linewidth=wide)
        norms.plot(*_points(records, "gradient_norm"), color=f"C{number}" if len(runs) > 1 else "0.2", linewidth=1.4, label="all")
    rates.set(ylabel="learning rate", ylim=(0, None))
    rates.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    norms.set(ylabel="norm of the gradient", xlabel="step")
    if any(value > 0 for records in runs.values() for value in _points(records, "gradient_norm")[1]):
        norms.set_yscale("log")
        _label_plainly(norms.yaxis)
    if len(runs) == 1:
        _draw_layers(norms, next(iter(runs.values())))
    for axes in (rates, norms):
        style_axes(axes)
    if len(runs) == 1:
        write_title(figure, next(iter(runs)), size=13)
    save_figure(figure, path)


def _label_plainly(axis: Any) -> None:
    """Write 0.3 at a logarithmic axis, and not 3 · 10 to the -1, at those ticks that Matplotlib would label."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: Any = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter(Plain())
    axis.set_minor_formatter(Plain())


def _draw_losses(axes: Any, runs: Mapping[str, Records]) -> None:
    """Dashed is training, solid is validation, faint are single batches. One run has two colours, several have one each."""
    alone = len(runs) == 1
    dots = {"marker": "o", "markersize": 3.5, "linewidth": 1.6}
    for number, records in enumerate(runs.values()):
        batches, training, validation = ("0.8", "C0", "C1") if alone else (f"C{number}",) * 3
        axes.plot(*_points(records, "loss"), color=batches, alpha=1 if alone else 0.3, linewidth=1, label="training, single batches")
        axes.plot(*_points(records, "train_loss"), "--", color=training, label="training", **dots)
        axes.plot(*_points(records, "val_loss"), color=validation, label="validation", **dots)
    for line in [line for line in axes.lines if not len(line.get_xdata())]:
        line.remove()  # no data, so no line in the legend
    axes.set(ylabel="loss in nats")
    _draw_legend(axes, list(runs))
    style_axes(axes)


def _draw_legend(axes: Any, names: Sequence[str]) -> None:
    """Draw the legend. For several runs it has the colour of each, and once for all the meaning of dashed, solid and faint lines."""
    from matplotlib.lines import Line2D

    handles = list({line.get_label(): line for line in axes.lines}.values())
    if len(names) > 1:
        kinds = [Line2D([], [], color="0.3", label=line.get_label()) for line in handles]
        for kind, line in zip(kinds, handles, strict=True):
            kind.set(linestyle=line.get_linestyle(), linewidth=line.get_linewidth(), alpha=line.get_alpha())
            kind.set(marker=line.get_marker(), markersize=line.get_markersize())
        handles = [Line2D([], [], color=f"C{number}", linewidth=4, label=name) for number, name in enumerate(names)] + kinds
    if handles:
        legend = axes.legend(handles, [str(number) for number in range(len(handles))], frameon=False)
        for text, handle in zip(legend.get_texts(), handles, strict=True):  # set now: Matplotlib leaves out labels that begin with _
            text.set_text(handle.get_label())


def _draw_layers(axes: Any, records: Records) -> None:
    """A line for each layer, the blocks from light (the first) to dark (the last)."""
    import matplotlib

    measured = [record for record in records if record.get("gradient_norms")]
    if not measured:
        return
    names = list(measured[-1]["gradient_norms"])
    blocks = [name for name in names if name.startswith("h.")]
    shades = matplotlib.colormaps["viridis"]
    for name in names:
        style: dict[str, Any] = {"linewidth": 1.0}
        if name in blocks:
            style["color"] = shades(0.9 - 0.8 * blocks.index(name) / max(1, len(blocks) - 1))
        else:
            style["linestyle"] = ":"
        axes.plot([r["step"] for r in measured], [r["gradient_norms"].get(name) for r in measured], label=name, **style)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _points(records: Records, name: str) -> tuple[list[float], list[float]]:
    """Steps and values, of the records that have ``name``."""
    found = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
