"""Places along one axis: an index for ``x[places]`` that reads, or writes, along axis ``dim`` where ``index`` says."""

from __future__ import annotations

from tensorlite.backend import Array, array_module


def places_along(index: Array, dim: int) -> tuple[Array, ...]:
    """With ``dim`` = 1 of 3, ``x[places_along(index, 1)]`` is y with y[i, j, k] = x[i, index[i, j, k], k].

    Along every other axis each number is at its own position: 0, 1, 2, …, broadcast along the rest.
    """
    xp = array_module(index)
    places = [xp.arange(n).reshape((-1,) + (1,) * (index.ndim - 1 - axis)) for axis, n in enumerate(index.shape)]
    places[dim] = index
    return tuple(places)
