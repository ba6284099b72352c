"""Figures as files. Matplotlib is optional and imported only here, when something is drawn."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from data.files import write_atomically

HOW_TO_GET_IT = "needs matplotlib: pip install 'tensorlite[plot]'."
FORMATS = (".png", ".svg")


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches. It needs no display, and changes no global state.

    Raises:
        ImportError: without matplotlib.
    """
    _import_without_a_display()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_title(figure: Any, text: str, size: float = 12) -> None:
    """Write ``text`` above everything, cut to the width of the figure."""
    room = int(figure.get_figwidth() * 72 / (0.62 * size))  # a letter is some 0.62 of its height wide
    figure.suptitle(text if len(text) <= room else f"{text[: room - 1]}…", fontsize=size)


def save_figure(figure: Any, path: Path) -> None:
    """Write a .png or .svg file. The same figure gives the same bytes. Text is drawn as it is: a dollar begins no formula.

    Raises:
        OSError: if it cannot be written; a file that existed is then unchanged.
    """
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(text.get_text().encode("utf-8", "replace").decode())  # a file name may have bytes that are not UTF-8
    content = io.BytesIO()
    is_svg = path.suffix == ".svg"
    with matplotlib.rc_context({"svg.hashsalt": "tensorlite"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # Matplotlib draws a box for an unknown character
        figure.savefig(content, format="svg" if is_svg else "png", dpi=150, metadata={"Date": None} if is_svg else None)
    write_atomically(path, content.getvalue())


def style_axes(axes: Any) -> None:
    """A faint grid, and no box."""
    axes.grid(alpha=0.25, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _import_without_a_display() -> None:
    """Import Matplotlib. It refuses a backend that is not installed, and a notebook sets its own for all programs (MPLBACKEND)."""
    if "matplotlib" in sys.modules:
        return
    chosen = os.environ.get("MPLBACKEND")
    os.environ["MPLBACKEND"] = "agg"
    try:
        import matplotlib  # noqa: F401
    finally:
        del os.environ["MPLBACKEND"]
        if chosen is not None:
            os.environ["MPLBACKEND"] = chosen
