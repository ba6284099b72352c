"""The workshop: faster pairs for ops of the book. Importing this package registers them."""

from tensorlite.kernels import cpu

__all__ = ["cpu"]
