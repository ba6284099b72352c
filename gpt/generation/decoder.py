"""The model on plain arrays, one new token at a time: what every earlier token has to say is remembered.

In a block, earlier tokens speak through their keys and values alone, and because no token sees a later one, these do not change when
the text goes on. So a `Decoder` keeps them: a new token then takes one row through the model instead of all rows so far.

It is only memory. The decoder is always given the whole context; it compares the ids with those it has keys and values for, keeps what
agrees and computes the rest. A crop shifts every position, so then nothing agrees and the whole window is encoded again, as it
must be: that is the price of learned positions, and the reason why text beyond block_size is slower.

What this page computes is `gpt.model.GPT.logits` at the last position, to the rounding of floating point: sums are taken in
another order. `rounding` bounds by how much, so that a caller can ask the model itself wherever that could matter.

A row of a small model is done sooner than Python has asked for it, so there are few calls: what can be done beforehand is done in
`gpt.generation.folding`, and time is the first axis, (T, B, C), not the batch. The rows of a new token then lie together, and their
queries, keys and values are written straight to where they are kept.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt.generation.activation import activation_of
from gpt.generation.folding import Linear, fold, product
from gpt.model import GPT, MLP, Block, CausalSelfAttention, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array, array_module, device_of

_LAYERS = {GPT, Block, CausalSelfAttention, MLP, nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout}
_LAYERS |= {nn.ModuleList, nn.ReLU, nn.GELU}
_QUERIES = 64  # that look back at once: their scores then fit into a core's cache


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
        self.forget()

    def forget(self) -> None:
        """Begin anew with the next context, and with the weights that the model has now."""
        self.ids = self.ids[:, :0]
        model, weight, C = self.model, self.model.wte.weight.array, self.config.n_embd
        self._wte, self._positions = weight, (model.wpe.weight if self.config.positions == "learned" else model.waves).array
        self._blocks = [fold(block) for block in model.h]
        self._lm_head = Linear.of(model.lm_head)
        self._activate = activation_of(self.config.activation, weight)
        self._xp, self._device = array_module(weight), device_of(weight)
        self._average = self._xp.full(C, 1 / C, weight.dtype)
        self._ones = self._xp.ones((self.config.block_size, 1), weight.dtype)
        self._hidden = self._xp.triu(self._xp.full((_QUERIES, _QUERIES), -math.inf, weight.dtype), 1)  # added to scores: what is to come

    def __call__(self, context: np.ndarray) -> Array:
        """The logits that follow the last id of each row.

        Raises:
            ValueError: if there are no ids, or more than block_size.
            IndexError: if an id is not in the vocabulary.
        """
        B, T = context.shape
        if not 0 < T <= self.config.block_size:
            raise ValueError(f"a context has 1 to block_size ({self.config.block_size}) ids, got {T}.")
        if len(self.ids) != B:
            self._make_room(B)
        known = min(self._agreement(context), T - 1)  # the last row is computed in any case: its logits are asked for
        new = context[:, known:]
        if new.min() < 0 or new.max() >= self.config.vocab_size:
            raise IndexError(f"ids go from 0 to {self.config.vocab_size - 1}, got {new.min()} to {new.max()}.")
        self.ids = self.ids[:, :known]
        logits = self._advance(new, known)
        self.ids = context.copy()
        return logits

    def rounding(self, logits: Array) -> float:
        """A bound, with much to spare, on how far these logits are from the model's own: 128 units in the last place of the largest."""
        return 128 * float(np.finfo(logits.dtype).eps) * max(1.0, float(abs(logits).max()))

    def _agreement(self, context: np.ndarray) -> int:
        """How many ids at the start are those of last time, in every row."""
        shared = min(self.ids.shape[1], context.shape[1])
        same = self.ids[:, :shared] == context[:, :shared]
        return shared if same.all() else int(same.all(axis=0).argmin())

    def _make_room(self, B: int) -> None:
        config, weight = self.config, self.model.wte.weight.array
        L, T, H = config.n_layer, config.block_size, config.n_head
        self._memory = self._xp.empty((L, T, B, 3 * config.n_embd), weight.dtype)
        q, k, v = self._memory.reshape(L, T, B, 3, H, -1).transpose(3, 0, 2, 4, 1, 5)
        self._queries, self._keys, self._values = q, k.swapaxes(-1, -2), v  # views: (L, B, H, T, D), (L, B, H, D, T), (L, B, H, T, D)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        """Take ``ids`` (B, T), which stand at positions from ``start`` on, through the model."""
        B, T = ids.shape
        end, last = start + T, self._blocks[-1]
        x = self._wte[self._device.asarray(ids.T)] + self._positions[start:end, None]  # (T, B, C)
        x = x.reshape(T * B, -1)
        x -= x.dot(self._average)[:, None]
        new = self._memory[:, start:end].reshape(len(self._blocks), T * B, -1)
        queries, keys, values = self._queries[..., start:end, :], self._keys[..., :end], self._values[..., :end, :]
        for block, qkv, q, k, v in zip(self._blocks, new, queries, keys, values, strict=True):
            product(self._normalise(x, block.eps_1), block.c_attn, out=qkv)
            if block is last:  # nobody hears any of its rows but the last
                q, x = q[..., -1:, :], x[-B:]
            x += product(self._attend(q, k, v), block.attn_c_proj)
            h = product(self._normalise(x, block.eps_2), block.c_fc)
            x += product(self._activate(h), block.mlp_c_proj)
        ln_f: Any = self.model.ln_f
        y = self._normalise(x, ln_f.eps) * ln_f.weight.array
        if ln_f.bias is not None:
            y += ln_f.bias.array
        return product(y, self._lm_head)

    def _normalise(self, x: Array, eps: float) -> Array:
        """x / √(mean(x²) + eps) for rows whose mean is 0."""
        if len(x) == 1 and self._xp is np:  # Python is faster with a number than NumPy with an array that has one
            row = x[0]
            return x * (1 / math.sqrt(row.dot(row) / row.size + eps))
        return x / self._xp.sqrt((x * x).dot(self._average) + eps)[:, None]

    def _attend(self, q: Array, k: Array, v: Array) -> Array:
        """softmax(q k) v, where the last query is that of the last key.

        Shapes: q (B, H, T, D), k (B, H, D, end), v (B, H, end, D); returns (T · B, C).
        """
        (B, H, T, D), end = q.shape, k.shape[-1]
        if T > _QUERIES:
            parts = [(slice(i, i + _QUERIES), end - T + min(i + _QUERIES, T)) for i in range(0, T, _QUERIES)]
            return self._xp.concatenate([self._attend(q[:, :, part], k[..., :seen], v[:, :, :seen]) for part, seen in parts])
        scores = q @ k
        if T > 1:
            scores[..., -T:] += self._hidden[:T, :T]
        scores -= scores.max(axis=-1, keepdims=True)
        weights = self._xp.exp(scores, out=scores)
        y = weights @ v
        y /= weights @ self._ones[:end]
        return y.transpose(2, 0, 1, 3).reshape(T * B, H * D)
