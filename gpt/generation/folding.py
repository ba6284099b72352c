"""Fold layer norms into the matrices around them: what does not depend on x is computed once.

    ln(x) Wᵀ + b = ((x - mean x) / σ · γ + β) Wᵀ + b        σ² = mean((x - mean x)²) + ε

γ multiplies the columns of W and β adds W β to b, whatever x is. The mean can be removed beforehand, too. A block only *adds* to x: if
the embeddings and everything that a c_proj adds have mean 0, so has x. They may be shifted to mean 0, because every use of x begins
with a layer norm, which subtracts the mean anyway. What is left to do with x is a division by its root mean square:

    ln(x) Wᵀ + b = x / σ · W'ᵀ + b'        σ² = mean(x²) + ε        W' = W γ,  b' = b + W β

Attention's 1/√D goes into the queries' part of W' in the same way. For one row of a small model this halves the time. The matrices of the
blocks are then stored twice, the second time in the order of `gpt.generation.memory_order`; the embeddings and the head are not.

Source: Ashkboos et al. 2024, "SliceGPT", section 3.2 (a transformer with LayerNorm turned into one with RMSNorm).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpt.generation.memory_order import longer_side_contiguous
from tensorlite import nn
from tensorlite.backend import Array


class Linear(NamedTuple):
    """x · weight + bias, with weight (in, out)."""

    weight: Array
    bias: Array | None

    @classmethod
    def from_layer(cls, layer: nn.Linear) -> Linear:
        """The layer's own arrays, nothing folded in."""
        return cls(layer.weight.array.T, None if layer.bias is None else layer.bias.array)


class FoldedBlock(NamedTuple):
    """The four linear layers of a block: queries, keys and values; the output of attention; both feed-forward layers."""

    eps_1: float
    c_attn: Linear
    attn_c_proj: Linear
    eps_2: float
    c_fc: Linear
    mlp_c_proj: Linear


def apply_linear(x: Array, layer: Linear, out: Array | None = None) -> Array:
    """x · weight + bias for rows (N, in)."""
    weight, bias = layer
    y = x.dot(weight, out=out)  # for one row of a small model in half the time of @
    if bias is not None:
        y += bias
    return y


def fold_block(block: nn.Module) -> FoldedBlock:
    """The linear layers of ``block``, a `gpt.model.Block`; they take normalized rows of mean 0, and return what is added to x."""
    attn, mlp = block.attn, block.mlp
    c_attn = _fold_layernorm(block.ln_1, attn.c_attn)
    C = attn.c_attn.in_features
    for array in c_attn:
        if array is not None:
            array[..., :C] *= 1 / math.sqrt(C // attn.n_head)
    c_fc = _fold_layernorm(block.ln_2, mlp.c_fc)
    return FoldedBlock(block.ln_1.eps, c_attn, _center_output(attn.c_proj), block.ln_2.eps, c_fc, _center_output(mlp.c_proj))


def _fold_layernorm(norm: Any, layer: nn.Linear) -> Linear:
    """``layer`` after ``norm``: γ multiplies the rows of the weight (in, out), and β W is added to the bias."""
    weight, bias = Linear.from_layer(layer)
    if norm.bias is not None:
        shift = norm.bias.array @ weight
        bias = shift if bias is None else bias + shift
    elif bias is not None:
        bias = bias.copy()
    return Linear(longer_side_contiguous(weight * norm.weight.array[:, None]), bias)


def _center_output(layer: nn.Linear) -> Linear:
    """``layer``, with its output shifted so that every row has mean 0."""
    weight, bias = Linear.from_layer(layer)
    centered = longer_side_contiguous(weight - weight.mean(axis=1, keepdims=True))
    return Linear(centered, None if bias is None else bias - bias.mean())
