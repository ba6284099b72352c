"""tensorlite: automatic differentiation on NumPy or CuPy, with every gradient written by hand, small enough to read.

    import tensorlite as tl

    w = tl.randn(3, 4, requires_grad=True)
    x = tl.randn(10, 4)
    loss = (x @ w.T).square().mean()
    loss.backward()
    w.grad                      # dloss/dw, a tensor of shape (3, 4)

Names, argument orders and defaults are torch's wherever torch has the same function. Where to read on:

    tensorlite.tape             the chain rule, walked backwards
    tensorlite.ops              the book: every op as a forward and a backward on plain arrays
    tensorlite.kernels          the workshop: faster pairs for some of them
    tensorlite.nn, .optim       modules, and the optimizers that train them
    tensorlite.testing          gradcheck, for your own ops
    tensorlite.inspect          a tensor in one line, the graph behind it, its backward pass step by step
"""

from typing import Any

from tensorlite import compat, kernels, nn, optim, random  # importing the kernels registers them
from tensorlite.backend import Device, DeviceUnavailableError
from tensorlite.creation import (
    arange,
    bfloat16_dtype,
    bool_,
    float16,
    float32,
    float64,
    from_numpy,
    full,
    int32,
    int64,
    long,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    tensor,
    uint8,
    uint16,
    zeros,
    zeros_like,
)
from tensorlite.inspect import draw, walk  # importing it puts summary() on Tensor
from tensorlite.op import Op, Pair, kernel_table, register, use_kernels
from tensorlite.ops import methods  # importing it puts the operators and methods on Tensor
from tensorlite.ops.activation import relu, sigmoid, tanh
from tensorlite.ops.arithmetic import add, div, mul, neg, pow, sub
from tensorlite.ops.comparison import (
    clamp,
    eq,
    ge,
    gt,
    isfinite,
    isinf,
    isnan,
    le,
    logical_and,
    logical_not,
    logical_or,
    lt,
    maximum,
    minimum,
    ne,
)
from tensorlite.ops.einsum import einsum
from tensorlite.ops.elementary import abs, cos, exp, log, reciprocal, rsqrt, sin, sqrt, square
from tensorlite.ops.extremum import amax, amin, argmax, argmin, max, min
from tensorlite.ops.indexing import gather, index_select, masked_fill, narrow, select, tril, triu, where
from tensorlite.ops.matmul import bmm, matmul, mm
from tensorlite.ops.reduction import all, any, cumsum, logsumexp, mean, prod, std, sum, var
from tensorlite.ops.shape import (
    broadcast_to,
    cat,
    chunk,
    clone,
    flatten,
    flip,
    permute,
    reshape,
    roll,
    split,
    squeeze,
    stack,
    transpose,
    unbind,
    unflatten,
    unsqueeze,
)
from tensorlite.ops.softmax import log_softmax, softmax
from tensorlite.random import manual_seed
from tensorlite.tape import enable_grad, is_grad_enabled, no_grad
from tensorlite.tensor import Tensor

__version__ = "0.1.0"


globals().update(compat.spelling.FUNCTIONS)  # they also accept torch's other keywords


def __getattr__(name: str) -> Any:
    if name == "bfloat16":  # looked up only when it is used: it needs an extra package
        try:
            return bfloat16_dtype()
        except ImportError as error:
            raise AttributeError(str(error)) from None  # so that hasattr() says no
    return compat.find(name)  # names that only programs written for torch need; or an error that says what is missing


def __dir__() -> list[str]:
    return sorted({*globals(), *compat.names()})
