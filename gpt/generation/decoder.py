"""The model on plain arrays, one new token at a time, with a cache of keys and values.

In a block, earlier tokens act on a later one through their keys and values only. No token sees a later one, so these do not change when
the text gets longer. A `Decoder` keeps them: a new token then takes one row through the model instead of all rows so far.

The decoder is always given the whole context. It compares the ids with those whose keys and values it has, keeps the common prefix and
computes the rest. A crop shifts every position, so then there is no common prefix and the whole window is computed again. That is the price
of learned positions, and the reason why text beyond block_size is slower.

This page computes `gpt.model.GPT.logits` at the last position, up to rounding: sums are taken in another order. `rounding` bounds the
difference, so that a caller can evaluate the model itself where it could matter.

For one row of a small model, a call from Python takes longer than the arithmetic, so there are few calls: what can be computed beforehand
is computed in `gpt.generation.folding`, and time is the first axis, (T, B, C), not the batch. The rows of a new token then lie together,
and their queries, keys and values are written directly into the cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpt.generation.activation import make_activation
from gpt.generation.folding import Linear, apply_linear, fold_block
from gpt.model import GPT, MLP, Block, CausalSelfAttention, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array, array_module, device_of

_LAYERS = {GPT, Block, CausalSelfAttention, MLP, nn.Linear, nn.Embedding, nn.LayerNorm, nn.Dropout}
_LAYERS |= {nn.ModuleList, nn.ReLU, nn.GELU}
FIRST_ROOM = 256  # tokens
_QUERIES = 64  # at once: their scores then fit into a core's cache


def supports(model: LanguageModel) -> bool:
    """Whether `Decoder` knows every layer of ``model``: a GPT in which no layer or forward has been replaced."""
    return all(type(module) in _LAYERS and "forward" not in vars(module) for module in model.modules())


class FoldedGPT:
    """What the decoders of one text (`Decoder`) and of many (`gpt.generation.batch_decoder.BatchDecoder`) share: the weights, folded, and
    the parts of a block on plain arrays. `gpt.generation.llama_decoder.LlamaArithmetic` replaces them for the other family.

    The weights are the model's own arrays; after changing them, call `reset`.

    Raises:
        TypeError: for a model that is not supported, see `supports`.
    """

    def __init__(self, model: LanguageModel) -> None:
        if not self.knows(model):
            raise TypeError("the decoder only knows the layers of gpt.model.GPT; evaluate the model itself.")
        assert isinstance(model, GPT)
        self.model = model
        self.config = model.config
        self.reset()

    @staticmethod
    def knows(model: LanguageModel) -> bool:
        """Whether this decoder can stand for ``model``; see `supports`."""
        return supports(model)

    def reset(self) -> None:
        """Take the weights that the model has now, and forget what was computed with others."""
        self._take_weights()

    def _take_weights(self) -> None:
        model, weight, C = self.model, self.model.wte.weight.array, self.config.n_embd
        self._positions = (model.wpe.weight if self.config.positions == "learned" else model.waves).array
        self._blocks: Any = [fold_block(block) for block in model.h]
        self._lm_head = Linear.from_layer(model.lm_head)
        self._activate = make_activation(self.config.activation, weight)
        self._average = array_module(weight).full(C, 1 / C, weight.dtype)
        self._take_embedding(weight)

    def _take_embedding(self, weight: Array) -> None:
        """The table of embeddings, and constants of its dtype on its device."""
        self._wte, self._xp, self._device = weight, array_module(weight), device_of(weight)
        self._ones = self._xp.ones((self.config.block_size, 1), weight.dtype)
        self._mask = self._xp.triu(self._xp.full((_QUERIES, _QUERIES), -math.inf, weight.dtype), 1)  # added to scores: later tokens

    def rounding(self, logits: Array) -> float:
        """A generous bound on the difference between these logits and the model's own: 128 units in the last place of the largest."""
        largest = max(float(logits.max()), -float(logits.min()))  # of the sizes, without an array of them
        return 128 * float(np.finfo(logits.dtype).eps) * max(1.0, largest)

    def _larger_room(self, room: int, length: int) -> int:
        """For how many tokens a cache gets memory that had some for ``room``, and is to hold ``length``.

        With room for the whole context from the start, the shortest text would take several MB in each block, because Linux gives memory
        for large arrays in pages of 2 MB.
        """
        return min(self.config.block_size, max(length, 2 * room, FIRST_ROOM))

    def _embed(self, ids: Array, places: Array) -> Array:
        """The first vectors of tokens (N,) at their places: (N, C)."""
        x = self._wte[ids] + self._positions[places]
        x -= x.dot(self._average)[:, None]
        return x

    def _project(self, x: Array, block: Any, places: Array) -> tuple[Array, Array]:
        """The queries (N, H · D) of the rows x (N, C), scaled by 1/√D; their keys and values side by side (N, 2 · KV · D)."""
        qkv = apply_linear(self._normalize(x, block.eps_1), block.c_attn)
        return qkv[:, : self.config.n_embd], qkv[:, self.config.n_embd :]

    def _add_block(self, x: Array, y: Array, block: Any) -> Array:
        """x after the rest of its block, in place: attention's output y (N, C) goes through c_proj, and then x through the MLP."""
        x += apply_linear(y, block.attn_c_proj)
        h = apply_linear(self._normalize(x, block.eps_2), block.c_fc)
        x += apply_linear(self._activate(h), block.mlp_c_proj)
        return x

    def _head(self, x: Array) -> Array:
        """The logits of rows that have gone through all blocks: (N, C) -> (N, V)."""
        ln_f: Any = self.model.ln_f
        y = self._normalize(x, ln_f.eps) * ln_f.weight.array
        if ln_f.bias is not None:
            y += ln_f.bias.array
        return apply_linear(y, self._lm_head)

    def _normalize(self, x: Array, eps: float) -> Array:
        """x / √(mean(x²) + eps) for rows whose mean is 0."""
        if len(x) == 1 and self._xp is np:  # Python is faster with a number than NumPy with an array that has one
            row = x[0]
            return x * (1 / math.sqrt(row.dot(row) / row.size + eps))
        return x / self._xp.sqrt((x * x).dot(self._average) + eps)[:, None]

    def _attend(self, q: Array, k: Array, v: Array, hidden: Array | None = None) -> Array:
        """softmax(q k) v, where the last query is that of the last key, and each group of H / KV heads of queries shares k and v.

        ``hidden`` (B, 1, 1, end), for T = 1, is added to the scores: -inf where a text that is shorter than others has no key.

        Shapes: q (B, H, T, D), k (B, KV, D, end), v (B, KV, end, D); returns (T · B, H · D).
        """
        (B, H, T, D), (KV, _, end) = q.shape, k.shape[1:]
        if T > _QUERIES:
            parts = [(slice(i, i + _QUERIES), end - T + min(i + _QUERIES, T)) for i in range(0, T, _QUERIES)]
            return self._xp.concatenate([self._attend(q[:, :, part], k[..., :seen], v[:, :, :seen]) for part, seen in parts])
        if KV < H:
            q = q.reshape(B, KV, H // KV * T, D)  # the queries of a group are rows of one product, so no key is copied
        scores = q @ k
        if T > 1:
            scores.reshape(B, H, T, end)[..., -T:] += self._mask[:T, :T]
        if hidden is not None:
            scores += hidden
        scores -= scores.max(axis=-1, keepdims=True)
        weights = self._xp.exp(scores, out=scores)
        y = weights @ v
        y /= weights @ self._ones[:end]
        return y.reshape(B, H, T, D).transpose(2, 0, 1, 3).reshape(T * B, H * D)


class Decoder(FoldedGPT):
    """``decoder(context)`` is the model's logits after ``context``: (B, T) -> (B, V)."""

    def reset(self) -> None:
        """Empty the cache, and take the weights that the model has now."""
        super().reset()
        self.ids = np.empty((0, 0), np.int64)  # (B, T), those whose keys and values are in the cache

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
            self._allocate(B)
        known = min(self._common_prefix(context), T - 1)  # the last row is always computed: its logits are returned
        new = context[:, known:]
        if new.min() < 0 or new.max() >= self.config.vocab_size:
            raise IndexError(f"ids go from 0 to {self.config.vocab_size - 1}, got {new.min()} to {new.max()}.")
        self.ids = self.ids[:, :known]
        logits = self._advance(new, known)
        self.ids = context.copy()
        return logits

    def _common_prefix(self, context: np.ndarray) -> int:
        """How many ids at the start are the same as in the last call, in every row."""
        shared = min(self.ids.shape[1], context.shape[1])
        same = self.ids[:, :shared] == context[:, :shared]
        return shared if same.all() else int(same.all(axis=0).argmin())

    def _allocate(self, B: int) -> None:
        config, weight = self.config, self.model.wte.weight.array
        L, T, H = config.n_layer, config.block_size, config.n_head
        self._cache = self._xp.empty((L, T, B, 3 * config.n_embd), weight.dtype)
        q, k, v = self._cache.reshape(L, T, B, 3, H, -1).transpose(3, 0, 2, 4, 1, 5)
        self._queries, self._keys, self._values = q, k.swapaxes(-1, -2), v  # views: (L, B, H, T, D), (L, B, H, D, T), (L, B, H, T, D)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        """The logits after ``ids`` (B, T), which are at the positions from ``start`` on."""
        B, T = ids.shape
        end, last = start + T, self._blocks[-1]
        x = self._wte[self._device.asarray(ids.T)] + self._positions[start:end, None]  # (T, B, C)
        x = x.reshape(T * B, -1)
        x -= x.dot(self._average)[:, None]
        new = self._cache[:, start:end].reshape(len(self._blocks), T * B, -1)
        queries, keys, values = self._queries[..., start:end, :], self._keys[..., :end], self._values[..., :end, :]
        for block, qkv, q, k, v in zip(self._blocks, new, queries, keys, values, strict=True):
            apply_linear(self._normalize(x, block.eps_1), block.c_attn, out=qkv)
            if block is last:  # only its last row is used
                q, x = q[..., -1:, :], x[-B:]
            x += apply_linear(self._attend(q, k, v), block.attn_c_proj)
            h = apply_linear(self._normalize(x, block.eps_2), block.c_fc)
            x += apply_linear(self._activate(h), block.mlp_c_proj)
        return self._head(x)
