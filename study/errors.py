"""What a reader can have asked for wrongly, and the nearest thing that there is."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from data.errors import DataError


class StudyError(DataError):
    """Something that is not there, or cannot be done: the message is one sentence with what to do."""


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Stop with ``message``.

        Raises:
            StudyError: always.
        """
        raise StudyError(f"{message} (--help lists what there is).")


def nearest(wanted: str, known: Iterable[str]) -> str | None:
    """The name among ``known`` that is spelt most like ``wanted``, or None if none is near."""
    found = difflib.get_close_matches(wanted.lower(), list(known), n=1, cutoff=0.5)
    return found[0] if found else None
