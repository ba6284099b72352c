"""A checksum that travels with weights and with what is said about them: no changed byte is taken for a model.

A snapshot has a manifest beside it (`gpt.training.snapshot`). A file that goes its own ways, copied, sent, kept for years, has to
bring along what it is held against. Whoever changes it on purpose can change that, too: it guards against accidents.
"""

from __future__ import annotations

import hashlib
import json
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


def _digest(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(weights.items()):
        array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # as it is read
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
