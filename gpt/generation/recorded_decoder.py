"""The decoders on a GPU: what computes one new token is recorded as a CUDA graph, and launched for each token.

A token takes five small kernels in each block. Python needs longer to queue them than the GPU to compute them, so the step is recorded
once. Between two launches only three rows of numbers change on the device: the tokens, their places, and where a text without a new token
has its place.

    x = the new token of each text                                (texts, C)
    in each block:  qkv = c_attn(ln_1(x))                         a product with its norm, activation and sum is one kernel, `matvec`
                    x += c_proj(attend_cached(qkv))               the one kernel that knows the cache
                    x += mlp.c_proj(activation(mlp.c_fc(ln_2(x))))
    logits = lm_head(ln_f(x))                                     (texts, V), which the host reads

The weights are the model's own, so one page does for both families. A prompt takes the same way through the model's layers, with all its
tokens at once, and unrecorded.
The promise is that of `gpt.generation.decoder`: `rounding` bounds the difference to the model's logits, and where that could change a
token the model itself is asked.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, NamedTuple

import numpy as np

import tensorlite as tl
from gpt.generation.batch_decoder import BatchDecoder
from gpt.generation.decoder import FIRST_ROOM, Decoder, FoldedGPT, supports
from gpt.generation.inference_mode import inference_mode
from gpt.generation.llama_decoder import LlamaArithmetic
from gpt.model import GPT, LanguageModel
from tensorlite import Tensor, nn
from tensorlite.backend import Array, array_module, device_of, to_numpy
from tensorlite.kernels.cuda.cached_attention import LARGEST_HEAD, LARGEST_ROOM, attend_cached
from tensorlite.kernels.cuda.graph import CaptureError, Recorder, Recording
from tensorlite.kernels.cuda.matvec import Layer, matvec
from tensorlite.nn import functional as F
from tensorlite.ops.rotary import rotation
from tensorlite.precision import use_precision

NONE = -1  # the place of a text without a new token
WARM_UP = 2  # plain steps before the recording: they compile the kernels and fill the pool


class _BlockLayers(NamedTuple):
    """The four linear layers of a block."""

    c_attn: Layer
    attn_c_proj: Layer
    c_fc: Layer
    mlp_c_proj: Layer


class CachedModel:
    """A model on a GPU with the keys and values of several texts.

    Args:
        texts: how many.

    Attributes:
        room: for how many tokens of each text there is memory.
    """

    def __init__(self, model: GPT, texts: int) -> None:
        self.model, self.config, self.texts = model, model.config, texts
        weight = model.wte.weight.array
        self._xp, self._device = array_module(weight), device_of(weight)
        self._new = self._xp.zeros((3, texts), np.int64)  # tokens; places, -1 for none; places again, 0 for none
        self._rotation: tuple[Array, Array] | None = None
        if model.config.model == "llama":
            D = model.config.n_embd // model.config.n_head
            self._rotation = rotation(self._xp.empty((model.config.block_size, D), np.float32), model.config.rope_theta, 0)
        self._layers = [_layers_of(block) for block in model.h]
        self._head = _layer(model.lm_head, model.ln_f)
        self._activation = "swiglu" if model.config.model == "llama" else model.config.activation
        self._why_plain: str | None = None
        self._keys: Array = None
        self._values: Array = None
        self.room = 0
        self.make_room(1)

    def make_room(self, tokens: int) -> None:
        """Let every text have that many tokens, at least; those that are there stay.

        With room for the whole context from the start, a short text would take as much memory as a long one. A recorded step has the
        addresses of the cache, so it is recorded again when that grows, which is rare: by the factor two at least.
        """
        if tokens <= self.room:
            return
        config, room = self.config, min(self.config.block_size, max(tokens, 2 * self.room, FIRST_ROOM))
        L, KV, D = config.n_layer, config.kv_heads, config.n_embd // config.n_head
        keys = self._xp.empty((L, self.texts, KV, D, room), np.float32)
        values = self._xp.empty((L, self.texts, KV, room, D), np.float32)
        if self.room:
            keys[..., : self.room], values[..., : self.room, :] = self._keys, self._values
        self._keys, self._values, self.room = keys, values, room
        self._recorder: Recorder | None = None
        self._recording: Recording[Array] | None = None
        self._warm = 0

    def read(self, text: slice, ids: np.ndarray, start: int) -> np.ndarray:
        """The logits after ``ids`` (B, T), several new tokens from the place ``start`` on of the B texts of a slice: (B, V)."""
        (B, T), H, KV = ids.shape, self.config.n_head, self.config.kv_heads
        end, last = start + T, len(self.model.h) - 1
        with self._computing():
            places = self._xp.arange(start, end)
            visible = Tensor(self._xp.arange(end) <= places[:, None])  # (T, end)
            x = self._embed(Tensor(self._device.asarray(ids)), places)  # (B, T, C)
            for layer, block in enumerate(self.model.h):
                heads = block.attn.c_attn(block.ln_1(x)).reshape(B, T, H + 2 * KV, -1).transpose(1, 2)
                q, k, v = self._normalized(block.attn, heads).split([H, KV, KV], dim=1)  # (B, H or KV, T, D)
                if self._rotation:
                    q, k = (F.rotary_embedding(part, self.config.rope_theta, start) for part in (q, k))
                keys, values = self._keys[layer, text, ..., :end], self._values[layer, text, :, :end]
                keys[..., start:], values[:, :, start:] = k.array.swapaxes(-1, -2), v.array
                if layer == last:  # only its last row is used
                    q, x, visible = q[:, :, -1:], x[:, -1:], visible[-1:]
                whole = start == 0 and q.shape[2] == end
                seen = {"is_causal": True} if whole else {"attn_mask": visible}
                y = F.scaled_dot_product_attention(q, Tensor(keys.swapaxes(-1, -2)), Tensor(values), enable_gqa=True, **seen)
                x = x + block.attn.c_proj(y.transpose(1, 2).reshape(*x.shape))
                x = x + block.mlp(block.ln_2(x))
            return to_numpy(self.model.lm_head(self.model.ln_f(x[:, -1])).array)

    def step(self, tokens: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The logits after one new token of each text, (texts, V). A place of -1 is that of a text without one; its row means nothing."""
        self._new[...] = self._device.asarray(np.stack([tokens, places, np.maximum(places, 0)]))
        if self._why_plain is None and self._recorder is None:
            self._recorder = Recorder()
        if self._recorder is None:
            return to_numpy(self._compute())
        if self._warm < WARM_UP:
            self._warm += 1
            return to_numpy(self._recorder.run(self._compute))
        if self._recording is None:
            try:
                self._recording = self._recorder.record(self._compute)
            except CaptureError as error:
                self._why_plain, self._recorder = str(error), None
                warnings.warn(f"generation is slower than it could be, because its step cannot be recorded: {error}", stacklevel=2)
                return to_numpy(self._compute())
        self._recording.launch()
        return to_numpy(self._recording.result)

    def _compute(self) -> Array:
        tokens, places, positions = self._new
        with self._computing():
            x = self._embed(Tensor(tokens), positions).array  # (texts, C)
            for block, layers, keys, values in zip(self.model.h, self._layers, self._keys, self._values, strict=True):
                qkv = matvec(x, layers.c_attn)  # (texts, (H + 2 KV) D)
                if self.config.qk_norm:
                    heads = qkv.reshape(self.texts, self.config.n_head + 2 * self.config.kv_heads, 1, -1)
                    qkv = self._normalized(block.attn, Tensor(heads)).array.reshape(qkv.shape)
                y = attend_cached(qkv, self.config.n_head, places, keys, values, self._rotation)
                matvec(y, layers.attn_c_proj, add_to=x)
                matvec(matvec(x, layers.c_fc, self._activation), layers.mlp_c_proj, add_to=x)
            return matvec(x, self._head)

    def _embed(self, ids: Tensor, places: Array) -> Tensor:
        x = self.model.wte(ids)
        if self.config.model == "llama":
            return x
        table = self.model.wpe.weight if self.config.positions == "learned" else self.model.waves
        return x + Tensor(table.array[places])

    def _normalized(self, attn: Any, heads: Tensor) -> Tensor:
        """Heads (texts, H + 2 KV, T, D) after the QK-norm, if the model has one."""
        if not self.config.qk_norm:
            return heads
        q, k, v = heads.split([self.config.n_head, self.config.kv_heads, self.config.kv_heads], dim=1)
        return tl.cat([attn.q_norm(q), attn.k_norm(k), v], dim=1)

    def _computing(self) -> Any:
        """Eval mode, off the tape, in float32."""
        modes = contextlib.ExitStack()
        modes.enter_context(inference_mode(self.model))
        modes.enter_context(use_precision("float32"))
        return modes


class OnGPU(FoldedGPT):
    """What the two decoders below share."""

    @staticmethod
    def knows(model: LanguageModel) -> bool:
        """A model of float32 on a GPU, with the layers that the other decoders know."""
        weight = next(iter(model.parameters())).array
        config = model.config
        return (
            array_module(weight) is not np
            and all(parameter.dtype == np.float32 for parameter in model.parameters())
            and (LlamaArithmetic.knows(model) or supports(model))
            and config.n_embd // config.n_head <= LARGEST_HEAD
            and config.block_size <= LARGEST_ROOM
        )

    def rounding(self, logits: Array) -> float:
        """Twice that of the decoder for GPT: the gate of a Llama multiplies two activations, and the errors of both reach the logits."""
        return 2 * super().rounding(logits)

    def _take_weights(self) -> None:
        """The model's own layers are called."""


class RecordedDecoder(OnGPU, Decoder):
    """``decoder(context)`` is the model's logits after ``context``: (B, T) -> (B, V), on the host."""

    def _allocate(self, B: int) -> None:
        assert isinstance(self.model, GPT)
        self._cached = CachedModel(self.model, B)
        self.ids = np.empty((B, 0), np.int64)

    def _advance(self, ids: np.ndarray, start: int) -> Array:
        (B, T), cached = ids.shape, self._cached
        cached.make_room(start + T)
        return cached.step(ids[:, 0], np.full(B, start)) if T == 1 else cached.read(slice(B), ids, start)


class BatchRecordedDecoder(OnGPU, BatchDecoder):
    """``decoder(contexts)`` is the model's logits after each context, as for `BatchDecoder`, on the host.

    A text with several new tokens, which is one that has just come, is read by itself. All others take one step together.
    """

    def _take_weights(self) -> None:
        assert isinstance(self.model, GPT)
        self._cached = CachedModel(self.model, self.slots)

    @property
    def _room(self) -> int:
        return self._cached.room

    def _allocate(self, room: int) -> None:
        self._cached.make_room(room)

    def _truncate(self, slot: int, length: int) -> None:
        self._ids[slot] = self._ids[slot][:length]  # what the cache has behind it is not read

    def _advance(self, slots: list[int], known: list[int], contexts: list[np.ndarray]) -> Array:
        tokens, places = np.zeros(self.slots, np.int64), np.full(self.slots, NONE)
        logits: dict[int, np.ndarray] = {}
        for slot, start, context in zip(slots, known, contexts, strict=True):
            if len(context) == start + 1:
                tokens[slot], places[slot] = context[-1], start
            else:
                logits[slot] = self._cached.read(slice(slot, slot + 1), context[None, start:], start)[0]
        if len(logits) < len(slots):
            stepped = self._cached.step(tokens, places)
            logits |= {slot: stepped[slot] for slot in slots if places[slot] != NONE}
        return np.stack([logits[slot] for slot in slots])


def _layers_of(block: Any) -> _BlockLayers:
    attn, mlp = block.attn, block.mlp
    return _BlockLayers(_layer(attn.c_attn, block.ln_1), _layer(attn.c_proj), _layer(mlp.c_fc, block.ln_2), _layer(mlp.c_proj))


def _layer(linear: Any, norm: Any = None) -> Layer:
    """A linear layer and the norm before it, as `matvec` reads them: the model's own arrays."""
    weight, bias = array_module(linear.weight.array).ascontiguousarray(linear.weight.array), _array(linear.bias)
    if norm is None:
        return Layer(weight, bias)
    kind, beta = ("rmsnorm", None) if isinstance(norm, nn.RMSNorm) else ("layernorm", _array(norm.bias))
    return Layer(weight, bias, kind, norm.weight.array, beta, norm.eps)


def _array(parameter: Any) -> Array | None:
    return None if parameter is None else parameter.array
