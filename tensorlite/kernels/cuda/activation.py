"""Activations on the GPU: one kernel forward and one backward, which computes the derivative again.

The book passes over the memory several times, and keeps the gate besides x. Here gelu keeps only x. relu keeps y, which also says
where x was positive, and which the next layer keeps anyway.
"""

from __future__ import annotations

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.activation import gelu, relu

GELUS = {"none": "Gelu", "tanh": "GeluTanh"}  # the struct in activation.cuh


def gelu_forward(x: Array, approximate: str = "none") -> tuple[Array, tuple[Array, str]]:
    """y = x Φ(x). Saves x."""
    curve = GELUS[approximate]
    return _value(x, curve), (x, curve)


def gelu_backward(dy: Array, saved: tuple[Array, str]) -> Array:
    """dx = dy · (Φ(x) + x φ(x)); for tanh, the derivative of that formula."""
    x, curve = saved
    return _times_slope(dy, x, curve)


def supports_gelu(x: Array, approximate: str = "none") -> bool:
    """Contiguous arrays of float32 and the half precisions, and y has the dtype of x."""
    return on_gpu(x) and approximate in GELUS


def relu_forward(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0). Saves y."""
    y = _value(x, "Relu")
    return y, y


def relu_backward(dy: Array, saved: Array) -> Array:
    """dx = dy where y > 0, which is where x > 0."""
    return _times_slope(dy, saved, "Relu")


def supports_relu(x: Array) -> bool:
    """As gelu."""
    return on_gpu(x)


def _value(x: Array, curve: str) -> Array:
    x = vector_aligned(x)
    y = array_module(x).empty(x.shape, x.dtype)
    launch_elementwise("activation.cu", "activation_forward", x.size, x, y, Real=x.dtype.name, Curve=curve)
    return y


def _times_slope(dy: Array, x: Array, curve: str) -> Array:
    dy, x = vector_aligned(dy), vector_aligned(x)
    dx = array_module(x).empty(x.shape, x.dtype)
    launch_elementwise("activation.cu", "activation_backward", x.size, dy, x, dx, Real=x.dtype.name, Curve=curve)
    return dx


register(gelu, Pair("cuda", gelu_forward, gelu_backward, supports_gelu))
register(relu, Pair("cuda", relu_forward, relu_backward, supports_relu))
