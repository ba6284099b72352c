"""The attention weights for a prompt, in every head of every block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import tensorlite as tl
from gpt.llama import GroupedSelfAttention
from gpt.model import GPT, CausalSelfAttention
from gpt.plots.figure import new_figure, save_figure, write_title
from tensorlite import Tensor
from tensorlite.ops.grouped_queries import repeat_heads

LABELLED = 64  # a prompt of more tokens has no labels


@tl.no_grad()
def attention_weights(model: GPT, ids: np.ndarray) -> np.ndarray:
    """softmax(q · kᵀ / √D) over the tokens so far, for each block and head; (T,) -> (L, H, T, T); each row sums to 1.

    The blocks are applied one by one, as in the model's forward, and queries and keys are computed in between.
    The model stays in its mode: call ``eval()`` before, or dropout is applied.
    """
    x = embed_ids(model, ids)
    maps = []
    for block in model.h:
        q, k = _queries_and_keys(block.attn, block.ln_1(x))  # (1, H, T, D) each
        maps.append(_causal_softmax((q @ k.transpose(-2, -1))[0] / math.sqrt(q.shape[-1])))
        x = block(x)
    return np.stack(maps)


def last_attention_weights(attn: CausalSelfAttention | GroupedSelfAttention, x: Tensor) -> np.ndarray:
    """softmax(q · kᵀ / √D) for the query of the last token, of vectors x as attention gets them: (1, T, C) -> (H, T)."""
    q, k = _queries_and_keys(attn, x)  # (1, H, T, D) each
    scores = (q[0, :, -1:] * k[0]).sum(dim=-1).numpy() / math.sqrt(q.shape[-1])
    values = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def embed_ids(model: GPT, ids: np.ndarray) -> Tensor:
    """The tokens (T,) as the first block gets them: (1, T, C)."""
    return embed(model, model.wte(tl.tensor(ids[None], device=next(iter(model.parameters())).device)))


def embed(model: GPT, vectors: Tensor) -> Tensor:
    """The vectors of the tokens as the first block gets them, in a GPT with those of their positions: (B, T, C)."""
    if model.config.model == "llama":
        return model.drop(vectors)
    positions = model.wpe.weight if model.config.positions == "learned" else model.waves
    return model.drop(vectors + positions[: vectors.shape[1]])


def _queries_and_keys(attn: CausalSelfAttention | GroupedSelfAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    """The query and the key of each token in each head; a key that several heads share is there for each of them."""
    if isinstance(attn, GroupedSelfAttention):
        q, k, _ = attn.queries_keys_values(x)
        return q, repeat_heads(k, attn.n_head // attn.n_kv_head)
    heads = attn.c_attn(x).reshape(*x.shape[:2], 3, attn.n_head, -1)
    q, k, _ = heads.permute(2, 0, 3, 1, 4)
    return q, k


def plot_attention(maps: np.ndarray, tokens: Sequence[str], path: Path, title: str = "") -> None:
    """Draw the maps (L, H, T, T), a row of pictures for each block and one picture for each head.

    In a picture, a row is a token that attends, and a column is a token that it attends to. Small weights are drawn darker than in
    proportion; otherwise a head that spreads its attention would look empty.

    Raises:
        ImportError: without matplotlib.
        OSError: if ``path`` cannot be written.
    """
    layers, heads, T, _ = maps.shape
    side = min(4.2, max(1.7, 0.085 * T))
    figure = new_figure(heads * side + 1.2, layers * side + 0.9)
    from matplotlib.colors import PowerNorm

    grid = figure.subplots(layers, heads, squeeze=False)
    names = [_show_whitespace(token) for token in tokens]
    later = ~np.tri(T, dtype=bool)  # masked: left white
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
    bar.set_label("attention weight", fontsize=9)
    write_title(figure, title, size=11)
    save_figure(figure, path)


def _causal_softmax(scores: Tensor) -> np.ndarray:
    """(H, T, T) -> (H, T, T): 0 above the diagonal, where later tokens are."""
    values = scores.numpy()
    values = np.where(np.tri(values.shape[-1], dtype=bool), values, -np.inf)
    values = np.exp(values - values.max(axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def _show_whitespace(token: str) -> str:
    """White space as visible characters."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
