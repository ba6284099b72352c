"""``tensorlite.backends``: the libraries and switches that programs ask about at their top, under torch's names.

What may be set here are permissions. None of them is used, so a result never depends on them.
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


mps = _Absent()  # Apple's GPUs: there NumPy computes on the CPU
cudnn = _Absent(
    enabled=False, benchmark=False, deterministic=True, allow_tf32=False
)  # its convolutions; every kernel here is deterministic
cuda = SimpleNamespace(matmul=SimpleNamespace(allow_tf32=False))  # tensorlite.precision.use_precision("tf32") is what computes in tf32
