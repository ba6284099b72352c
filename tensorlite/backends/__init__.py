"""``tensorlite.backends``: the libraries and switches that programs query at their start, under torch's names.

These switches permit something in torch. Here they have no effect, so no result depends on them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


class _Absent:
    """A library that is not used here."""

    def __init__(self, **switches: Any) -> None:
        vars(self).update(switches)

    def is_available(self) -> bool:
        """No."""
        return False

    def is_built(self) -> bool:
        """No."""
        return False


mps = _Absent()  # Apple's GPUs are not used; NumPy computes on the CPU
cudnn = _Absent(
    enabled=False, benchmark=False, deterministic=True, allow_tf32=False
)  # its convolutions; every kernel here is deterministic
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))  # see tensorlite.precision.use_precision("tf32")
