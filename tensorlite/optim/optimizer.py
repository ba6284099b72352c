"""What all optimizers share: parameter groups, the state of each parameter, and the loop over the flat buffer.

A subclass defines which arrays it keeps for a parameter (`Optimizer.arrays`) and how one step changes a
slice of numbers (`Optimizer.update`). It never sees a parameter: nearly all the rules here are elementwise,
so they run over whole groups laid end to end (`tensorlite.optim.flat`), in tiles that fit into the cache. Muon,
whose rule is about matrices, defines `Optimizer.update_span` instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module, to_numpy
from tensorlite.optim.device_scalars import DeviceScalars
from tensorlite.optim.flat import FlatParameters, kind_of
from tensorlite.optim.state import Buffer, SharedState, Span
from tensorlite.tape import enable_grad
from tensorlite.tensor import Tensor, is_floating

TILE = 32768  # numbers updated at a time on the CPU: all arrays of one update then stay in the L2 cache
_OF_TORCHS_OWN = {  # in its state_dicts, of its kernels and of OneCycleLR; no rule here reads them
    "foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay", "max_lr", "min_lr", "base_momentum", "max_momentum",
}  # fmt: skip


class Optimizer:
    """The base of SGD, Adam and AdamW.

    Args:
        params: parameters, or dicts ``{"params": [...], "lr": ..., ...}`` with options of their own.
        defaults: the options of a group that does not set them.

    Attributes:
        param_groups: one dict for each group, with its parameters and its options. Options may be
            changed between steps, as a learning-rate schedule does.

    Raises:
        ValueError: for no parameters, one that occurs twice, an unknown option, or one out of range.
        TypeError: for what is not a tensor.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError("an optimizer takes a list of parameters, not one tensor: put it in a list.")
        self.defaults = defaults
        self.layout = 0  # how often the arrays have been created
        self._shared_state: SharedState | None = None
        listed: list[Any] = list(params)
        if not listed:
            raise ValueError("an optimizer needs at least one parameter, got an empty list.")
        groups = listed if isinstance(listed[0], dict) else [{"params": listed}]
        self.param_groups: list[dict[str, Any]] = []
        for group in groups:
            self.param_groups.append(self._checked_group(group))
        self._lay_out({})

    # --- for subclasses -------------------------------------------------------------------------------

    arrays: tuple[str, ...] = ()  # the names of all arrays that may be kept for a parameter

    def arrays_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Those of `arrays` that the options of ``group`` need; they begin as zeros."""
        return self.arrays

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        """Change ``p`` and ``state`` in place, given the gradient ``g``, which stays as it is.

        Args:
            step: which step this is for these numbers, counted from 1. It and ``group["lr"]`` may be arrays of no axes (`DeviceScalars`).
            state: the arrays that `arrays_of` lists.
        """
        raise NotImplementedError

    def update_and_round(
        self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array, factor: Array | None, rounded: Array | None
    ) -> None:
        """`update` with the gradient times ``factor``; the new p is written to ``rounded`` as well. A subclass may do it in one pass."""
        self.update(group, step, p, g if factor is None else g * factor, *state)
        if rounded is not None:
            rounded[...] = p

    def update_span(self, span: Span, group: dict[str, Any], step: Any, factor: Array | None = None, within: slice | None = None) -> None:
        """One step for the parameters of ``span``, with the options of ``group``; only for those numbers that lie ``within`` a slice, and
        whose state is kept here (`share_state`).

        A rule that is not elementwise overrides this.
        """
        flat, kept = span.buffer.flat, span.buffer.part
        state, offset = [span.buffer.array(name) for name in self.arrays_of(group)], kept.start
        start, stop = max(flat.starts[span.first], kept.start), min(flat.starts[span.last], kept.stop)
        if within is not None:
            start, stop = max(start, within.start), min(stop, within.stop)
        tile = TILE if array_module(flat.data) is np else max(1, stop - start)
        for k in range(start, stop, tile):
            part = slice(k, min(k + tile, stop))
            arrays = [flat.data[part], flat.grad[part], *(array[part.start - offset : part.stop - offset] for array in state)]
            self.update_tile(group, step, arrays, factor, None if flat.rounded is None else flat.rounded[part])

    def update_tile(
        self, group: dict[str, Any], step: Any, arrays: Sequence[Array], factor: Array | None = None, rounded: Array | None = None
    ) -> None:
        """One step for the numbers of ``arrays``: parameters, gradient, and the arrays that `arrays_of` lists."""
        if factor is None and rounded is None:
            self.update(group, step, *arrays)
        else:
            self.update_and_round(group, step, *arrays, factor=factor, rounded=rounded)

    @property
    def shares_state(self) -> bool:
        """Whether other programs keep a part of the state (`share_state`)."""
        return self._shared_state is not None

    def move_state(self, arrays: Sequence[Mapping[str, Array]]) -> None:
        """Keep the state beside each of `flats` in these arrays from now on, such as arrays in shared memory."""
        for buffer, given in zip(self._buffers, arrays, strict=True):
            buffer.move(given)

    @property
    def is_elementwise(self) -> bool:
        """Whether numbers can be updated one by one, so that slices of a flat buffer can be updated side by side."""
        return type(self).update_span is Optimizer.update_span

    def check_options(self, options: dict[str, Any]) -> None:
        """Raise a ValueError for options out of range."""

    # --- for users ------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None, *, gradient_factor: Array | None = None) -> Any:
        """Update every parameter that has a gradient; those whose ``grad`` is None are skipped, as in torch.

        Args:
            closure: called first, to compute the loss and its gradients; its result is returned.
            gradient_factor: an array of no axes that multiplies all gradients as they are read, from `clip_factor`.

        Raises:
            ValueError: if the shape of a parameter or a gradient has changed; then nothing is updated.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        spans = self.begin_step()
        for flat in self.flats:
            self.update_slice(spans, flat, slice(0, flat.starts[-1]), gradient_factor)
        self.end_step(spans)
        return loss

    def begin_step(self) -> list[Span]:
        """The first of the three parts of `step`: list what will be updated. `update_slice` updates it, and `end_step` counts the step.

        If the rules are elementwise, as all are but Muon's, slices of a flat buffer may be updated in any order, by several threads, or by
        several programs that have a slice each: every number gets the same bits as from `step`. Muon's slices may not cut a matrix.

        Raises:
            ValueError: as `step`; then nothing is updated.
        """
        self._check_groups()  # this raises before anything is changed
        for buffer in self._buffers:
            buffer.flat.check()
        if not all(buffer.flat.fits() for buffer in self._buffers):
            self._lay_out(self._movable_state())
        spans = self._spans()
        for span in spans:
            for name in self.arrays_of(span.group):
                span.buffer.array(name)  # created here, not by several threads at once
        return spans

    def update_slice(self, spans: list[Span], flat: FlatParameters, part: slice, gradient_factor: Array | None = None) -> None:
        """Update those numbers of ``spans`` that lie in ``part`` of ``flat``, which is one of `flats`."""
        for span in spans:
            if span.buffer.flat is flat:
                self.update_span(span, span.group, span.step, gradient_factor, part)

    def end_step(self, spans: list[Span]) -> None:
        """Count the step, once all of ``spans`` is updated."""
        for span in spans:
            span.count_step()
        self._note_rounded()

    def step_with(self, scalars: DeviceScalars, steps: list[Array] | None = None, gradient_factor: Array | None = None) -> None:
        """The part of `step` on the device, with the rates and step counts in ``scalars``. `DeviceScalars.advance` counts the step.

        This is for a step that is captured as a CUDA graph; see `DeviceScalars`. All parameters that had a gradient when ``scalars`` was
        made must have one now.

        Args:
            steps: replaces ``scalars.step``. For AdamW's CUDA kernel, and for no other rule, 0 means no step (see `GradScaler`).
            gradient_factor: as in `step`.
        """
        for span, lr, step in zip(scalars.spans, scalars.lr, steps or scalars.step, strict=True):
            self.update_span(span, {**span.group, "lr": lr}, step, gradient_factor)
        self._note_rounded()

    def subtract_steps(self, steps: int) -> None:
        """Subtract ``steps`` from every count, for steps that were counted but skipped (see `GradScaler`)."""
        for buffer in self._buffers:
            buffer.steps = [max(0, count - steps) for count in buffer.steps]

    def device_scalars(self, memory: Array | None = None) -> DeviceScalars:
        """`DeviceScalars` for the parameters that have a gradient now.

        Args:
            memory: an array from `device_scalars_memory` for the numbers. A captured step needs memory from before the capture: the graph
                may use the memory of an array that is allocated in the capture for other data, earlier in the same launch.
        """
        return DeviceScalars(self, self._spans(), self.device_scalars_memory() if memory is None else memory)

    def device_scalars_memory(self) -> Array:
        """Memory for the rates and step counts of the largest possible number of spans, one for each parameter."""
        flats = self.flats
        return array_module(flats[0].data).empty((2, sum(map(len, flats))), "int32")

    def share_state(self, shared: SharedState) -> None:
        """Keep only a part of each flat array of the state; other programs keep the rest (ZeRO, stage 1).

        From then on only those parts are updated, `state_dict` is called by all programs, and parameters and groups stay as they are.

        Raises:
            ValueError: if the rule is not elementwise, so that a part of a matrix cannot be updated.

        Source: Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models".
        """
        if not self.is_elementwise:
            raise ValueError(f"{type(self).__name__} updates whole matrices, and its state cannot be shared by slices.")
        state = self.state_dict()["state"]
        self._shared_state = shared
        for buffer in self._buffers:
            buffer.part = shared.part_of(buffer.flat.starts[-1])
        self._restore(state)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient; with ``set_to_none=False`` fill it with zeros."""
        for p in self._parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.array[...] = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, such as layers that were frozen until now."""
        group = self._checked_group(param_group)
        state = self._movable_state()
        self.param_groups.append(group)
        self._lay_out(state)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, with which `load_state_dict` continues exactly here.

        Returns:
            ``state``: for each parameter that was ever updated, by its number, ``step`` and its arrays (NumPy);
            ``param_groups``: the options, with numbers instead of parameters. The layout is torch's.
            Where the state is shared (`share_state`), one program gets all of ``state``, the others an empty one.
        """
        state = {}
        whole = {id(buffer): self._whole_state(buffer) for buffer in self._buffers}
        for number, (buffer, i) in enumerate(self._places):
            found = whole[id(buffer)]
            if buffer.steps[i] and found is not None:
                arrays = {name: np.array(to_numpy(buffer.flat.view(flat, i))) for name, flat in found.items()}
                state[number] = {"step": buffer.steps[i], **arrays}
        groups, number = [], 0
        for group in self.param_groups:
            count = len(group["params"])
            groups.append({**group, "params": list(range(number, number + count))})
            number += count
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`; values are copied. If a part of it does not fit, nothing is changed.

        Raises:
            ValueError: if groups, parameters, shapes or options do not fit.
        """
        groups = [{name: value for name, value in group.items() if name not in _OF_TORCHS_OWN} for group in state_dict["param_groups"]]
        ours = [len(group["params"]) for group in self.param_groups]
        theirs = [len(group["params"]) for group in groups]
        if ours != theirs:
            raise ValueError(f"the state_dict is for groups of {theirs} parameters, this optimizer has groups of {ours}.")
        options = [
            {**ours, **{name: value for name, value in group.items() if name != "params"}}
            for ours, group in zip(self.param_groups, groups, strict=True)
        ]
        for group in options:
            self._check_names(group)
            self.check_options(group)
        # the state names a parameter by its number in *their* groups, and another program may number them differently
        numbers = [number for group in groups for number in group["params"]]
        found = {str(key): value for key, value in state_dict["state"].items()}  # JSON turns numbers into strings
        state = {place: found[str(number)] for place, number in enumerate(numbers) if str(number) in found}
        state = self._checked_state(state, options)
        for group, new in zip(self.param_groups, options, strict=True):
            group.update(new)
        self._restore(state)

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: the groups with their parameters, and a `state_dict` instead of the flat buffers."""
        kept = {name: value for name, value in vars(self).items() if name not in ("_buffers", "_places", "_parts")}
        return {**kept, "snapshot": self._movable_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Lay the copied parameters out in their own flat buffers, so that a copy of (model, optimizer) can be trained."""
        snapshot = state.pop("snapshot")
        vars(self).update(state)
        self._lay_out(snapshot)

    @property
    def flats(self) -> list[FlatParameters]:
        """The flat buffers that hold the parameters, usually one."""
        return [buffer.flat for buffer in self._buffers]

    def __repr__(self) -> str:
        lines = [
            ", ".join([f"{len(group['params'])} parameters", *(f"{name}={value}" for name, value in group.items() if name != "params")])
            for group in self.param_groups
        ]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

    def _movable_state(self) -> dict[int, dict[str, Any]]:
        """The state of each parameter, for new flat buffers."""
        if self._shared_state is not None:
            raise RuntimeError("the state is shared, and cannot move to other memory: make a new optimizer and load a state_dict.")
        state: dict[int, dict[str, Any]] = self.state_dict()["state"]
        return state

    def _whole_state(self, buffer: Buffer) -> dict[str, Array] | None:
        """The flat arrays of the state; None if another program has been given them."""
        if self._shared_state is None:
            return buffer.state
        found = {name: self._shared_state.gather(array, buffer.flat.starts[-1]) for name, array in buffer.state.items()}
        return found if all(array is not None for array in found.values()) else None

    # --- groups ---------------------------------------------------------------------------------------

    def _parameters(self) -> Iterator[Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _checked_group(self, group: Any) -> dict[str, Any]:
        """``group`` with the defaults filled in, after checking it."""
        if not isinstance(group, dict) or "params" not in group:
            raise TypeError(f"a parameter group is a dict with a list under 'params', got {type(group).__name__}.")
        params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        known = {id(p) for p in self._parameters()}
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError(f"an optimizer takes tensors, got {type(p).__name__}.")
            if p.source is not None:
                raise ValueError(f"an optimizer takes leaves; a tensor of shape {p.shape} was computed by {p.source[0].name}.")
            if not p.is_floating_point():
                raise ValueError(f"an optimizer takes floating point tensors, got one of dtype {p.dtype}.")
            if id(p) in known:
                raise ValueError(f"a parameter of shape {p.shape} was given to the optimizer twice.")
            known.add(id(p))
        complete = {"params": params, **self.defaults, **{name: value for name, value in group.items() if name != "params"}}
        self._check_names(complete)
        self.check_options(complete)
        return complete

    def _check_names(self, group: dict[str, Any]) -> None:
        unknown = [name for name in group if name not in self.defaults and name not in ("params", "initial_lr", "name")]
        if unknown:
            options = ", ".join(self.defaults)
            raise ValueError(f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; its options are {options}.")

    def _check_groups(self) -> None:
        laid_out = [buffer.flat.parameters[i] for buffer, i in self._places]
        listed = list(self._parameters())
        if len(listed) != len(laid_out) or any(p is not q for p, q in zip(listed, laid_out, strict=True)):
            raise ValueError(
                "the parameters in param_groups are others than those the optimizer has laid out: add some with add_param_group()."
            )

    # --- memory ---------------------------------------------------------------------------------------

    def _lay_out(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Create the flat buffers, one for each dtype and device, with each group's parameters side by side; then restore ``state``."""
        by_kind: dict[Any, list[Tensor]] = {}
        for p in self._parameters():
            by_kind.setdefault(kind_of(p), []).append(p)
        buffers = {kind: Buffer(FlatParameters(parameters)) for kind, parameters in by_kind.items()}
        self._buffers = list(buffers.values())
        self._places: list[tuple[Buffer, int]] = []  # for each parameter, by number: its buffer and place there
        self._parts: list[list[tuple[Buffer, int, int]]] = []  # for each group: buffer, first, last + 1
        filled = dict.fromkeys(buffers, 0)
        for group in self.param_groups:
            before = dict(filled)
            for p in group["params"]:
                kind = kind_of(p)
                self._places.append((buffers[kind], filled[kind]))
                filled[kind] += 1
            self._parts.append([(buffers[kind], before[kind], filled[kind]) for kind in buffers if filled[kind] > before[kind]])
        self._restore(state)

    def _checked_state(self, state: Mapping[int, Mapping[str, Any]], groups: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
        """``state``, after a check that it fits the parameters and ``groups``, its own options."""
        group_of = [group for group in groups for _ in group["params"]]
        checked: dict[int, dict[str, Any]] = {}
        for number, entry in state.items():
            buffer, i = self._places[number]
            shape = buffer.flat.parameters[i].shape
            step = int(entry.get("step", 1))  # torch's SGD does not count
            arrays = {name: np.asarray(value) for name, value in entry.items() if name != "step" and value is not None}
            where = f"the state_dict has, for parameter {number} of shape {shape},"
            if step < 0:
                raise ValueError(f"{where} a number of steps of {step}.")
            for name, value in arrays.items():
                if name not in self.arrays:
                    raise ValueError(f"{where} {name!r}, which {type(self).__name__} does not keep.")
                if value.shape != shape or not (is_floating(value.dtype) or value.dtype.kind in "iu"):
                    raise ValueError(f"{where} {name} of shape {value.shape} and dtype {value.dtype}.")
            missing = [name for name in self.arrays_of(group_of[number]) if name not in arrays]
            if step and missing:
                raise ValueError(f"{where} no {' and no '.join(missing)}.")
            checked[number] = {"step": step, **arrays}
        return checked

    def _restore(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        self.layout += 1
        for buffer in self._buffers:
            buffer.steps = [0] * len(buffer.flat)
            buffer.state = {}
        for number, entry in state.items():
            buffer, i = self._places[number]
            buffer.steps[i] = entry["step"]
            for name, value in entry.items():
                if name != "step":
                    buffer.write(name, i, value)

    # --- the loop -------------------------------------------------------------------------------------

    def _spans(self) -> list[Span]:
        """The spans to update: those of the parameters that have a gradient now."""
        for buffer in self._buffers:
            buffer.present = buffer.flat.refresh()
        return [
            Span(group, buffer, i, j)
            for group, parts in zip(self.param_groups, self._parts, strict=True)
            for buffer, first, last in parts
            for i, j in buffer.spans(first, last)
        ]

    def _note_rounded(self) -> None:
        for buffer in self._buffers:
            buffer.flat.note_rounded()
