"""A module: named parameters, buffers and child modules, and a forward.

Everything that a module does for its user (list its parameters, save and load them, move them) follows from one idea:
the assignment of an attribute registers it. ``self.weight = Parameter(...)`` registers a parameter,
``self.layer = Linear(...)`` a child, and a walk over the children gives every value a dotted name,
``transformer.h.0.attn.c_attn.weight``. Those names are torch's, so torch's checkpoints load here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Self

import numpy as np

from tensorlite.backend import Device, device_of
from tensorlite.lazy import Later
from tensorlite.nn.parameter import Parameter
from tensorlite.tensor import Tensor, is_floating


class IncompatibleKeys(NamedTuple):
    """The names that `Module.load_state_dict` could not match. With ``strict`` both lists are empty."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """The base class of layers and models. A subclass calls ``super().__init__()``, assigns its parts, and defines ``forward``.

    Attributes:
        training: whether dropout is active; set by `train` and `eval`.
    """

    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]

    def __init__(self) -> None:
        # not by our own __setattr__, which uses these
        for name, value in (("training", True), ("_parameters", {}), ("_buffers", {}), ("_non_persistent", set()), ("_modules", {})):
            object.__setattr__(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The computation of the module. Call the module itself, ``model(x)``, not this method."""
        raise NotImplementedError(f"{type(self).__name__} has no forward(): define one.")

    _module_hooks: Any = None  # `tensorlite.nn.hooks.ModuleHooks`, once there is one

    @property
    def has_hooks(self) -> bool:
        """Whether a hook was ever registered here. Code that computes what a module would compute must call that module then."""
        return self._module_hooks is not None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._module_hooks is not None:
            return self._module_hooks.call(self, args, kwargs)
        return self.forward(*args, **kwargs)

    register_forward_pre_hook = Later("register_forward_pre_hook", "tensorlite.nn.hooks", "register_forward_pre_hook")
    register_forward_hook = Later("register_forward_hook", "tensorlite.nn.hooks", "register_forward_hook")
    register_full_backward_hook = Later("register_full_backward_hook", "tensorlite.nn.hooks", "register_full_backward_hook")

    # --- attributes are registered by type ------------------------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if "_modules" not in self.__dict__:
            raise AttributeError(f"cannot assign {name!r}: {type(self).__name__} must call super().__init__() first.")
        if isinstance(value, Parameter):
            self._register(self._parameters, name, value)
        elif isinstance(value, Module):
            self._register(self._modules, name, value)
        elif name in self._parameters and value is not None:
            raise TypeError(f"cannot assign {type(value).__name__} to the parameter {name!r}: it takes a Parameter or None.")
        elif name in self._buffers and not isinstance(value, Tensor | None):
            raise TypeError(f"cannot assign {type(value).__name__} to the buffer {name!r}: it takes a Tensor or None.")
        else:
            for registry in (self._parameters, self._buffers, self._modules):
                if name in registry:
                    registry[name] = value
                    return
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:  # called only if the ordinary look-up fails
        for registry in ("_parameters", "_buffers", "_modules"):
            found = self.__dict__.get(registry, {})
            if name in found:
                return found[name]
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}.")

    def __delattr__(self, name: str) -> None:
        for registry in (self._parameters, self._buffers, self._modules):
            if name in registry:
                del registry[name]
                self._non_persistent.discard(name)
                return
        object.__delattr__(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._buffers, *self._modules})

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Add a parameter. None reserves the name for one that is absent, such as the bias of a layer without bias."""
        self._register(self._parameters, name, parameter)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Add a tensor that moves with the module but is not trained.

        Args:
            persistent: whether it is part of `state_dict`.
        """
        self._register(self._buffers, name, tensor)
        if not persistent:
            self._non_persistent.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a child under a name that is only known at run time."""
        self._register(self._modules, name, module)

    def _register(self, registry: dict[str, Any], name: str, value: Any) -> None:
        if "." in name or not name:
            raise KeyError(f"a name of a parameter, buffer or module must not be empty or contain a dot, got {name!r}.")
        for other in (self.__dict__, self._parameters, self._buffers, self._modules):
            if other is not registry:
                other.pop(name, None)
        self._non_persistent.discard(name)
        registry[name] = value

    # --- walks ----------------------------------------------------------------------------------------

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below this one, each once."""
        return _unique(self._modules.items())

    def children(self) -> Iterator[Module]:
        return (child for _, child in self.named_children())

    def named_modules(self, prefix: str = "", remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module, whose name is ``prefix``, and all below it, parents before children."""
        walk = self._walk(prefix)
        return _unique(walk) if remove_duplicate else walk

    def modules(self) -> Iterator[Module]:
        return (module for _, module in self.named_modules())

    def _walk(self, prefix: str) -> Iterator[tuple[str, Module]]:
        yield prefix, self
        for name, child in self._modules.items():
            if child is not None:
                yield from child._walk(_join(prefix, name))

    def named_parameters(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Every parameter with its dotted name. A shared parameter appears once, under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Every buffer with its dotted name."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _named(self, registry: str, prefix: str, recurse: bool, unique: bool) -> Iterator[tuple[str, Any]]:
        modules = self.named_modules(prefix, unique) if recurse else [(prefix, self)]
        found = ((_join(path, name), value) for path, module in modules for name, value in getattr(module, registry).items())
        return _unique(found) if unique else ((name, value) for name, value in found if value is not None)

    def apply(self, fn: Callable[[Module], Any]) -> Self:
        """Call ``fn`` on every module, children before parents; returns the module itself."""
        for child in self.children():
            child.apply(fn)
        fn(self)
        return self

    # --- saving and loading ---------------------------------------------------------------------------

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Every parameter and persistent buffer by name, as detached tensors that share the module's memory.

        A parameter with two names (a tied weight) appears under both, as in torch.
        """
        return {name: value.detach() for name, value in self._stored(prefix)}

    def _stored(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        for path, module in self._walk(prefix.removesuffix(".")):
            for name, value in (*module._parameters.items(), *module._buffers.items()):
                if value is not None and name not in module._non_persistent:
                    yield _join(path, name), value

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> IncompatibleKeys:
        """Copy values into the parameters and buffers, which keep their memory, dtype and device.

        Nothing is written before all names and shapes have been checked.

        Args:
            state_dict: tensors or arrays by name.
            strict: also refuse missing and unexpected names. A wrong shape is always refused.
            assign: copy nothing: the parameters and buffers take the given arrays, with their memory, dtype and device.

        Raises:
            RuntimeError: one message that lists all names that are missing or unexpected, or have a wrong shape.
        """
        own = dict(self._stored())
        given = {name: value.array if isinstance(value, Tensor) else value for name, value in state_dict.items()}
        missing = [name for name in own if name not in given]
        unexpected = [name for name in given if name not in own]
        misshapen = [
            f"{name}: {np.shape(given[name])} in the state_dict, {own[name].shape} in the module"
            for name in own
            if name in given and np.shape(given[name]) != own[name].shape
        ]
        complaints = [("misshapen", misshapen)]
        if strict:
            complaints = [("missing", missing), ("unexpected", unexpected), *complaints]
        listed = [f"\n  {kind}: {', '.join(names)}" for kind, names in complaints if names]
        if listed:
            raise RuntimeError(f"load_state_dict() into {type(self).__name__} does not fit:{''.join(listed)}")
        arrays = {name: given[name] if assign else device_of(own[name].array).asarray(given[name]) for name in own if name in given}
        for name, array in arrays.items():
            if assign:
                own[name].array, own[name].grad_buffer = array, None  # the flat buffer has other memory
            else:
                own[name].array[...] = array
            own[name].version.increment(own[name].array)
        return IncompatibleKeys(missing, unexpected)

    # --- modes ----------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which dropout is active, here and in every module below; with False, evaluation mode."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """The same as ``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Set whether every parameter gets gradients; with False they are frozen."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop every gradient; with ``set_to_none=False`` fill it with zeros."""
        for parameter in self.parameters():
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.array[...] = 0

    def to(self, *args: Any, device: Device | str | int | None = None, dtype: Any = None, non_blocking: bool = False) -> Self:
        """Move every parameter and buffer to a device, and the floating point ones to a dtype.

        ``to("cupy")``, ``to(tl.float64)`` and ``to("cupy", tl.float64)`` work like the keywords. The parameters
        stay the same objects with new arrays, so an optimizer that was made before still works.

        Raises:
            TypeError: for a dtype that is not floating point.
        """
        for arg in args:
            if isinstance(arg, Device | int) or (isinstance(arg, str) and arg.partition(":")[0] in ("numpy", "cupy", "cpu", "cuda")):
                device = arg
            elif arg is not None:
                dtype = arg
        target = None if device is None else Device(device)
        dtype = None if dtype is None else np.dtype(dtype)
        if dtype is not None and not is_floating(dtype):
            raise TypeError(f"a module can only be moved to a floating point dtype, got {dtype}.")
        for tensor in (*self.parameters(), *self.buffers()):
            _move(tensor, target, dtype)
        return self

    def cpu(self) -> Self:
        """The same as ``to("cpu")``."""
        return self.to(device="cpu")

    def cuda(self, device: Device | str | int = "cuda") -> Self:
        """The same as ``to("cuda")``."""
        return self.to(device=device)

    def float(self) -> Self:
        """The same as ``to(float32)``."""
        return self.to(dtype=np.float32)

    def double(self) -> Self:
        """The same as ``to(float64)``."""
        return self.to(dtype=np.float64)

    # --- as text --------------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """The text between the brackets of the repr; a layer shows its sizes here."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {child!r}" for name, child in self._modules.items()]
        return self._repr(lines)

    def _repr(self, lines: list[str]) -> str:
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        body = "\n".join([*([extra] if extra else []), *lines]).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {body}\n)"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _unique(named: Any) -> Iterator[tuple[str, Any]]:
    """Skip None, and objects that came before under another name."""
    seen = set()
    for name, value in named:
        if value is not None and id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _move(tensor: Tensor, device: Device | None, dtype: Any) -> None:
    """Give ``tensor``, and its gradient, an array on ``device`` in ``dtype``; the same array where nothing changes."""
    device = device_of(tensor.array) if device is None else device
    dtype = dtype if dtype is not None and is_floating(tensor.dtype) else tensor.dtype
    if device == device_of(tensor.array) and dtype == tensor.dtype:
        return
    tensor.array = device.asarray(tensor.array, dtype)
    tensor.grad_buffer = None  # the flat buffer has the old dtype and device
    if tensor.grad is not None:
        tensor.grad = Tensor.wrap(device.asarray(tensor.grad.array, dtype))
