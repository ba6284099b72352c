"""All steps of a walk as one HTML page that needs nothing else: no network, no server, no library."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from study.heatmap import pooled
from tensorlite.inspect import Walk, summary

TEMPLATE = Path(__file__).with_name("walk_page.html")
DIGITS = 3  # of a number in a heat map


def page(steps: Sequence[dict[str, Any]], walk: Walk, text: str, facts: str) -> str:
    """The page for steps as `study.walk.describe` gives them."""
    derivations = {step["op"]: step["why"] for step in steps}
    content = {
        "steps": [{**{key: value for key, value in step.items() if key != "why"}, **_arrays(step)} for step in steps],
        "why": derivations,
        "parameters": len(walk.names),
    }
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {"@TEXT@": html.escape(text), "@FACTS@": html.escape(facts), "@DATA@": data}
    return re.sub("|".join(parts), lambda found: parts[found[0]], TEMPLATE.read_text(encoding="utf-8"))


def _arrays(step: dict[str, Any]) -> dict[str, Any]:
    """The arrays as one line and a small picture each."""
    return {
        **{key: [_array(name, array) for name, array in step[key]] for key in ("dy", "saved", "dx")},
        "norm": _number(step["norm"]),
        "checks": [{**one, **{key: _number(one[key]) for key in ("ours", "other", "error")}} for one in step["checks"]],
    }


def _array(name: str, array: np.ndarray) -> dict[str, Any]:
    map_ = pooled(array, rows=12, columns=64) if array.size > 1 and array.dtype.kind in "fiu" else np.zeros((0, 0))
    return {"name": name, "summary": summary(array), "map": [[_number(value) for value in row] for row in map_]}


def _number(value: float) -> float | str:
    """As JSON has it: it knows no nan."""
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else str(value)
