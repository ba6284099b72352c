"""The workshop: faster pairs for ops of the book. Importing this package registers them.

The pair registered last is asked first: on the CPU, where a step of a small model has hundreds of ops, nobody waits for the GPU's pairs.
"""

from tensorlite.kernels import cuda

# isort: split
from tensorlite.kernels import cpu

__all__ = ["cpu", "cuda"]
