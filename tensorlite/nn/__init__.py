"""Layers and models on top of the ops; names and arguments are those of ``torch.nn``."""

from typing import Any

from tensorlite.lazy import on_demand
from tensorlite.nn import functional, fusion, init
from tensorlite.nn.containers import ModuleDict, ModuleList, Sequential
from tensorlite.nn.layers import (
    GELU,
    Dropout,
    Embedding,
    Flatten,
    Identity,
    LayerNorm,
    Linear,
    ReLU,
    RMSNorm,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from tensorlite.nn.losses import CrossEntropyLoss, MSELoss, NLLLoss
from tensorlite.nn.module import Module
from tensorlite.nn.parameter import Parameter

__all__ = [
    "GELU", "CrossEntropyLoss", "Dropout", "Embedding", "Flatten", "Identity", "LayerNorm", "Linear", "MSELoss", "Module",
    "ModuleDict", "ModuleList", "NLLLoss", "Parameter", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh",
    "functional", "fusion", "init",
]  # fmt: skip

_find = on_demand(
    "tensorlite.nn",
    {
        "tensorlite.nn": "parallel utils",
        "tensorlite.nn.parallel": "DataParallel",
        "tensorlite.nn.further_layers": """
            LeakyReLU ELU Softplus LogSigmoid LogSoftmax BatchNorm1d L1Loss SmoothL1Loss HuberLoss BCELoss BCEWithLogitsLoss KLDivLoss
        """,
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)  # names that a GPT does not need
