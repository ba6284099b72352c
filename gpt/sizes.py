"""Amounts of memory in words, and what an error says about them."""

from __future__ import annotations

import re


def in_words(size: float) -> str:
    """A number of bytes for people."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def missing(error: MemoryError) -> str:
    """The error's own figures, in a sentence."""
    said = str(error).strip().rstrip(".") or "the system gave no figure"
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"([\d,]+) bytes", said)]
    if not said.startswith("Out of memory allocating") or len(figures) < 2:
        return f"out of memory ({said})."
    asked, held, *limit = map(in_words, figures)  # CuPy's
    limited = f", and --memory-limit allows {limit[0]}" if limit else ""
    return f"out of memory on the GPU: {asked} were asked for, {held} are taken already{limited}."
