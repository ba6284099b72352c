"""``torch.utils``: data sets and loaders for programs that bring their own (`tensorlite.utils.data`), and TensorBoard."""

from typing import Any

from tensorlite.lazy import on_demand

_find = on_demand("tensorlite.utils", {"tensorlite.utils": "data tensorboard"})


def __getattr__(name: str) -> Any:
    return _find(name)
