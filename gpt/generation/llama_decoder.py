"""The decoder for the family of `gpt.llama`: rotated keys in the cache, and one of them for several queries.

It is `gpt.generation.decoder.Decoder` with another arithmetic between two contexts, and with the same promise: `rounding` bounds the
difference to the model's logits, and where that could change a token the model itself is asked.

Nothing is folded, because an RMSNorm costs one product of a row: the matrices are the model's own, and are in memory once. A matrix
times a single row is a product of BLAS's kind for vectors, which reads the weights at the speed of the memory. What is left of the time
are calls from Python, so there are few, and most of them write into an array that is there already.

A key is rotated by its own position and is then kept. When the context slides, its position in the window changes. The scores would not
mind, because they depend on the distance alone: in the first block all queries and keys turn by the same angle. But the keys of every
later block were computed from vectors that had seen the tokens which have now left, and in the model that reads only the window they have
not. So to keep the cache is the same function in a model of one block, and another function in any other: there the window is computed
again, as in a GPT. ``context_keep`` makes that rare.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from gpt.generation.batch_decoder import BatchDecoder
from gpt.generation.decoder import Decoder, FoldedGPT, supports
from gpt.llama import GatedMLP, GroupedSelfAttention
from gpt.model import GPT, Block, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array
from tensorlite.ops.rotary import rotation

_LAYERS = {GPT, Block, GroupedSelfAttention, GatedMLP, nn.Linear, nn.Embedding, nn.RMSNorm, nn.Dropout, nn.ModuleList}
_PROMPT_ROWS = 256  # of a long prompt, through all blocks at once: their hidden layer then fits into a core's cache


class _Norm(NamedTuple):
    weight: Array
    eps: float


class _Weights(NamedTuple):
    """The model's own arrays of one block; matrices are (out, in)."""

    ln_1: _Norm
    c_attn: Array
    q_norm: _Norm | None
    k_norm: _Norm | None
    attn_c_proj: Array
    ln_2: _Norm
    c_fc: Array
    mlp_c_proj: Array


def make_decoder(model: LanguageModel) -> Decoder | None:
    """A decoder with a cache for the family of ``model``; None for a model with layers that no decoder knows."""
    if LlamaDecoder.knows(model):
        return LlamaDecoder(model)
    return Decoder(model) if supports(model) else None


def make_batch_decoder(model: LanguageModel, slots: int) -> BatchDecoder | None:
    """The same for many texts at once, with a slot for each."""
    if BatchLlamaDecoder.knows(model):
        return BatchLlamaDecoder(model, slots)
    return BatchDecoder(model, slots) if supports(model) else None


class LlamaArithmetic(FoldedGPT):
    """The parts of a block of `gpt.llama` on plain arrays, in the place of those of `FoldedGPT`.

    Raises:
        TypeError: for a model with other layers than those of `gpt.llama`.
    """

    @staticmethod
    def knows(model: LanguageModel) -> bool:
        """Whether every layer is one of `gpt.llama`'s, and no layer or forward has been replaced."""
        return model.config.model == "llama" and all(type(m) in _LAYERS and "forward" not in vars(m) for m in model.modules())

    def rounding(self, logits: Array) -> float:
        """Twice that of the decoder for GPT: the gate multiplies two activations, and the errors of both reach the logits."""
        return 2 * super().rounding(logits)

    def _take_weights(self) -> None:
        model, weight, config = self.model, self.model.wte.weight.array, self.config
        self._take_embedding(weight)
        self._blocks = [_weights_of(block) for block in model.h]
        self._head_weight, self._ln_f = model.lm_head.weight.array, _norm(model.ln_f)
        D = config.n_embd // config.n_head
        cos, sin = rotation(self._xp.empty((config.block_size, D), weight.dtype), config.rope_theta, 0)
        self._cos = self._xp.concatenate([cos, cos], axis=-1)[:, None]  # (block_size, 1, D): for both numbers of each pair
        self._sin = self._xp.concatenate([-sin, sin], axis=-1)[:, None]
        self._scale = 1 / math.sqrt(D)

    def _embed(self, ids: Array, places: Array | slice) -> Array:
        return self._wte[ids]

    def _project(self, x: Array, block: _Weights, places: Array | slice) -> tuple[Array, Array]:
        N, H, KV = len(x), self.config.n_head, self.config.kv_heads
        heads = _apply(self._rms_norm(x, block.ln_1), block.c_attn).reshape(N, H + 2 * KV, -1)  # (N, H + 2 KV, D)
        q, rotated, half = heads[:, :H], heads[:, : H + KV], heads.shape[-1] // 2
        if block.q_norm is not None and block.k_norm is not None:
            k = heads[:, H : H + KV]
            q[...], k[...] = self._rms_norm(q, block.q_norm), self._rms_norm(k, block.k_norm)
        swapped = self._xp.concatenate([rotated[..., half:], rotated[..., :half]], axis=-1)
        swapped *= self._sin[places]
        rotated *= self._cos[places]
        rotated += swapped
        q *= self._scale
        return q.reshape(N, -1), heads[:, H:].reshape(N, -1)

    def _add_block(self, x: Array, y: Array, block: _Weights) -> Array:
        x += _apply(y, block.attn_c_proj)
        x += _apply(self._gate(_apply(self._rms_norm(x, block.ln_2), block.c_fc)), block.mlp_c_proj)
        return x

    def _head(self, x: Array) -> Array:
        return _apply(self._rms_norm(x, self._ln_f), self._head_weight)

    def _rms_norm(self, x: Array, norm: _Norm) -> Array:
        y = x * norm.weight
        if len(x) == 1 and x.ndim == 2 and self._xp is np:  # Python is faster with a number than NumPy with an array that has one
            row = x[0]
            y *= 1 / math.sqrt(row.dot(row) / row.size + norm.eps)
        else:
            y /= self._xp.sqrt((x * x).mean(axis=-1, keepdims=True) + norm.eps)
        return y

    def _gate(self, x: Array) -> Array:
        """silu(gate) · up, for the two halves of each row."""
        half = x.shape[-1] // 2
        gate, up = x[:, :half], x[:, half:]
        y = -gate
        with np.errstate(over="ignore"):  # exp(-gate) may be inf; the quotient is then 0, as it should be
            self._xp.exp(y, out=y)
        y += 1
        self._xp.divide(gate, y, out=y)
        y *= up
        return y


class LlamaDecoder(LlamaArithmetic, Decoder):
    """``decoder(context)`` is the model's logits after ``context``: (B, T) -> (B, V)."""

    def _allocate(self, B: int) -> None:
        config = self.config
        L, T, KV, D = config.n_layer, config.block_size, config.kv_heads, config.n_embd // config.n_head
        self._cache = self._xp.empty((L, T, B, 2 * KV * D), self._wte.dtype)
        k, v = self._cache.reshape(L, T, B, 2, KV, D).transpose(3, 0, 2, 4, 1, 5)
        self._keys, self._values = k.swapaxes(-1, -2), v  # views: (L, B, KV, D, T), (L, B, KV, T, D)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        """The logits after ``ids`` (B, T), which are at the positions from ``start`` on. A long prompt is read in parts."""
        for begin in range(0, ids.shape[1], _PROMPT_ROWS):
            part = ids[:, begin : begin + _PROMPT_ROWS]
            x = self._read(part, start + begin)
        return self._head(x)

    def _read(self, ids: np.ndarray, start: int) -> Array:
        """What the last block makes of the last of ``ids``: (B, C)."""
        (B, T), H = ids.shape, self.config.n_head
        end, last = start + T, self._blocks[-1]
        places: Array | slice = slice(start, end) if B == 1 else self._xp.repeat(self._xp.arange(start, end), B)
        x = self._embed(self._device.asarray(ids.T.reshape(-1)), places)  # (T · B, C), the rows of a place one below the other
        new = self._cache[:, start:end].reshape(len(self._blocks), T * B, -1)
        keys, values = self._keys[..., :end], self._values[..., :end, :]
        for block, cached, k, v in zip(self._blocks, new, keys, values, strict=True):
            q, cached[...] = self._project(x, block, places)
            q = q.reshape(T, B, H, -1).transpose(1, 2, 0, 3)  # (B, H, T, D)
            if block is last:  # only its last row is used
                q, x = q[:, :, -1:], x[-B:]
            x = self._add_block(x, self._attend(q, k, v), block)
        return x


class BatchLlamaDecoder(LlamaArithmetic, BatchDecoder):
    """``decoder(contexts)`` is the model's logits after each context, as for `BatchDecoder`."""


def _apply(x: Array, weight: Array) -> Array:
    """x · weightᵀ for rows (N, in) and weight (out, in)."""
    return weight.dot(x[0])[None] if len(x) == 1 else x.dot(weight.T)


def _norm(layer: Any) -> _Norm:
    return _Norm(layer.weight.array, layer.eps)


def _weights_of(block: Any) -> _Weights:
    attn, mlp = block.attn, block.mlp
    q_norm, k_norm = (_norm(attn.q_norm), _norm(attn.k_norm)) if attn.qk_norm else (None, None)
    arrays = [layer.weight.array for layer in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj)]
    return _Weights(_norm(block.ln_1), arrays[0], q_norm, k_norm, arrays[1], _norm(block.ln_2), *arrays[2:])
