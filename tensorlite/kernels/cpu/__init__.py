"""Faster pairs that need only NumPy. Importing this package registers them."""

from tensorlite.kernels.cpu import activation, attention, cross_entropy, embedding, layernorm, rotary, self_attention, swiglu

__all__ = ["activation", "attention", "cross_entropy", "embedding", "layernorm", "rotary", "self_attention", "swiglu"]
