"""The feed-forward network on the GPU: gelu and its slope are applied to products that have not left the registers.

Forward, cuBLASLt's epilogue GELU_AUX_BIAS writes h and gelu(h) from one product. Backward, DGELU multiplies dy · weight by gelu'(h)
before it is written. So only products, and the sum for its bias, read or write the hidden layer, which is four times as wide as any
other. Both epilogues are used in a half precision, for gelu by tanh, from Hopper on. Elsewhere, and where cuBLASLt has no algorithm,
the same functions run as for three ops: the products, and the kernels of `kernels.cuda.activation`.

Which GPUs: llm.c's default (train_gpt2.cu, gelu_fusion: 2 from compute capability 9.0 on, else 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda import activation, cublaslt
from tensorlite.kernels.cuda import linear as layer
from tensorlite.kernels.cuda.cast import cast
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.gemm import gemm, gemm_with_epilogue
from tensorlite.kernels.cuda.linear import RoundedSaved, linear_backward, linear_forward
from tensorlite.kernels.cuda.padding import padded_columns, padded_rows, padded_width
from tensorlite.op import Pair, register
from tensorlite.ops.feedforward import feedforward
from tensorlite.precision import half_dtype

FUSED_FROM = 90  # compute capability, of Hopper; docs/gpu.md says how to measure whether it should be higher
EIGHT = 8  # numbers: aux has rows of a multiple of them


class FusedSaved(NamedTuple):
    """What backward needs of the forward."""

    hidden: RoundedSaved
    h: Array  # (rows, hidden), before gelu
    output: RoundedSaved  # its rows are gelu(h)
    approximate: str
    is_fused: bool


def feedforward_forward(
    x: Array, hidden_weight: Array, hidden_bias: Array | None, weight: Array, bias: Array | None, approximate: str = "none"
) -> tuple[Array, FusedSaved]:
    """y = gelu(x · hidden_weightᵀ + hidden_bias) · weightᵀ + bias. Saves x, h and gelu(h), and the weights as they were multiplied."""
    shape = (math.prod(x.shape[:-1]), len(hidden_weight))
    is_fused = fuses(x, hidden_weight, hidden_bias, weight, approximate)
    found = _hidden_in_one_product(x, hidden_weight, hidden_bias, shape) if is_fused and hidden_bias is not None else None
    if found is None:
        h, hidden = linear_forward(x, hidden_weight, hidden_bias)
        h = array_module(x).ascontiguousarray(h.reshape(shape))
        activated, _ = activation.gelu_forward(h, approximate)
    else:
        activated, h, hidden = found
    y, output = linear_forward(activated, weight, bias)
    return y.reshape(*x.shape[:-1], len(weight)), FusedSaved(hidden, h, output, approximate, is_fused)


def feedforward_backward(
    dy: Array,
    saved: FusedSaved,
    needs_grad: tuple[bool, ...] = (True,) * 5,
    out: tuple[Array | None, ...] = (None,) * 5,
    add: tuple[bool, ...] = (False,) * 5,
) -> tuple[Array | None, ...]:
    """dh = (dy · weight) ∘ gelu'(h), and the gradients of two linear layers."""
    rows, (xp, h) = padded_rows(dy), (array_module(dy), saved.h)
    _, dweight, dbias = linear_backward(rows, saved.output, (False, *needs_grad[3:5]), (None, *out[3:5]), (False, *add[3:5]))
    dh = xp.empty(h.shape, h.dtype)
    if not (saved.is_fused and gemm_with_epilogue(cublaslt.DGELU, rows, saved.output.weight, dh, aux=h)):
        gemm(rows, saved.output.weight, out=dh)
        dh = activation.gelu_backward(dh, (h, activation.GELUS[saved.approximate]))
    return (*linear_backward(dh, saved.hidden, needs_grad[:3], out[:3], add[:3]), dweight, dbias)


def _hidden_in_one_product(x: Array, weight: Array, bias: Array, shape: tuple[int, int]) -> tuple[Array, Array, RoundedSaved] | None:
    """gelu(h), h, and what the linear layer saves; None if cuBLASLt has no algorithm."""
    xp, dtype = array_module(x), half_dtype()
    rows, factor = cast(x.reshape(shape[0], x.shape[-1]), dtype), padded_columns(weight, dtype)
    h, activated = xp.empty(shape, dtype), xp.empty(shape, dtype)
    rounded_bias = padded_columns(bias[:, None], dtype)[:, 0]
    if not gemm_with_epilogue(cublaslt.GELU_AUX_BIAS, rows, factor.T, activated, rounded_bias, h):
        return None
    return activated, h, RoundedSaved(rows, factor, x.shape, x.dtype, True)


def fuses(x: Array, hidden_weight: Array, hidden_bias: Array | None, weight: Array, approximate: str) -> bool:
    """Whether gelu is an epilogue of the products."""
    half, hidden, width = half_dtype(), len(hidden_weight), len(weight)
    return (
        half is not None
        and approximate == "tanh"
        and hidden_bias is not None
        and x.size > 0
        and hidden % EIGHT == 0
        and (padded_width(hidden, half), padded_width(width, half)) == (hidden, width)
        and int(x.device.compute_capability) >= FUSED_FROM
    )


def supports(
    x: Array, hidden_weight: Array, hidden_bias: Array | None, weight: Array, bias: Array | None, approximate: str = "none"
) -> bool:
    """Two linear layers that fit together, each as `kernels.cuda.linear` takes it, and a gelu that it knows."""
    return (
        layer.supports(x, hidden_weight, hidden_bias)
        and on_gpu(weight, bias, types=("float32",))
        and weight.ndim == 2
        and weight.shape[1] == len(hidden_weight)
        and (bias is None or bias.shape == weight.shape[:1])
        and approximate in activation.GELUS
    )


register(feedforward, Pair("cuda", feedforward_forward, feedforward_backward, supports))
