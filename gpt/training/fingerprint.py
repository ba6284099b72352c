"""A fingerprint of the data that a run learns from, so that a resumed run is known to go on with the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.loader import Tokens
from data.token_file import CHUNK, TokenFile
from gpt.training.rows import Row

PREFIX = "sha256:"  # earlier versions wrote the hash of a part of the text, without this prefix
MAX_HASHED = 2**28  # tokens, 0.3 to 1 second for each hundred million; of longer files that many are hashed, in evenly spread stretches

Fingerprint = dict[str, list[Any]]


def fingerprint(data: Mapping[str, Tokens | Sequence[Row]]) -> Fingerprint:
    """For each text its length and a hash of it. Rows are joined into one text, each row's targets after its ids."""
    texts = {name: _as_text(part) for name, part in data.items()}
    return {name: [len(text), PREFIX + _hash(text)] for name, text in texts.items()}


def is_same_data(recorded: Mapping[str, Any], found: Fingerprint) -> bool:
    """Whether the fingerprint ``recorded`` in a checkpoint is ``found`` again. For checkpoints of earlier versions, the lengths decide."""
    if recorded == found:
        return True
    known = {name: entry for name, entry in recorded.items() if isinstance(entry, list) and len(entry) == 2}
    is_earlier = not any(str(hashed).startswith(PREFIX) for _, hashed in known.values())
    return is_earlier and {name: length for name, (length, _) in known.items()} == {name: length for name, (length, _) in found.items()}


def _as_text(part: Tokens | Sequence[Row]) -> Tokens:
    return part if isinstance(part, np.ndarray | TokenFile) else np.concatenate([ids for row in part for ids in (row.x, row.y)])


def _hash(text: Tokens, max_hashed: int = MAX_HASHED, chunk: int = CHUNK) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(text), max(chunk, len(text) * chunk // max_hashed)):
        digest.update(np.asarray(text[start : start + chunk], "<u4").tobytes())
    return digest.hexdigest()
