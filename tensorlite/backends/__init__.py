"""``tensorlite.backends``: the libraries and switches that programs query at their start, under torch's names.

These switches permit something in torch. Here they have no effect, so no result depends on them.
"""

from __future__ import annotations

from types import SimpleNamespace

from tensorlite.backends import cudnn
from tensorlite.lazy import on_demand

__all__ = ["cuda", "cudnn", "mps"]

__getattr__ = on_demand("tensorlite.backends", {})


class _Absent:
    """A library that is not used here."""

    def is_available(self) -> bool:
        """No."""
        return False

    def is_built(self) -> bool:
        """No."""
        return False


mps = _Absent()  # Apple's GPUs are not used; NumPy computes on the CPU
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))  # see tensorlite.precision.use_precision("tf32")
