"""The activation functions and their derivatives, drawn by the engine itself: the forward gives one line, the backward the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

import tensorlite as tl
from gpt.plots.figure import new_figure, save_figure, style_axes
from tensorlite import Tensor
from tensorlite.nn import functional as F

ACTIVATIONS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "relu": ("max(x, 0)", F.relu),
    "sigmoid": ("1 / (1 + exp(-x))", F.sigmoid),
    "tanh": ("(exp(x) - exp(-x)) / (exp(x) + exp(-x))", F.tanh),
    "gelu": ("x · Φ(x)", F.gelu),
    "gelu_tanh": ("x · Φ(x), approximated by tanh", lambda x: F.gelu(x, approximate="tanh")),
    "silu": ("x · sigmoid(x)", F.silu),
}


def activation_curve(function: Callable[[Tensor], Tensor], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f(x) and f'(x). The function is elementwise, so the gradient of the sum of all outputs is the derivative at each x."""
    points = tl.tensor(x, requires_grad=True)
    y = function(points)
    y.backward(tl.ones_like(y))
    assert points.grad is not None
    return y.detach().numpy(), points.grad.numpy()


def plot_activations(path: Path) -> None:
    """Draw all of them, side by side on the same axes.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    x = np.linspace(-4, 4, 801)
    figure = new_figure(10, 6)
    grid = figure.subplots(2, 3, sharex=True, sharey=True)
    for axes, (name, (formula, function)) in zip(grid.flat, ACTIVATIONS.items(), strict=True):
        y, slope = activation_curve(function, x)
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.axvline(0, color="0.6", linewidth=0.8)
        axes.plot(x, y, color="C0", linewidth=2, label="f(x)")
        axes.plot(x, slope, color="C1", linewidth=1.6, linestyle="--", label="f′(x)")
        axes.set_title(f"{name}:  {formula}", fontsize=9.5)
        axes.set(ylim=(-1.2, 2.2), xlim=(-4, 4))
        style_axes(axes)
    grid[0, 0].legend(frameon=False, loc="upper left")
    save_figure(figure, path)
