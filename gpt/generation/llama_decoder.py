"""The decoder for the family of `gpt.llama`: rotated keys in the cache, and one of them for several queries.

It is `gpt.generation.decoder.Decoder` with another arithmetic between two contexts, and with the same promise: `rounding` bounds the
difference to the model's logits, and where that could change a token the model itself is asked.

Nothing is folded, because an RMSNorm costs one product of a row: the matrices are the model's own, and are in memory once. A matrix
times a single row is a product of BLAS's kind for vectors, which reads the weights at the speed of the memory.

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

from gpt.generation.decoder import Decoder, supports
from gpt.llama import GatedMLP, GroupedSelfAttention
from gpt.model import GPT, Block, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array, array_module, device_of
from tensorlite.ops.grouped_queries import repeat_heads_forward
from tensorlite.ops.rotary import rotate, rotation

_LAYERS = {GPT, Block, GroupedSelfAttention, GatedMLP, nn.Linear, nn.Embedding, nn.RMSNorm, nn.Dropout, nn.ModuleList}


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


class LlamaDecoder(Decoder):
    """``decoder(context)`` is the model's logits after ``context``: (B, T) -> (B, V).

    Raises:
        TypeError: for a model with other layers than those of `gpt.llama`.
    """

    @staticmethod
    def knows(model: LanguageModel) -> bool:
        """Whether every layer is one of `gpt.llama`'s, and no layer or forward has been replaced."""
        return model.config.model == "llama" and all(type(m) in _LAYERS and "forward" not in vars(m) for m in model.modules())

    def reset(self) -> None:
        """Empty the cache, and take the weights that the model has now."""
        model, weight, config = self.model, self.model.wte.weight.array, self.config
        self._xp, self._device = array_module(weight), device_of(weight)
        self._wte, self._lm_head, self._ln_f = weight, model.lm_head.weight.array, _norm(model.ln_f)
        self._blocks: Any = [_weights_of(block) for block in model.h]
        D = config.n_embd // config.n_head
        self._cos, self._sin = rotation(self._xp.empty((config.block_size, D), weight.dtype), config.rope_theta, 0)
        self._ones = self._xp.ones((config.block_size, 1), weight.dtype)
        self._make_mask(weight.dtype)
        self.ids = np.empty((0, 0), np.int64)

    def rounding(self, logits: Array) -> float:
        """Twice that of the decoder for GPT: the gate multiplies two activations, and the errors of both reach the logits."""
        return 2 * super().rounding(logits)

    def _allocate(self, B: int) -> None:
        config, dtype = self.config, self._wte.dtype
        D = config.n_embd // config.n_head
        self._cache = self._xp.empty((config.n_layer, config.block_size, B, 2, config.kv_heads, D), dtype)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        B, T = ids.shape
        end, last = start + T, len(self._blocks) - 1
        x = self._wte[self._device.asarray(ids.T)].reshape(T * B, -1)
        for layer, block in enumerate(self._blocks):
            q = self._queries_of(x, block, self._cache[layer, start:end], start)  # (B, H, T, D)
            if layer == last:  # only its last row is used
                q, x = q[:, :, -1:], x[-B:]
            k, v = self._cache[layer, :end].transpose(2, 1, 3, 0, 4)  # (B, KV, end, D) each
            x += _apply(self._attend_groups(q, k.swapaxes(-1, -2), v), block.attn_c_proj)
            x += _apply(self._gate(_apply(self._rms_norm(x, block.ln_2), block.c_fc)), block.mlp_c_proj)
        return _apply(self._rms_norm(x, self._ln_f), self._lm_head)

    def _queries_of(self, x: Array, block: _Weights, cache: Array, start: int) -> Array:
        """The rotated queries (B, H, T, D) of the rows x (T · B, C); their keys and values are written into ``cache`` (T, B, 2, KV, D)."""
        (T, B, _, KV, D), H = cache.shape, self.config.n_head
        heads = _apply(self._rms_norm(x, block.ln_1), block.c_attn).reshape(T, B, H + 2 * KV, D)
        q, k = heads[:, :, :H], heads[:, :, H : H + KV]
        if block.q_norm is not None and block.k_norm is not None:
            q, k = self._rms_norm(q, block.q_norm), self._rms_norm(k, block.k_norm)
        cos, sin = (table[start : start + T, None, None] for table in (self._cos, self._sin))
        cache[:, :, 0], cache[:, :, 1] = rotate(k, cos, sin), heads[:, :, H + KV :]
        return rotate(q, cos, sin).transpose(1, 2, 0, 3) * self._xp.asarray(1 / math.sqrt(D), x.dtype)

    def _attend_groups(self, q: Array, k: Array, v: Array) -> Array:
        """softmax(q k) v, where several heads of queries (B, H, T, D) share k (B, KV, D, end) and v (B, KV, end, D): (T · B, C)."""
        (B, H, T, D), (KV, end) = q.shape, v.shape[1:3]
        if T > 1:
            return self._attend(q, repeat_heads_forward(k, H // KV)[0], repeat_heads_forward(v, H // KV)[0])
        scores = q.reshape(B, KV, H // KV, D) @ k  # the queries of a group are rows of one product
        scores -= scores.max(axis=-1, keepdims=True)
        weights = self._xp.exp(scores, out=scores)
        y = weights @ v
        y /= weights @ self._ones[:end]
        return y.reshape(B, H * D)

    def _rms_norm(self, x: Array, norm: _Norm) -> Array:
        return x * (1 / self._xp.sqrt((x * x).mean(axis=-1, keepdims=True) + self._xp.asarray(norm.eps, x.dtype))) * norm.weight

    def _gate(self, x: Array) -> Array:
        """silu(gate) · up, for the two halves of each row."""
        half = x.shape[-1] // 2
        gate, up = x[:, :half], x[:, half:]
        with np.errstate(over="ignore"):  # exp(-gate) may be inf; the quotient is then 0, as it should be
            return gate / (1 + self._xp.exp(-gate)) * up


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
