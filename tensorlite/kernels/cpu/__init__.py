"""Faster pairs in NumPy alone. Importing this package registers them."""

from tensorlite.kernels.cpu import embedding

__all__ = ["embedding"]
