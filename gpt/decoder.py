"""The model on plain arrays, one new token at a time: what every earlier token has to say is remembered.

In a block, earlier tokens speak through their keys and values alone, and because no token sees a later one, these do not change when
the text goes on. So a `Decoder` keeps them: a new token then takes one row through the model instead of all rows so far.

It is only memory. The decoder is always given the whole context; it compares the ids with those it has keys and values for, keeps what
agrees and computes the rest. A crop shifts every position, so then nothing agrees and the whole window is encoded again, as it
must be: that is the price of learned positions, and the reason why text beyond block_size is slower.

What this page computes is `gpt.model.GPT.logits` at the last position, to the rounding of floating point: sums are taken in
another order. `rounding` bounds by how much, so that a caller can ask the model itself wherever that could matter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt.model import GPT, MLP, Block, CausalSelfAttention, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array, array_module, device_of
from tensorlite.op import choose
from tensorlite.ops.activation import gelu

_LAYERS = {GPT, Block, CausalSelfAttention, MLP, nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout}
_LAYERS |= {nn.ModuleList, nn.ReLU, nn.GELU}


def supports(model: LanguageModel) -> bool:
    """Whether `Decoder` knows every layer of ``model``: a GPT in which none has been replaced or been given another forward."""
    return all(type(module) in _LAYERS and "forward" not in vars(module) for module in model.modules())


class Decoder:
    """``decoder(context)`` is what ``model`` predicts to follow ``context``: (B, T) -> (B, V).

    The weights are the model's own arrays; after changing them, `forget` what was computed with the old ones.

    Raises:
        TypeError: for a model with layers that are not `supports`-ed.
    """

    def __init__(self, model: LanguageModel) -> None:
        if not supports(model):
            raise TypeError("this decoder knows the layers of gpt.model.GPT alone; ask the model itself.")
        assert isinstance(model, GPT)
        self.model = model
        self.config = model.config
        self.ids = np.empty((0, 0), np.int64)  # (B, T), those that keys and values are there for
        weight = model.wte.weight.data
        self._average = array_module(weight).full(self.config.n_embd, 1 / self.config.n_embd, weight.dtype)

    def forget(self) -> None:
        """Begin anew with the next context."""
        self.ids = self.ids[:, :0]

    def __call__(self, context: np.ndarray) -> Array:
        """The logits that follow the last id of each row.

        Raises:
            ValueError: if there are no ids, or more than block_size.
            IndexError: if an id is not in the vocabulary.
        """
        B, T = context.shape
        if not 0 < T <= self.config.block_size:
            raise ValueError(f"a context has 1 to block_size ({self.config.block_size}) ids, got {T}.")
        if context.min() < 0 or context.max() >= self.config.vocab_size:
            raise IndexError(f"ids go from 0 to {self.config.vocab_size - 1}, got {context.min()} to {context.max()}.")
        if len(self.ids) != B:
            self._make_room(B)
        known = min(self._agreement(context), T - 1)  # the last row is computed in any case: its logits are asked for
        self.ids = self.ids[:, :known]
        logits = self._advance(context[:, known:], known)
        self.ids = context.copy()
        return logits

    def rounding(self, logits: Array) -> float:
        """A bound, with much to spare, on how far these logits are from the model's own: 128 units in the last place of the largest."""
        return 128 * float(np.finfo(logits.dtype).eps) * max(1.0, float(abs(logits).max()))

    def _agreement(self, context: np.ndarray) -> int:
        """How many ids at the start are those of last time, in every row."""
        shared = min(self.ids.shape[1], context.shape[1])
        differs = (self.ids[:, :shared] != context[:, :shared]).any(axis=0)
        return int(differs.argmax()) if differs.any() else shared

    def _make_room(self, B: int) -> None:
        weight, config = self.model.wte.weight.data, self.config
        room = (config.n_layer, 2, B, config.n_head, config.block_size, config.n_embd // config.n_head)
        self.keys_and_values = array_module(weight).empty(room, weight.dtype)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        """Take ``ids`` (B, T), which stand at positions from ``start`` on, through the model."""
        model, T = self.model, ids.shape[1]
        positions = (model.wpe.weight if self.config.positions == "learned" else model.waves).data
        x = model.wte.weight.data[device_of(positions).asarray(ids)] + positions[start : start + T]  # (B, T, C)
        last = len(model.h) - 1
        for i, block in enumerate(model.h):
            a = self._attend(block.attn, self._normalise(x, block.ln_1), self.keys_and_values[i], start, only_last=i == last)
            x = x[:, -a.shape[1] :] + a
            x += self._think(block.mlp, self._normalise(x, block.ln_2))
        return _linear(self._normalise(x[:, -1], model.ln_f), model.lm_head)

    def _attend(self, attn: CausalSelfAttention, x: Array, keys_and_values: Array, start: int, only_last: bool) -> Array:
        """Attention of the new rows to all rows so far. In the last block nobody hears any but the last row: only it asks."""
        (B, T, C), H = x.shape, attn.n_head
        end, xp = start + T, array_module(x)
        qkv = _linear(x, attn.c_attn).reshape(B, T, 3, H, C // H)
        keys_and_values[:, :, :, start:end] = qkv[:, :, 1:].transpose(2, 0, 3, 1, 4)  # (2, B, H, T, D)
        k, v = keys_and_values[:, :, :, :end]
        if only_last:
            qkv, T = qkv[:, -1:], 1
        q = qkv[:, :, 0].transpose(0, 2, 1, 3)  # (B, H, T, D)
        scores = (q @ k.swapaxes(-1, -2)) * (1 / math.sqrt(C // H))  # (B, H, T, end)
        if T > 1:
            scores[..., ~xp.tri(T, end, end - T, dtype=bool)] = -math.inf
        scores -= scores.max(axis=-1, keepdims=True)
        weights = xp.exp(scores, out=scores)
        y = (weights @ v) / weights.sum(axis=-1, keepdims=True)
        return _linear(y.transpose(0, 2, 1, 3).reshape(B, T, C), attn.c_proj)

    def _think(self, mlp: MLP, x: Array) -> Array:
        h = _linear(x, mlp.c_fc)
        if self.config.activation == "relu":
            h = array_module(h).maximum(h, 0)
        else:
            options = {"approximate": "tanh" if self.config.activation == "gelu_tanh" else "none"}
            h, _ = choose(gelu, [h], options).forward(h, **options)
        return _linear(h, mlp.c_proj)

    def _normalise(self, x: Array, norm: Any) -> Array:
        """Layer normalisation; a mean is a product with 1/C everywhere, which takes a third of the time for a single row."""
        centred = x - (x @ self._average)[..., None]
        variance = (centred * centred) @ self._average
        centred *= (1 / array_module(x).sqrt(variance + norm.eps))[..., None]
        centred *= norm.weight.data
        if norm.bias is not None:
            centred += norm.bias.data
        return centred


def _linear(x: Array, layer: nn.Linear) -> Array:
    """x · weightᵀ + bias, with all rows in one matrix."""
    y = x.reshape(-1, x.shape[-1]) @ layer.weight.data.T
    if layer.bias is not None:
        y += layer.bias.data
    return y.reshape(*x.shape[:-1], y.shape[-1])
