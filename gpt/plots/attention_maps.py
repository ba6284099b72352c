"""Who looks at whom: the weights of attention for a prompt, in every head of every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tensorlite as tl
from gpt.model import GPT
from gpt.plots.figure import new_figure, save_figure, write_title
from tensorlite import Tensor

LABELLED = 64  # tokens, at most, that have their letters beside the picture


@tl.no_grad()
def attention_weights(model: GPT, ids: np.ndarray) -> np.ndarray:
    """softmax(q · kᵀ / √D) over what came before, for each block and head; (T,) -> (L, H, T, T), each row sums to 1.

    The model is walked through block by block, as its own forward does it; only in between the queries and keys are looked at.
    It stays in the mode it is in: call ``eval()`` before, or dropout takes part.
    """
    T, config = len(ids), model.config
    heads = (T, 3, config.n_head, config.n_embd // config.n_head)
    positions = model.wpe.weight if config.positions == "learned" else model.waves
    x = model.drop(model.wte(tl.tensor(ids[None], device=positions.device)) + positions[:T])  # (1, T, C)
    maps = []
    for block in model.h:
        q, k, _ = block.attn.c_attn(block.ln_1(x))[0].reshape(*heads).permute(1, 2, 0, 3)  # each (H, T, D)
        maps.append(_causal_softmax(q @ k.transpose(-2, -1) / math.sqrt(heads[-1])))
        x = block(x)
    return np.stack(maps)


def plot_attention(maps: np.ndarray, tokens: Sequence[str], path: Path, title: str = "") -> None:
    """Draw the maps (L, H, T, T), a row of pictures for each block and one picture for each head.

    In a picture a row is a token that reads, and a column one that is read. Small weights are drawn darker than in proportion,
    or a head that spreads its attention could not be told from one that pays none.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    layers, heads, T, _ = maps.shape
    side = min(4.2, max(1.7, 0.085 * T))
    figure = new_figure(heads * side + 1.2, layers * side + 0.9)
    from matplotlib.colors import PowerNorm

    grid = figure.subplots(layers, heads, squeeze=False)
    names = [_visible(token) for token in tokens]
    later = ~np.tri(T, dtype=bool)  # nobody can look there: left white
    for (layer, head), axes in np.ndenumerate(grid):
        image = axes.imshow(
            np.ma.masked_array(maps[layer, head], later), cmap="magma_r", norm=PowerNorm(0.5, 0, 1), interpolation="nearest"
        )
        axes.set_xticks([])
        axes.set_yticks([])
        if layer == 0:
            axes.set_title(f"head {head}", fontsize=9)
        if head == 0:
            axes.set_ylabel(f"block {layer}", fontsize=9)
        if T <= LABELLED:
            size = min(8.0, side * 72 / T * 0.85)
            if layer == layers - 1:
                axes.set_xticks(range(T), names, fontsize=size, family="monospace", rotation=90 if max(map(len, names)) > 1 else 0)
            if head == 0:
                axes.set_yticks(range(T), names, fontsize=size, family="monospace")
            axes.tick_params(length=0, pad=1.5)
    bar = figure.colorbar(image, ax=grid, shrink=0.6, pad=0.01, ticks=(0, 0.05, 0.25, 0.5, 1))
    bar.set_label("how much a row reads of a column", fontsize=9)
    write_title(figure, title, size=11)
    save_figure(figure, path)


def _causal_softmax(scores: Tensor) -> np.ndarray:
    """(H, T, T) -> (H, T, T): above the diagonal is what comes later, and 0."""
    values = scores.numpy()
    values = np.where(np.tri(values.shape[-1], dtype=bool), values, -np.inf)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def _visible(token: str) -> str:
    """White space as signs that can be seen."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
