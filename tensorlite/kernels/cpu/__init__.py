"""Faster pairs in NumPy alone. Importing this package registers them."""

from tensorlite.kernels.cpu import activation, attention, cross_entropy, embedding, layernorm, self_attention

__all__ = ["activation", "attention", "cross_entropy", "embedding", "layernorm", "self_attention"]
