"""Optimizers, gradient clipping and learning-rate schedules, with torch's names and update rules."""

from typing import Any

from tensorlite.lazy import on_demand
from tensorlite.optim.adam import Adam, AdamW
from tensorlite.optim.clip import clip_factor, clip_grad_norm_, clip_grad_value_
from tensorlite.optim.device_scalars import DeviceScalars
from tensorlite.optim.flat import FlatParameters
from tensorlite.optim.optimizer import Optimizer
from tensorlite.optim.scaler import GradScaler
from tensorlite.optim.schedule import ConstantLR, CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, warmup_cosine
from tensorlite.optim.sgd import SGD

__all__ = [
    "SGD", "Adam", "AdamW", "ConstantLR", "CosineAnnealingLR", "DeviceScalars", "FlatParameters", "GradScaler", "LRScheduler", "LambdaLR",
    "LinearLR", "Optimizer", "clip_factor", "clip_grad_norm_", "clip_grad_value_", "warmup_cosine",
]  # fmt: skip

_find = on_demand(
    "tensorlite.optim",
    {"tensorlite.optim": "lr_scheduler", "tensorlite.optim.muon": "Muon MuonWithAuxAdam", "tensorlite.optim.rmsprop": "RMSprop"},
)


def __getattr__(name: str) -> Any:
    return _find(name)  # names that training a GPT does not need
