"""What processes tell each other, and the error when they cannot."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Sequence
from typing import Any, NamedTuple

from tensorlite.backend import Array
from tensorlite.parallel.shared_memory import Place

PROTOCOL = 5  # of pickle


class TeamError(RuntimeError):
    """Processes cannot be started, or one of them has ended or shows no sign of life. The weights are those of before the step."""


class Start(NamedTuple):
    """The first message to a process.

    Attributes:
        memory: the handle of the shared memory.
        heartbeats: the place of the counter of its heartbeats.
    """

    memory: tuple[int | str, int]
    heartbeats: Place


class SharedModel(NamedTuple):
    """The second message to a process: a model, of which the numbers are in shared memory.

    Attributes:
        pickled: the model and the loss, with a number in the place of each of its tensors: first those that are trained, then those that
            are frozen, then the buffers.
        kinds: the class of each tensor.
        flats, totals: the flat arrays that hold the trained parameters, and those for their whole gradient.
        slices: for each of them the place of each parameter in it, and its shape.
        gradients: for each shard but the first, arrays like ``flats``.
        others: the arrays of the frozen parameters and the buffers.
        buffer_count: how many of the tensors are buffers.
        optimizer: what `tensorlite.parallel.shared_update` needs, if its steps are shared out.
    """

    pickled: bytes
    kinds: list[type]
    flats: list[Place]
    totals: list[Place]
    slices: list[list[tuple[slice, tuple[int, ...]]]]
    gradients: list[list[Place]]
    others: list[Place]
    buffer_count: int
    optimizer: Any = None


class State(NamedTuple):
    """With each task: what may change from step to step, besides the numbers in shared memory.

    Attributes:
        training: the mode of each module.
        requires_grad: of each parameter, trained and frozen.
        kernels: the mode of `tensorlite.op.use_kernels`.
        floating_point_errors: as of `numpy.geterr`.
    """

    training: list[bool]
    requires_grad: list[bool]
    kernels: str
    floating_point_errors: Any


class Done(NamedTuple):
    """The answer for one shard: its loss, and which of the trained parameters have a gradient now."""

    loss: Array
    has_gradient: Sequence[bool]


def picklable(error: BaseException, where: str) -> BaseException:
    """``error`` with the place where it was raised as a note, in a form that can be pickled; not every exception can.

    Args:
        where: such as "in a worker process".
    """
    place = f"{where}:\n" + "".join(traceback.format_exception(error))
    try:
        copied: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does wrong
        return RuntimeError(place)
    copied.add_note(place)
    return copied
