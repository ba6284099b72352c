"""A parameter: a tensor that training adjusts."""

from __future__ import annotations

from typing import Any

from tensorlite.tensor import Tensor


class Parameter(Tensor):
    """A leaf that requires a gradient, and that a `Module` registers when it is assigned.

    Args:
        data: a tensor or an array, whose memory the parameter shares.
        requires_grad: False for a frozen parameter.
    """

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """A copy without the gradient, as in torch."""
        twin = super().__deepcopy__(memo)
        twin.grad = None
        return twin  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"
