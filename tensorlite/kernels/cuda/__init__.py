"""Faster pairs in CUDA, for arrays of CuPy. Importing this package registers them, and compiles nothing.

Each op is two files: `op.cu`, the kernels, and `op.py`, which makes room for the results and launches them. So is each rule of
`tensorlite.optim` that has a faster one here.
"""

from tensorlite.kernels.cuda import (
    activation,
    adam,
    arithmetic,
    attention,
    clip,
    cross_entropy,
    dropout,
    embedding,
    layernorm,
    linear,
    matmul,
    rmsnorm,
    self_attention,
    softmax,
)

__all__ = [
    "activation",
    "adam",
    "arithmetic",
    "attention",
    "clip",
    "cross_entropy",
    "dropout",
    "embedding",
    "layernorm",
    "linear",
    "matmul",
    "rmsnorm",
    "self_attention",
    "softmax",
]
