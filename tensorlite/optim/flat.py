"""One buffer for all parameters, and one for all their gradients.

A GPT has a hundred parameter arrays. To update them one by one takes a hundred times a dozen small array
operations. To update one long array takes a dozen large ones. So the parameters lie
end to end: every ``p.array`` becomes a view of one flat array, and backward writes every gradient
directly to its place in a second one (``p.grad_buffer``, see `tensorlite.tape`). A step gathers and
scatters nothing, the norm of all gradients is the norm of one vector, and workers that train on shards
of a batch exchange one array each.

    flat.data   [ wte .............. | wpe ... | h.0.ln_1.weight | ... ]
    flat.grad   [ dwte ............. | dwpe .. | ...

This has one disadvantage: a gradient that you keep across ``zero_grad()`` is overwritten by the next backward,
which writes to the same place. Keep a ``clone()`` instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

from tensorlite.backend import Array, Device, array_module, device_of
from tensorlite.tensor import Tensor

ALIGNMENT = 64  # bytes: the length of a cache line; a GPU's fastest loads need no more


class FlatParameters:
    """The memory of several parameters of one dtype on one device, end to end in the order given.

    Every parameter begins at a multiple of `ALIGNMENT` bytes from the start; the few numbers in between are
    0 in both arrays, and stay 0 under every update that maps (0, 0) to 0.

    Args:
        parameters: distinct leaves. Their values stay the same; their ``array`` becomes a view.

    Attributes:
        data, grad: the two flat arrays.
        rounded: ``data`` in a half precision, see `round_to`; None until it is asked for.
        parameters: in order.
        starts: the position of each parameter's first number; one more entry holds the end.

    Raises:
        ValueError: if there are none, if one occurs twice, or if they differ in dtype or device.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise ValueError("FlatParameters needs at least one parameter.")
        if len({id(p) for p in self.parameters}) != len(self.parameters):
            raise ValueError("FlatParameters got a parameter twice; named_parameters() lists a shared one once.")
        kinds = {kind_of(p) for p in self.parameters}
        if len(kinds) != 1:
            listed = " and ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
            raise ValueError(f"FlatParameters needs one dtype and one device, got {listed}.")
        self.dtype, self.device = kind_of(self.parameters[0])

        self.starts = [0, *itertools.accumulate(_room(p) for p in self.parameters)]
        self._shapes = [p.shape for p in self.parameters]
        self.data, self.grad = self.zeros(), self.zeros()
        self.rounded: Array | None = None
        self._rounded_at: list[int] = []  # the counts of writes when it was up to date
        self._views = [self.view(self.data, i) for i in range(len(self.parameters))]
        self._grad_views = [self.view(self.grad, i) for i in range(len(self.parameters))]
        for i, p in enumerate(self.parameters):
            self._adopt(i, p.array)

    def _adopt(self, i: int, values: Array) -> None:
        """Move parameter ``i`` into the buffer. Its present gradient stays where it is; the next one is written here."""
        p = self.parameters[i]
        self._views[i][...] = values
        p.array, p.grad_buffer = self._views[i], self._grad_views[i]

    def move(self, data: Array, grad: Array) -> None:
        """Move parameters and gradients into two flat arrays of the same layout, such as arrays in shared memory."""
        data[...], grad[...] = self.data, self.grad
        in_place = [p.grad is not None and p.grad.array is view for p, view in zip(self.parameters, self._grad_views, strict=True)]
        self.data, self._views = data, [self.view(data, i) for i in range(len(self.parameters))]
        self.grad, self._grad_views = grad, [self.view(grad, i) for i in range(len(self.parameters))]
        for i, p in enumerate(self.parameters):
            self._adopt(i, p.array)
            if in_place[i]:
                p.grad = Tensor.wrap(self._grad_views[i])

    def __reduce__(self) -> Any:
        """A copy, by deepcopy or pickle, has its own parameters in its own arrays."""
        return type(self), (self.parameters,)

    def zeros(self) -> Array:
        """A flat array of the same layout, for an optimizer's state."""
        return self.device.zeros(self.starts[-1], self.dtype)

    def round_to(self, dtype: Any) -> Array:
        """The parameters in a half precision, for products to read. An optimizer that makes a step writes it as well (`note_rounded`).

        It is written here only if a parameter was written to since. Such writes are counted (`Tensor.version`) but for those to
        ``p.array`` and through ``p.data``, so nobody may write to these while training is under way.
        """
        if self.rounded is None or self.rounded.dtype != dtype:
            self.rounded = array_module(self.data).empty(self.data.shape, dtype)
            self._rounded_at = []
        if self._rounded_at != self._writes():
            self.rounded[...] = self.data
            self.note_rounded()
        return self.rounded

    def note_rounded(self) -> None:
        """Remember that `rounded` is up to date."""
        self._rounded_at = self._writes()

    def _writes(self) -> list[int]:
        return [p.version.count for p in self.parameters]

    def __len__(self) -> int:
        return len(self.parameters)

    def slice_of(self, i: int) -> slice:
        """The slice of a flat array that holds the numbers of parameter ``i``."""
        return slice(self.starts[i], self.starts[i] + math.prod(self._shapes[i]))

    def view(self, flat: Array, i: int) -> Array:
        """The part of a flat array that belongs to parameter ``i``, in the parameter's shape."""
        return flat[self.slice_of(i)].reshape(self._shapes[i])

    def fits(self) -> bool:
        """Whether every parameter still has the dtype and the device that the buffers have."""
        return all(p.array is view or kind_of(p) == (self.dtype, self.device) for p, view in zip(self.parameters, self._views, strict=True))

    def check(self) -> None:
        """Raise a ValueError if a parameter or its gradient has another shape than it had."""
        for p, shape in zip(self.parameters, self._shapes, strict=True):
            if p.array.shape != shape:
                raise ValueError(f"a parameter of shape {shape} was given data of shape {p.array.shape} after the optimizer was made.")
            if p.grad is not None and p.grad.shape != shape:
                raise ValueError(f"a parameter of shape {shape} has a gradient of shape {p.grad.shape}.")

    def refresh(self) -> list[int]:
        """Make the two arrays agree with what the parameters hold now, and return the indices of those that have a gradient.

        If the caller has given a parameter a new array, or set ``p.grad`` to another tensor, the values are copied into the
        buffers. If everything is as backward left it, nothing is copied.
        """
        present, moved, gathered = [], [], []
        for i, p in enumerate(self.parameters):
            if p.array is not self._views[i] or p.grad_buffer is not self._grad_views[i]:
                moved.append((i, self._from_outside(p.array, self.data)))
            if p.grad is not None:
                present.append(i)
                if p.grad.array is not self._grad_views[i]:
                    gathered.append((i, self._from_outside(p.grad.array, self.grad)))
        for i, values in moved:
            self._adopt(i, values)
        for i, values in gathered:
            self._grad_views[i][...] = values
        return present

    def _from_outside(self, array: Array, flat: Array) -> Array:
        """``array`` on the buffers' device; a copy if it lies in ``flat``, because two parameters may have swapped arrays."""
        array = self.device.asarray(array)
        return array.copy() if array_module(array).may_share_memory(array, flat) else array


def kind_of(p: Tensor) -> tuple[Any, Device]:
    """What parameters in one buffer have in common: dtype and device."""
    return p.dtype, device_of(p.array)


def whole_buffer(parameters: Sequence[Tensor]) -> Array | None:
    """The flat gradient array that holds exactly these parameters' gradients, or None.

    Such an array can be used in place of them: besides their gradients it holds only zeros, in the gaps.
    """
    base = None
    for p in parameters:
        home = p.grad_buffer
        if home is None or p.grad is None or p.grad.array is not home or home.base is None:
            return None
        if base is None:
            base = home.base
        elif home.base is not base:
            return None
    if base is None or base.ndim != 1:
        return None
    return base if sum(_room(p) for p in parameters) == base.size else None


def _room(p: Tensor) -> int:
    """How many numbers lie between the start of ``p`` and that of the next parameter."""
    unit = max(1, ALIGNMENT // p.dtype.itemsize)
    return math.ceil(p.numel() / unit) * unit
