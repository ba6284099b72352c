"""Which documents are for training and which for validation.

The choice depends on a document's name and the seed, on nothing else: not on the order in which documents come, on who reads
them, or on the other documents. Whoever adds documents later moves none from one side to the other.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["train", "val"]
SPLITS: tuple[Split, Split] = ("train", "val")


@dataclass(frozen=True)
class Splitter:
    """Attributes:
    seed: another seed, another choice.
    val_fraction: the share of documents that is for validation.
    sample: the share of documents that is used at all. A larger sample has all documents of a smaller one.
    """

    seed: int = 0
    val_fraction: float = 0.1
    sample: float = 1.0

    def __call__(self, name: str) -> Split | None:
        """The side of the document called ``name``, or None if it is not in the sample."""
        digest = hashlib.blake2b(f"{self.seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self.sample < 1 and _fraction(digest[:8]) >= self.sample:
            return None
        return "val" if _fraction(digest[8:]) < self.val_fraction else "train"


def _fraction(digest: bytes) -> float:
    return int.from_bytes(digest, "big") / 2**64
