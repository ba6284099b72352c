"""The embedding on the GPU: rows are looked up by CuPy, and the gradients of repeated tokens added by a kernel that loses none.

It adds them in the order of the batch, whatever the GPU does first: the same bits every time. There is no second, undeterministic way;
the one with atomicAdd would be no faster where it matters, since a small vocabulary makes the additions queue for the same few numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.embedding import embedding

BLOCK = 256
BLOCKS = 4096  # about as many as keep a GPU busy; a vocabulary below that shares the batch out in stretches
WIDEST = 8192  # numbers in a row: their sums take 32 KB of shared memory
NONE = -1  # no row is skipped


def embedding_forward(ids: Array, weight: Array, padding_idx: int | None = None) -> tuple[Array, Any]:
    """y = weight[ids]. Saves ids. They were checked before they came to the GPU, where one out of range would wrap around unseen."""
    return weight[ids], (ids, weight.shape, padding_idx)


def embedding_backward(dy: Array, saved: Any) -> tuple[None, Array]:
    """dweight[v] = Σ dy over all places where token v stands."""
    ids, (V, C), padding_idx = saved
    xp, n = array_module(dy), ids.size
    ids, dy = ids.astype(np.int64, copy=False), xp.ascontiguousarray(dy)
    stretches = max(1, min(BLOCKS // V, -(-n // BLOCK)))
    present = xp.zeros(V, "int32")
    kernel("embedding.cu", "mark_present", Real=dy.dtype.name)(min(BLOCKS, -(-n // BLOCK)), BLOCK, (ids, present, n, V))
    dweight = xp.empty((stretches, V, C), "float32")
    skipped = np.int64(NONE if padding_idx is None else padding_idx % V)
    arguments = (ids, present, dy, dweight, n, -(-n // stretches), V, C, skipped)
    kernel("embedding.cu", "embedding_backward", Real=dy.dtype.name)((V, stretches), BLOCK, arguments, shared_bytes=4 * C)
    return None, dweight[0] if stretches == 1 else sum_rows(dweight.reshape(stretches, V * C)).reshape(V, C)


def supports(ids: Array, weight: Array, padding_idx: int | None = None) -> bool:
    """A table in float32 and integer ids; rows of up to `WIDEST` numbers, whose sums fit in shared memory."""
    return (
        on_gpu(weight, types=("float32",))
        and on_gpu(ids, types=("int64", "int32", "uint16", "uint8"))
        and weight.ndim == 2
        and weight.size > 0
        and weight.shape[1] <= WIDEST
    )


register(embedding, Pair("cuda", embedding_forward, embedding_backward, supports))
