"""What a run learns from, as a few bytes that another text does not have: so that a run goes on with the one it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.loader import Tokens
from data.token_file import CHUNK, TokenFile
from gpt.training.rows import Row

HASH = "sha256:"  # earlier versions have written the hash of a part, without this word
MAX_TOKENS_CHECKED = 2**28  # tokens, 0.3 to 1 second each hundred million; of longer files that many, in stretches spread evenly

Fingerprint = dict[str, list[Any]]


def fingerprint(data: Mapping[str, Tokens | Sequence[Row]]) -> Fingerprint:
    """For each text its length, and a hash of all of it.

    Examples are taken for a text, one after the other, what is asked after what is read.
    """
    texts = {name: _as_text(part) for name, part in data.items()}
    return {name: [len(text), HASH + _hash(text)] for name, text in texts.items()}


def agree(recorded: Mapping[str, Any], found: Fingerprint) -> bool:
    """Whether what a checkpoint has ``recorded`` is what there is. Of a checkpoint of an earlier version only the lengths are known."""
    if recorded == found:
        return True
    known = {name: entry for name, entry in recorded.items() if isinstance(entry, list) and len(entry) == 2}
    is_earlier = not any(str(hashed).startswith(HASH) for _, hashed in known.values())
    return is_earlier and {name: length for name, (length, _) in known.items()} == {name: length for name, (length, _) in found.items()}


def _as_text(part: Tokens | Sequence[Row]) -> Tokens:
    return part if isinstance(part, np.ndarray | TokenFile) else np.concatenate([ids for row in part for ids in (row.x, row.y)])


def _hash(text: Tokens, looked_at: int = MAX_TOKENS_CHECKED, chunk: int = CHUNK) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(text), max(chunk, len(text) * chunk // looked_at)):
        digest.update(np.asarray(text[start : start + chunk], "<u4").tobytes())
    return digest.hexdigest()
