"""What the checker has found out about a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn


@dataclass(frozen=True)
class Verdict:
    """On one page.

    Attributes:
        name: the exercise.
        right: whether nothing is wrong.
        written: whether there is something to check; False while the page still raises NotImplementedError.
        says: what is wrong, or by how much all is right.
        looks_like: the kind of mistake, to follow "It looks like", or None.
        comes_back: whether the page came to its end; False if its time was over, or it has ended the process.
    """

    name: str
    right: bool
    says: str
    looks_like: str | None = None
    written: bool = True
    comes_back: bool = True


class WrongPageError(Exception):
    """Something is wrong with a page.

    Attributes:
        says, looks_like: as in `Verdict`.
    """

    def __init__(self, says: str, looks_like: str | None = None) -> None:
        super().__init__(says)
        self.says, self.looks_like = says, looks_like


def wrong(says: str, looks_like: str | None = None) -> NoReturn:
    """Stop the check with what is wrong.

    Raises:
        WrongPageError: always.
    """
    raise WrongPageError(says, looks_like)
