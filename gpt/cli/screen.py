"""The terminal that a program writes to: how wide it is, and what it can show."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar, Self


@dataclass(frozen=True)
class Screen:
    """Where something is shown.

    Attributes:
        width: columns to use.
        colours: whether escape codes are understood.
        encoding: of the stream.
    """

    NARROWEST: ClassVar[int] = 24
    WIDEST: ClassVar[int] = 120

    width: int = 80
    colours: bool = False
    encoding: str = "utf-8"

    @classmethod
    def of_stdout(cls) -> Self:
        """As standard output is. Colours are for terminals alone, and not where NO_COLOR is set or TERM is dumb."""
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        width = shutil.get_terminal_size((80, 24)).columns
        return cls(max(cls.NARROWEST, min(width, cls.WIDEST)), colours, getattr(sys.stdout, "encoding", None) or "utf-8")

    def can_show(self, text: str) -> bool:
        """Whether the encoding has all characters of ``text``."""
        try:
            text.encode(self.encoding)
        except UnicodeEncodeError:
            return False
        return True
