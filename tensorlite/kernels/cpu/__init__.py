"""Faster pairs that need only NumPy. Importing this package registers them."""

from tensorlite.kernels.cpu import (
    activation,
    adam,
    attention,
    cross_entropy,
    embedding,
    layernorm,
    linear,
    rotary,
    rotary_self_attention,
    self_attention,
    swiglu,
)

__all__ = [
    "activation", "adam", "attention", "cross_entropy", "embedding", "layernorm", "linear", "rotary", "rotary_self_attention",
    "self_attention", "swiglu",
]  # fmt: skip
