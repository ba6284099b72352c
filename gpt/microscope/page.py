"""A reading as one HTML page that needs nothing else: no network, no server, no library."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gpt.generation.sampling import Sampling
from gpt.microscope.reading import Reading, log_softmax, visible

TEMPLATE = Path(__file__).with_name("page.html")
KEPT = 100  # of the likeliest next tokens at each place; the page samples from those


def page(reading: Reading, sampling: Sampling, effects: np.ndarray, text_of: Callable[[int], str], title: str) -> str:
    """The page.

    Args:
        effects: see `gpt.microscope.screen.lines_of`.
        text_of: the text of a token.
    """
    log_p, (layers, heads) = log_softmax(reading.logits), reading.attention.shape[:2]
    likeliest = np.argsort(-log_p, axis=-1, kind="stable")[:, :KEPT]
    content: dict[str, Any] = {
        "tokens": list(reading.tokens),
        "shown": [visible(token) for token in reading.tokens],
        "surprise": [None if value != value else round(float(value), 3) for value in reading.surprise],
        "next": [[[visible(text_of(int(i))), round(float(row[i]), 4)] for i in order] for row, order in zip(log_p, likeliest, strict=True)],
        "guesses": [
            [[visible(text_of(token)), round(p, 4)] for token, p in reading.guesses(position)] for position in range(len(reading.ids))
        ],
        "attention": [[[[round(float(w), 3) for w in row] for row in head] for head in block] for block in reading.attention],
        "roles": [[reading.main_roles(layer, head) for head in range(heads)] for layer in range(layers)],
        "effects": [round(float(effect), 4) for effect in effects],
        "target": visible(text_of(int(reading.logits[-1].argmax()))),
        "of": f", of the {KEPT} likeliest" if log_p.shape[-1] > KEPT else "",
        "sampling": {"temperature": sampling.temperature, "top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0},
    }
    data = json.dumps(content, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {"@TITLE@": html.escape(title), "@DATA@": data}
    return re.sub("|".join(parts), lambda found: parts[found[0]], TEMPLATE.read_text(encoding="utf-8"))
