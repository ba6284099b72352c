"""Faster pairs that need only NumPy. Importing this package registers them."""

from tensorlite.kernels.cpu import activation, attention, cross_entropy, embedding, layernorm, self_attention

__all__ = ["activation", "attention", "cross_entropy", "embedding", "layernorm", "self_attention"]
