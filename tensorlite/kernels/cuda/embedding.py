"""The embedding on the GPU: CuPy looks the rows up, and a kernel adds the gradients of repeated tokens without losing any.

The kernel adds them in the order of the batch, in whatever order its threads run, so the bits are always the same. There is no
nondeterministic variant. One with atomicAdd would be no faster where it matters: with a small vocabulary, the additions to the same few
numbers wait for each other.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.embedding import EmbeddingSaved, embedding

BLOCK = 256
BLOCKS = 4096  # about as many as keep a GPU busy; a smaller vocabulary splits the batch into stretches
WIDEST = 8192  # numbers in a row: their sums take 32 KB of shared memory
NONE = -1  # no row is skipped


def embedding_forward(ids: Array, weight: Array, padding_idx: int | None = None) -> tuple[Array, EmbeddingSaved]:
    """y = weight[ids]. Saves ids. They were checked on the CPU, because CuPy silently wraps an index that is out of range."""
    return weight[ids], EmbeddingSaved(ids, weight.shape, padding_idx)


def embedding_backward(
    dy: Array, saved: EmbeddingSaved, out: tuple[Array | None, ...] = (None, None), add: tuple[bool, ...] = (False, False)
) -> tuple[None, Array]:
    """dweight[v] = Σ dy over all positions of token v.

    A table that is the head's weight as well has the head's gradient in ``out`` by then: only rows of tokens that occur are added to it.
    """
    ids, (V, C) = saved.ids, saved.shape
    xp, n = array_module(dy), ids.size
    ids, dy = ids.astype(np.int64, copy=False), xp.ascontiguousarray(dy)
    stretches = max(1, min(BLOCKS // V, -(-n // BLOCK)))
    present = xp.zeros(V, "int32")
    kernel("embedding.cu", "mark_present", Real=dy.dtype.name)(min(BLOCKS, -(-n // BLOCK)), BLOCK, (ids, present, n, V))
    home = out[1] if stretches == 1 else None
    dweight = xp.empty((stretches, V, C), "float32") if home is None else home
    skipped = np.int64(NONE if saved.padding_idx is None else saved.padding_idx % V)
    arguments = (ids, present, dy, dweight, n, -(-n // stretches), V, C, skipped, int(home is not None and add[1]))
    kernel("embedding.cu", "embedding_backward", Real=dy.dtype.name)((V, stretches), BLOCK, arguments, shared_bytes=4 * C)
    if home is not None:
        return None, home
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
