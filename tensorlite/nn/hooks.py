"""Functions that are called before and after a module's forward, and after its backward, as in torch.

    handle = model.layer.register_forward_hook(lambda module, inputs, output: print(output.shape))
    handle.remove()

A module without hooks has no object for them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tensorlite.ops.shape import reshape
from tensorlite.tensor import RemovableHandle, Tensor

if TYPE_CHECKING:
    from tensorlite.nn.module import Module


class ModuleHooks:
    """The hooks of one module, by number."""

    def __init__(self) -> None:
        self.before: dict[int, tuple[Callable[..., Any], bool]] = {}
        self.after: dict[int, tuple[Callable[..., Any], bool]] = {}
        self.backward: dict[int, Callable[..., Any]] = {}
        self.count = 0

    def add(self, drawer: dict[int, Any], hook: Any) -> RemovableHandle:
        """Under the next number."""
        self.count += 1
        drawer[self.count] = hook
        return RemovableHandle(drawer, self.count)

    def call(self, module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's forward, with its hooks before and after it. What a hook returns replaces what it was given."""
        for hook, with_kwargs in list(self.before.values()):
            changed = hook(module, args, kwargs) if with_kwargs else hook(module, args)
            if changed is not None and with_kwargs:
                args, kwargs = changed
            elif changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        watch = _Backward(module, list(self.backward.values())) if self.backward else None
        output = module.forward(*(args if watch is None else watch.inputs(args)), **kwargs)
        for hook, with_kwargs in list(self.after.values()):
            changed = hook(module, args, kwargs, output) if with_kwargs else hook(module, args, output)
            output = output if changed is None else changed
        return output if watch is None else watch.outputs(output)


class _Backward:
    """Collects the gradients of the outputs and inputs of one call of a module, and passes both to the hooks.

    Inputs and outputs go through a reshape to their own shape, so gradients from other uses of them are not included.
    """

    def __init__(self, module: Module, hooks: list[Callable[..., Any]]) -> None:
        self.module, self.hooks = module, hooks
        self.dy: list[Tensor | None] = []

    def outputs(self, output: Any) -> Any:
        ys = output if isinstance(output, tuple) else (output,)
        self.dy = [None] * len(ys)
        through = tuple(self._watched(y, i) if isinstance(y, Tensor) and y.requires_grad else y for i, y in enumerate(ys))
        return through if isinstance(output, tuple) else through[0]

    def _watched(self, y: Tensor, place: int) -> Tensor:
        y = reshape(y, y.shape)

        def note(dy: Tensor) -> None:
            self.dy[place] = dy
            if not self.wanted:  # no input requires a gradient, so this is the end of the module's backward
                self._show([None])

        y.register_hook(note)
        return y

    def inputs(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        self.wanted = [i for i, x in enumerate(args) if isinstance(x, Tensor) and x.requires_grad]
        through = list(args)
        for i in self.wanted[:1]:
            through[i] = self._entered(args[i])
        if len(self.wanted) > 1:
            raise NotImplementedError(
                f"register_full_backward_hook on {type(self.module).__name__}: {len(self.wanted)} of its inputs want a gradient; "
                "one can be watched, put a hook on the tensors instead: x.register_hook(…)."
            )
        return tuple(through)

    def _entered(self, x: Tensor) -> Tensor:
        x = reshape(x, x.shape)
        if x.requires_grad:  # not under no_grad
            x.register_hook(lambda dx: self._show([dx]))
        return x

    def _show(self, dx: list[Tensor | None]) -> Tensor | None:
        """Call the hooks; what a hook returns replaces the gradient of the input."""
        for hook in self.hooks:
            changed = hook(self.module, tuple(dx), tuple(self.dy))
            if changed is not None:
                dx = list(changed) if isinstance(changed, tuple) else [changed]
        return dx[0]


def _hooks_of(module: Module) -> ModuleHooks:
    if module._module_hooks is None:
        object.__setattr__(module, "_module_hooks", ModuleHooks())
    return module._module_hooks


def register_forward_pre_hook(module: Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> RemovableHandle:
    """Call ``hook(module, args)`` before the forward; what it returns replaces the arguments."""
    hooks = _hooks_of(module)
    return hooks.add(hooks.before, (hook, with_kwargs))


def register_forward_hook(module: Module, hook: Callable[..., Any], *, with_kwargs: bool = False) -> RemovableHandle:
    """Call ``hook(module, args, output)`` after the forward; what it returns replaces the output."""
    hooks = _hooks_of(module)
    return hooks.add(hooks.after, (hook, with_kwargs))


def register_full_backward_hook(module: Module, hook: Callable[..., Any]) -> RemovableHandle:
    """Call ``hook(module, grad_input, grad_output)``, two tuples, in backward; what it returns replaces the gradient of the input.

    Raises:
        NotImplementedError: in the forward, if several inputs require a gradient.
    """
    hooks = _hooks_of(module)
    return hooks.add(hooks.backward, hook)
