"""Layers and models on top of the ops; names and arguments are those of ``torch.nn``."""

from tensorlite.nn import functional, init
from tensorlite.nn.containers import ModuleList, Sequential
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
    "ModuleList", "NLLLoss", "Parameter", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh",
    "functional", "init",
]  # fmt: skip
