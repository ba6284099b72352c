"""Faster pairs in CUDA, for CuPy arrays. Importing this package registers them, and compiles nothing.

Each op has two files: `op.cu` with the kernels, and `op.py`, which allocates the results and launches the kernels. So has each rule
of `tensorlite.optim` that has a faster one here.
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
    feedforward,
    layernorm,
    linear,
    matmul,
    muon,
    rmsnorm,
    rotary,
    rotary_self_attention,
    self_attention,
    softmax,
    swiglu,
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
    "feedforward",
    "layernorm",
    "linear",
    "matmul",
    "muon",
    "rmsnorm",
    "rotary",
    "rotary_self_attention",
    "self_attention",
    "softmax",
    "swiglu",
]
