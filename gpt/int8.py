"""Matrices in 8 bits: a model that is only asked, and not trained, then needs about a quarter of the memory.

    w ≈ q s        32 neighbours of a row share the scale s, in float16; each of them has a whole number q from -127 to 127

These are the blocks Q8_0 of llama.cpp. s is the largest of the 32 divided by 127, so a number moves by at most s/2: 1/254 of the largest of
its block. A tensor that a GGUF file has in Q8_0 keeps its numbers; any other is rounded a second time. A product q s has 18 bits and is
exact in float32. So the model is one of float32 with the weights q s, and what is promised for the decoders of a model holds for this one.

A product widens some rows at a time to float32, in memory that stays in the core's cache. NumPy has no product of 8-bit numbers, and to
widen one takes it longer than to read four bytes: this saves memory and costs time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gpt.errors import fail
from tensorlite import Tensor, nn

BLOCK = 32
_TILE = 2**17  # numbers that are widened at once: 512 KB


class Int8Matrix:
    """A matrix (out, in) of float32 in 8 bits.

    Attributes:
        numbers: (out, in), int8.
        scales: (out, in / 32), float16.

    Raises:
        UserError: if the rows are no blocks of 32, or a number is too large for a scale in float16.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, weight: np.ndarray) -> None:
        rows, columns = weight.shape
        if columns % BLOCK:
            fail(f"--int8 needs matrices with rows of a multiple of {BLOCK} numbers, and this model has one of {rows:,} x {columns:,}.")
        self.shape = weight.shape
        self.numbers, self.scales = np.empty(weight.shape, np.int8), np.empty((rows, columns // BLOCK), np.float16)
        for part in self._tiles():
            blocks = np.asarray(weight[part], np.float32).reshape(-1, columns // BLOCK, BLOCK)
            with np.errstate(over="ignore"):
                self.scales[part] = abs(blocks).max(axis=-1) / 127
            scales = self.scales[part].astype(np.float32)[..., None]
            if not np.isfinite(scales).all():
                fail("--int8 cannot hold these weights: some are not finite or above 8 million. Use the model without --int8.")
            self.numbers[part] = np.rint(blocks / np.where(scales == 0, 1, scales)).clip(-127, 127).reshape(-1, columns)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Some rows, widened to float32: rows of a table of embeddings, or a tile."""
        numbers = self.numbers[rows].astype(np.float32)
        blocks = numbers.reshape(*numbers.shape[:-1], -1, BLOCK)
        blocks *= self.scales[rows].astype(np.float32)[..., None]
        return numbers

    def dot(self, x: np.ndarray) -> np.ndarray:
        """The product with a vector (in,) or a matrix (in, N).

        With a vector the product of each block is multiplied by its scale, which is one number instead of 32: 1.6 times as fast.
        """
        y = np.empty((self.shape[0], *x.shape[1:]), np.float32)
        for rows in self._tiles():
            if x.ndim == 1:
                blocks = self.numbers[rows].astype(np.float32).reshape(-1, *self.scales.shape[1:], BLOCK)  # (rows, in / 32, 32)
                products = blocks.swapaxes(0, 1) @ x.reshape(-1, BLOCK, 1)  # (in / 32, rows, 1)
                np.einsum("brx,rb->r", products, self.scales[rows].astype(np.float32), out=y[rows])
            else:
                np.dot(self[rows], x, out=y[rows])
        return y

    def _tiles(self) -> list[slice]:
        rows, columns = self.shape
        step = max(1, _TILE // columns)
        return [slice(start, start + step) for start in range(0, rows, step)]


class Int8Linear(nn.Module):
    """y = x · matrixᵀ + bias, without a gradient."""

    def __init__(self, matrix: Int8Matrix, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.matrix.dot(x.array.reshape(-1, x.shape[-1]).T).T
        if self.bias is not None:
            y += self.bias.array
        return Tensor.wrap(y.reshape(*x.shape[:-1], -1))


class Int8Embedding(nn.Module):
    """y = matrix[ids], without a gradient."""

    def __init__(self, matrix: Int8Matrix) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, ids: Tensor) -> Tensor:
        return Tensor.wrap(self.matrix[ids.array])


def to_int8(model: Any, packed: Mapping[str, Int8Matrix] | None = None) -> Any:
    """``model`` with all its matrices in 8 bits; they are replaced one by one, and a shared one stays shared.

    Args:
        packed: those that are in 8 bits already, by name.

    Raises:
        UserError: if the model is not one of Llama's family, or one that `Int8Matrix` cannot hold.
    """
    if model.config.model != "llama":
        fail("--int8 is for models of Llama's family; leave it out for this one.")
    matrices = {id(tensor.array): packed[name] for name, tensor in model.state_dict().items() if packed and name in packed}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear | nn.Embedding):
                weight = layer.weight.array
                if id(weight) not in matrices:
                    matrices[id(weight)] = Int8Matrix(weight)
                matrix = matrices[id(weight)]
                setattr(parent, name, Int8Linear(matrix, layer.bias) if isinstance(layer, nn.Linear) else Int8Embedding(matrix))
    return model
