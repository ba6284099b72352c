"""The split of documents into training and validation.

The split of a document depends only on its name and the seed: not on the order of the documents, on the process that reads
them, or on other documents. So new documents move none of the old ones to another split.
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
    seed: decides the split.
    val_fraction: the share of documents for validation.
    sample: the share of documents that is used. A larger sample contains all documents of a smaller one.
    """

    seed: int = 0
    val_fraction: float = 0.1
    sample: float = 1.0

    def __call__(self, name: str) -> Split | None:
        """The split of the document ``name``; None if it is not in the sample."""
        digest = hashlib.blake2b(f"{self.seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if self.sample < 1 and _fraction(digest[:8]) >= self.sample:
            return None
        return "val" if _fraction(digest[8:]) < self.val_fraction else "train"


def _fraction(digest: bytes) -> float:
    return int.from_bytes(digest, "big") / 2**64
