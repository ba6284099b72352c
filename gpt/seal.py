"""A checksum that travels with weights and with what is said about them: no changed byte is taken for a model.

A snapshot has a manifest beside it (`gpt.training.snapshot`). A file that goes its own ways, copied, sent, kept for years, has to
bring along what it is held against. Whoever changes it on purpose can change that, too: it guards against accidents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

SEAL = "sha256"


def sealed(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``facts``, fit for JSON, and with them the SHA-256 of both."""
    return {**facts, SEAL: _digest(facts, weights)}


def is_broken(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> bool:
    """Whether these are others than were `sealed`. Where there is no seal nothing is known: files of earlier versions have none."""
    return SEAL in facts and facts[SEAL] != _digest({name: fact for name, fact in facts.items() if name != SEAL}, weights)


def name_twice(file: str | os.PathLike[str]) -> str | None:
    """A name that the header of a safetensors file has twice, if there is one: readers would differ in which of the two they take."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        twice.extend(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)

    with open(file, "rb") as opened:
        json.loads(opened.read(int.from_bytes(opened.read(8), "little")), object_pairs_hook=look)
    return twice[0] if twice else None


def _digest(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(weights.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
