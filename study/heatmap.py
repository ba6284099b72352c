"""A small picture of many numbers: the largest of each part of an array, with its sign."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from study.screen import Screen

SHADES = " ░▒▓█"
PLAIN_SHADES = " .:*#"
ROWS, COLUMNS = 6, 48
WARM, COLD = "31", "34"  # positive red, negative blue


def as_matrix(array: np.ndarray) -> np.ndarray:
    """The array as rows of its last axis."""
    values = np.asarray(array, np.float64)
    return values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)


def pooled(array: np.ndarray, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """At most (rows, columns) numbers: of each part the one that is farthest from 0. A nan counts as farther than any number."""
    matrix = as_matrix(array)
    if matrix.size == 0:
        return matrix[:rows, :columns]
    parts = [np.array_split(band, min(columns, band.shape[1]), axis=1) for band in np.array_split(matrix, min(rows, len(matrix)))]
    return np.array([[_farthest(part) for part in band] for band in parts])


def heat_map(array: np.ndarray, screen: Screen, columns: int = COLUMNS) -> Iterator[str]:
    """Lines of shades, the darkest for the number farthest from 0, and ! for one that is not finite.

    With colours positive numbers are red and negative ones blue.
    """
    small = pooled(array, columns=columns)
    shades = SHADES if screen.can_show(SHADES) else PLAIN_SHADES
    finite = np.abs(small[np.isfinite(small)])
    largest = float(finite.max(initial=0)) or 1.0
    for row in small:
        yield "".join(_cell(value, largest, shades, screen.colours) for value in row)


def _farthest(part: np.ndarray) -> float:
    distance = np.where(np.isnan(part), np.inf, np.abs(part))
    return float(part.reshape(-1)[distance.argmax()])


def _cell(value: float, largest: float, shades: str, colours: bool) -> str:
    if not np.isfinite(value):
        return "!"
    shade = shades[int(np.ceil(abs(value) / largest * (len(shades) - 1)))]
    return f"\033[{WARM if value > 0 else COLD}m{shade}\033[0m" if colours and shade != " " else shade
