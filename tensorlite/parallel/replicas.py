"""One shard of a batch: the model that computes it, and what is computed.

The loss is a mean over the batch, so a shard with n of N rows has the weight n/N. Its backward starts from that gradient.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.optim.flat import FlatParameters
from tensorlite.random import use_dropout_key, use_generator
from tensorlite.tensor import Tensor

Loss = Callable[..., Tensor]  # (model, *rows) -> the mean loss over the rows, of no axes


def second_output(model: Any, *rows: Tensor) -> Tensor:
    """The loss of a model that returns (logits, loss). The logits, most of the memory of a large vocabulary, are dropped here."""
    loss: Tensor = model(*rows)[1]
    return loss


@dataclass(frozen=True)
class Task:
    """What a shard computes in one step.

    Attributes:
        rows: its part of each tensor of the batch.
        weight: its share of the rows of the batch.
        generator: makes the generator of its random numbers.
        scale: the factor of the loss in backward.
        key: on a GPU, the key of dropout.
    """

    rows: tuple[Tensor, ...]
    weight: float
    generator: Callable[[], np.random.Generator]
    scale: float | Array = 1.0
    key: Array | None = None


class Shard:
    """A model, which computes the loss of some rows and adds its gradient into the parameters' ``grad``."""

    def __init__(self, model: Any, loss: Loss = second_output) -> None:
        self.model, self.loss = model, loss

    def compute(self, task: Task) -> Tensor:
        """Forward and backward. Return the loss, multiplied by the weight of the task."""
        with use_generator(task.generator()), contextlib.nullcontext() if task.key is None else use_dropout_key(task.key):
            loss = self.loss(self.model, *task.rows)
            dy = array_module(loss.array).full((), task.weight, loss.dtype)  # created on the device, without a copy
            dy *= task.scale
            loss.backward(Tensor.wrap(dy))
        return loss.detach() * task.weight


class Replica(Shard):
    """A copy of the model that shares the memory of the parameters, and has its own memory for their gradients.

    What a forward writes to the buffers of a replica, such as the running mean of a batch norm, is forgotten: the first shard's is kept.

    Attributes:
        gradients: a flat array for each of ``flats``.
        twins: the trained parameters of the model, each with that of the replica.
    """

    def __init__(self, model: Any, flats: Sequence[FlatParameters], loss: Loss = second_output) -> None:
        self.flats = flats
        shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}  # also frozen parameters
        self.twins: list[tuple[Tensor, Tensor]] = []
        for parameter in (parameter for flat in flats for parameter in flat.parameters):
            shared[id(parameter)] = twin = type(parameter)(parameter.array)
            self.twins.append((parameter, twin))
        self._buffers = [(buffer, type(buffer)(buffer.array)) for buffer in model.buffers()]
        shared.update((id(buffer), twin) for buffer, twin in self._buffers)
        self.use_gradients([array_module(flat.grad).zeros_like(flat.grad) for flat in flats])
        super().__init__(copy.deepcopy(model, memo=shared), loss)

    def use_gradients(self, gradients: list[Array]) -> None:
        """Write the gradients into these arrays from now on."""
        self.gradients = gradients
        homes = [flat.view(gradient, i) for flat, gradient in zip(self.flats, gradients, strict=True) for i in range(len(flat))]
        for (_, twin), home in zip(self.twins, homes, strict=True):
            twin.grad, twin.grad_buffer = None, home

    def refresh(self, model: Any) -> None:
        """Take over changes of the first model: new arrays, training or evaluation mode."""
        for parameter, twin in self.twins:
            twin.array, twin.requires_grad = parameter.array, parameter.requires_grad
        for buffer, twin in self._buffers:
            twin.array = buffer.array.copy()
        for module, copied in zip(model.modules(), self.model.modules(), strict=True):
            copied.training = module.training

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for _, twin in self.twins:
            twin.grad = None
