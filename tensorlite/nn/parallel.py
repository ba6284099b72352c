"""``torch.nn.parallel``, for programs that import what they use with several GPUs only, or ask ``isinstance(model, …)``."""

from __future__ import annotations

from tensorlite.lazy import on_demand
from tensorlite.missing import absent

DataParallel = absent("tensorlite.nn.parallel.DataParallel")
DistributedDataParallel = absent("tensorlite.nn.parallel.DistributedDataParallel")
__getattr__ = on_demand("tensorlite.nn.parallel", {})
