"""A matrix times a few vectors on the GPU: a layer of a step that writes one more token of each text, without gradients.

cuBLAS multiplies few rows well, but the norm before the product, and the bias, the activation and the residual sum after it are then a
kernel each. In a step of one token a kernel takes some microseconds whatever it computes, so this one does all of them (matvec.cu).
"""

from __future__ import annotations

from typing import NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel
from tensorlite.kernels.cuda.rows import WARP

BLOCK = 128  # threads: four rows of the matrix
MOST_ROWS = 8  # vectors for one reading of the matrix: each needs registers in every thread
CURVES = {"none": "Identity", "relu": "Relu", "gelu": "Gelu", "gelu_tanh": "GeluTanh", "swiglu": "Silu"}
NORMS = {"none": 0, "rmsnorm": 1, "layernorm": 2}


class Layer(NamedTuple):
    """A linear layer, and the norm of its input.

    Attributes:
        weight: (out, in), float32, in row-major order.
        bias: (out,).
        norm: one of `NORMS`.
        gamma, beta, eps: of the norm; both arrays are (in,).
    """

    weight: Array
    bias: Array | None = None
    norm: str = "none"
    gamma: Array | None = None
    beta: Array | None = None
    eps: float = 0.0


def matvec(x: Array, layer: Layer, activation: str = "none", add_to: Array | None = None) -> Array:
    """What the layer makes of the rows of x, after the activation: (N, in) -> (N, out); with ``swiglu`` (N, out / 2).

    Args:
        activation: one of `CURVES`.
        add_to: (N, out), to which the result is added in place; without it the result is a new array.
    """
    (rows, inputs), gated = x.shape, activation == "swiglu"
    outputs = len(layer.weight) // (2 if gated else 1)
    y = array_module(x).empty((rows, outputs), "float32") if add_to is None else add_to
    read = layer.weight, x, layer.gamma, layer.beta
    aligned = inputs % 4 == 0 and all(array is None or array.data.ptr % 16 == 0 for array in read)
    at_once = min(rows, MOST_ROWS)
    blocks = -(-outputs // (BLOCK // WARP)) * -(-rows // at_once)
    run = kernel("matvec.cu", "matvec", Curve=CURVES[activation], Gated=int(gated), Rows=at_once, Wide=4 if aligned else 1)
    norm = NORMS[layer.norm], layer.gamma, layer.beta, float(layer.eps)
    run(blocks, BLOCK, (layer.weight, x, *norm, layer.bias, y, rows, inputs, outputs, int(add_to is not None)))
    return y
