"""``torch.cuda.amp``: `tensorlite.amp` for a GPU, as programs older than torch 2.4 write it."""

from __future__ import annotations

from typing import Any

from tensorlite import amp


def autocast(enabled: bool = True, dtype: Any = None, cache_enabled: bool = True) -> Any:
    """``tensorlite.amp.autocast("cuda", …)``."""
    return amp.autocast("cuda", dtype=dtype, enabled=enabled)


def GradScaler(*args: Any, **options: Any) -> amp.GradScaler:  # noqa: N802 - a class in torch
    """``tensorlite.amp.GradScaler("cuda", …)``."""
    return amp.GradScaler("cuda", *args, **options)
