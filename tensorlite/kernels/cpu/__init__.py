"""Faster pairs in NumPy alone. Importing this package registers them."""

from tensorlite.kernels.cpu import attention, embedding

__all__ = ["attention", "embedding"]
