"""``torch.distributed``, for programs that ask at their top whether they are one of several processes. Here there is one."""

from __future__ import annotations

from tensorlite.lazy import on_demand
from tensorlite.missing import absent

init_process_group = absent("tensorlite.distributed.init_process_group")
destroy_process_group = absent("tensorlite.distributed.destroy_process_group")
__getattr__ = on_demand("tensorlite.distributed", {})


def is_available() -> bool:
    """No."""
    return False


def is_initialized() -> bool:
    """No."""
    return False
