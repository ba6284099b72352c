"""The decoder for the family of `gpt.llama`: rotated keys in the cache, and one of them for several queries.

It is `gpt.generation.decoder.Decoder` with another arithmetic between two contexts, and with the same promise: `rounding` bounds the
difference to the model's logits, and where that could change a token the model itself is asked.

Nothing is folded, because an RMSNorm costs one product of a row: the matrices are the model's own, and are in memory once. A matrix
times a single row is a product of BLAS's kind for vectors, which reads the weights at the speed of the memory;
`gpt.generation.memory_order` lays them out for it. What is left of the time are calls from Python, so there are few, and most of them
write into an array that is there already.

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
from gpt.generation.decoder import Decoder, FoldedGPT
from gpt.generation.memory_order import with_padding
from gpt.int8 import Int8Embedding, Int8Linear, Int8Matrix
from gpt.llama import GatedMLP, GroupedSelfAttention
from gpt.model import GPT, Block, LanguageModel
from tensorlite import nn
from tensorlite.backend import Array
from tensorlite.ops.rotary import rotation

_LAYERS = {GPT, Block, GroupedSelfAttention, GatedMLP, nn.Linear, nn.Embedding, nn.RMSNorm, nn.Dropout, nn.ModuleList}
_LAYERS |= {Int8Linear, Int8Embedding}
_FEW_ROWS = 128  # with contiguous rows, a weight is then multiplied faster as the left factor: BLAS makes no copy of it in its own order
_PROMPT_ROWS = 256  # of a long prompt, through all blocks at once: their hidden layer then fits into a core's cache


class _Norm(NamedTuple):
    weight: Array
    eps: float


class _Weights(NamedTuple):
    """The model's own arrays of one block; matrices are (out, in), in float32 or in 8 bits."""

    ln_1: _Norm
    c_attn: Array | Int8Matrix
    q_norm: _Norm | None
    k_norm: _Norm | None
    attn_c_proj: Array | Int8Matrix
    attn_c_proj_padded: Array | Int8Matrix  # with what lies behind it, see `memory_order.pad_for_two_threads`
    ln_2: _Norm
    c_fc: Array | Int8Matrix
    mlp_c_proj: Array | Int8Matrix


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
        model, config = self.model, self.config
        self._blocks = [_weights_of(block) for block in model.h]
        self._head_weight, self._ln_f = _matrix(model.lm_head), _norm(model.ln_f)
        self._take_embedding(self._ln_f.weight)
        self._wte = _matrix(model.wte)
        D = config.n_embd // config.n_head
        cos, sin = rotation(self._xp.empty((config.block_size, D), self._wte.dtype), config.rope_theta, 0)
        self._cos = self._xp.concatenate([cos, cos], axis=-1)[:, None]  # (block_size, 1, D): for both numbers of each pair
        self._sin = self._xp.concatenate([-sin, sin], axis=-1)[:, None]
        self._scale = 1 / math.sqrt(D)

    def _embed(self, ids: Array, places: Array | slice) -> Array:
        return self._wte[ids]

    def _project(self, x: Array, block: _Weights, places: Array | slice) -> tuple[Array, Array]:
        N, H, KV = len(x), self.config.n_head, self.config.kv_heads
        heads = apply_weight(self._rms_norm(x, block.ln_1), block.c_attn).reshape(N, H + 2 * KV, -1)  # (N, H + 2 KV, D)
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
        x += apply_weight(y, block.attn_c_proj)
        x += apply_weight(self._gate(apply_weight(self._rms_norm(x, block.ln_2), block.c_fc)), block.mlp_c_proj)
        return x

    def _head(self, x: Array) -> Array:
        return apply_weight(self._rms_norm(x, self._ln_f), self._head_weight)

    def _rms_norm(self, x: Array, norm: _Norm) -> Array:
        if len(x) == 1 and x.ndim == 2 and self._xp is np:
            return _normalize_row(x[0], norm)[None]
        y = x * norm.weight
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
        self.ids = np.empty((B, 0), np.int64)
        self._enlarge(self._larger_room(0, 0))

    def _enlarge(self, room: int) -> None:
        """A cache for texts of up to ``room`` tokens, with the keys and values of those that have been read."""
        config, (B, known) = self.config, self.ids.shape
        L, KV, D = config.n_layer, config.kv_heads, config.n_embd // config.n_head
        keys = self._xp.empty((L, B, KV, D, room), self._wte.dtype)
        values = self._xp.empty((L, B, KV, room, D), self._wte.dtype)
        if known:
            keys[..., :known], values[..., :known, :] = self._keys[..., :known], self._values[..., :known, :]
        self._keys, self._values = keys, values

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        """The logits after ``ids`` (B, T), which are at the positions from ``start`` on. A long prompt is read in parts."""
        room, end = self._keys.shape[-1], start + ids.shape[1]
        if end > room:
            self._enlarge(self._larger_room(room, end))
        if ids.size == 1 and self._xp is np and not self.config.qk_norm:
            return self._head(self._read_token(int(ids[0, 0]), start))
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
        for block, k, v in zip(self._blocks, self._keys[..., :end], self._values[..., :end, :], strict=True):
            q, keys_values = self._project(x, block, places)
            new = keys_values.reshape(T, B, 2, *k.shape[1:3])  # (T, B, 2, KV, D)
            k[..., start:], v[..., start:, :] = new[:, :, 0].transpose(1, 2, 3, 0), new[:, :, 1].transpose(1, 2, 0, 3)
            q = q.reshape(T, B, H, -1).transpose(1, 2, 0, 3)  # (B, H, T, D)
            if block is last:  # only its last row is used
                q, x = q[:, :, -1:], x[-B:]
            x = self._add_block(x, self._attend(q, k, v), block)
        return x

    def _read_token(self, token: int, place: int) -> Array:
        """`_read` for one token of one text, in fewer calls: (1, C).

        While a product reads its weights, all else leaves the core's cache, so each call after it costs several times what it
        costs in a loop of its own. A rotation is therefore one product with a matrix (D, D), the same for all blocks.
        """
        H, KV, D = self.config.n_head, self.config.kv_heads, self._values.shape[-1]
        turn = np.diag(self._cos[place, 0]) + np.roll(np.diag(self._sin[place, 0]), D // 2, axis=0)
        turn_scaled = turn * self._wte.dtype.type(self._scale)
        x, ones = self._wte[token].copy(), self._ones[: place + 1]
        for block, k, v in zip(self._blocks, self._keys[:, 0, ..., : place + 1], self._values[:, 0, :, : place + 1], strict=True):
            heads = block.c_attn.dot(_normalize_row(x, block.ln_1)).reshape(H + 2 * KV, D)
            k[..., place], v[:, place] = heads[H : H + KV].dot(turn), heads[H + KV :]
            scores = heads[:H].dot(turn_scaled).reshape(KV, H // KV, D) @ k
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            y = scores @ v
            y /= scores @ ones
            x += block.attn_c_proj_padded.dot(y.reshape(-1))[: len(x)]
            hidden = block.c_fc.dot(_normalize_row(x, block.ln_2))
            x += block.mlp_c_proj.dot(self._gate(hidden[None])[0])
        return x[None]


class BatchLlamaDecoder(LlamaArithmetic, BatchDecoder):
    """``decoder(contexts)`` is the model's logits after each context, as for `BatchDecoder`."""


def apply_weight(x: Array, weight: Array | Int8Matrix) -> Array:
    """x · weightᵀ for rows (N, in) and weight (out, in)."""
    if len(x) == 1:
        return weight.dot(x[0])[None]
    if isinstance(weight, Int8Matrix) or (len(x) <= _FEW_ROWS and weight.flags.c_contiguous):
        return weight.dot(x.T).T
    return x.dot(weight.T)


def _normalize_row(x: Array, norm: _Norm) -> Array:
    """x (C,), normalized: Python is faster with a number than NumPy with an array that has one."""
    y = x * norm.weight
    y *= 1 / math.sqrt(x.dot(x) / x.size + norm.eps)
    return y


def _norm(layer: Any) -> _Norm:
    return _Norm(layer.weight.array, layer.eps)


def _matrix(layer: Any) -> Any:
    """(out, in), or a table of embeddings."""
    return layer.matrix if isinstance(layer, Int8Linear | Int8Embedding) else layer.weight.array


def _weights_of(block: Any) -> _Weights:
    attn, mlp = block.attn, block.mlp
    q_norm, k_norm = (_norm(attn.q_norm), _norm(attn.k_norm)) if attn.qk_norm else (None, None)
    c_attn, attn_c_proj, c_fc, mlp_c_proj = (_matrix(layer) for layer in (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj))
    padded = with_padding(attn_c_proj)
    return _Weights(_norm(block.ln_1), c_attn, q_norm, k_norm, attn_c_proj, padded, _norm(block.ln_2), c_fc, mlp_c_proj)
