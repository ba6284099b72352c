"""Attention of one new token in each text, whose earlier keys and values are in a cache: for generation, without gradients.

The kernel reads from the device where a text ends, so the launch can be a part of a CUDA graph: `gpt.generation.recorded_decoder`.
"""

from __future__ import annotations

import math

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel

THREADS = 1024  # of a block: many, because one block must bring all keys of its head, and each thread waits for the memory
LARGEST_HEAD = 256
LARGEST_ROOM = 23_000  # tokens: their scores are in shared memory, of which a block may have 99 KB on every GPU since Ampere


def attend_cached(qkv: Array, n_head: int, places: Array, keys: Array, values: Array, rotation: tuple[Array, Array] | None = None) -> Array:
    """y = softmax(q · kᵀ / √D) · v over the keys up to the text's place, with the new key and value, which are written into the cache.

    Args:
        qkv: what the layer before attention makes of the new token of each text: queries, keys and values side by side.
        places: the position of the new token of each text; -1 for a text without one, for which nothing is computed or written.
        keys, values: the cache of this layer.
        rotation: the cosines and sines of all positions, for rotary positions; each (positions, D/2).

    Shapes: qkv (B, (H + 2 KV) D) float32, places (B,) int64, keys (B, KV, D, room), values (B, KV, room, D), y (B, H D).
    """
    B, KV, D, room = keys.shape
    y = array_module(qkv).empty((B, n_head * D), "float32")
    q, k, v = qkv[:, : n_head * D], qkv[:, n_head * D : -KV * D], qkv[:, -KV * D :]
    cosines, sines = rotation or (None, None)
    run = kernel("cached_attention.cu", "attend_cached", THREADS=THREADS, HEAD_SIZE=D)
    arrays = q, k, v, np.int64(qkv.shape[1]), cosines, sines, places, keys, values, y
    run(B * n_head, THREADS, (*arrays, n_head, n_head // KV, room, 1 / math.sqrt(D)), shared_bytes(room, D))
    return y


def shared_bytes(room: int, D: int) -> int:
    """Bytes of shared memory in a block: scores, the query and the new key, and the parts of the sum of values."""
    return 4 * (room + 2 * D + THREADS)
