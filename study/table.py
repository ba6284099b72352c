"""How the lessons print numbers: a name and a small table, the same for a tensor of tensorlite and of torch."""

from __future__ import annotations

from typing import Any

NAMES = 10  # columns for a name, so that the numbers of several calls stand below each other


def show(name: str, values: Any, digits: int = 2) -> None:
    """Print ``values`` beside ``name``: a row on a line, floats with ``digits`` decimals, integers as they are.

    Args:
        values: a tensor, an array, a number, or nested lists of numbers.
    """
    rows = rows_of(values.tolist() if hasattr(values, "tolist") else values)
    cells = [[text_of(number, digits) for number in row] for row in rows]
    narrowest = digits + 3 if digits and any(isinstance(number, float) for row in rows for number in row) else 0
    width = max((len(cell) for row in cells for cell in row), default=0)
    width = max(width, narrowest)  # so that a table without a minus stands below one with it
    for i, row in enumerate(cells):
        print((name if i == 0 else "").ljust(max(NAMES, len(name))), *(cell.rjust(width) for cell in row), sep="  ")


def rows_of(values: Any) -> list[list[Any]]:
    """Nested lists as rows of numbers; an empty row stands between two matrices."""
    if not isinstance(values, list):
        return [[values]]
    if not any(isinstance(value, list) for value in values):
        return [values]
    if not any(isinstance(value, list) for row in values for value in row):
        return values
    matrices = [rows_of(value) for value in values]
    return [row for i, matrix in enumerate(matrices) for row in ([[]] if i else []) + matrix]


def text_of(number: Any, digits: int) -> str:
    """One number; a zero has no sign."""
    if not isinstance(number, float):
        return str(number)
    text = f"{number:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text
