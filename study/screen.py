"""A page on a terminal of any width, with or without colours, in any encoding, and with characters that are two columns wide."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from gpt.cli import screen

STYLES = {"title": "1;36", "heading": "1", "code": "32", "dim": "2"}
# What is written where the encoding has no such sign.
PLAIN = str.maketrans(
    {
        "→": "->", "←": "<-", "↔": "<->", "·": ".", "×": "x", "√": "sqrt ", "Σ": "sum", "∂": "d", "≈": "~", "≤": "<=", "≥": ">=",
        "✘": "-", "−": "-", "–": "-", "—": "-", "…": "...", "“": '"', "”": '"', "‘": "'", "’": "'", "✔": "x", "│": "|", "ᵀ": "^T",
        "²": "^2", "³": "^3", "σ": "sigma", "µ": "mu", "μ": "mu", "ε": "eps", "β": "beta", "π": "pi", "₀": "0", "₁": "1", "₂": "2",
        "₃": "3", "ₖ": "_k", "∞": "inf", "±": "+-", "⁻": "^-", "¹": "1", "ˣ": "^x", "⁰": "0", "⁴": "^4",
    }
)  # fmt: skip
WIDE = "\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60"
OPENING, CLOSING = "（「『《(", "，。、；：？！）」』》…)"  # never at the end, never at the beginning of a line
UNIT = re.compile(rf"[{OPENING}]*(?:[{WIDE}]|[^\s{WIDE}]+)[{CLOSING}]*")


@dataclass(frozen=True)
class Screen(screen.Screen):
    """A screen that shows pages of Markdown."""

    WIDEST: ClassVar[int] = 88  # longer lines are hard to follow

    def plain(self, text: str) -> str:
        """``text`` with signs that the encoding lacks written in others."""
        return text if self.can_show(text) else "".join(c if self.can_show(c) else self._stand_in(c) for c in text)

    def _stand_in(self, sign: str) -> str:
        plain = unicodedata.normalize("NFKD", sign.translate(PLAIN))  # ⁷ is a 7, and é an e
        return "".join(c for c in plain if self.can_show(c)) or "?"

    def styled(self, text: str, style: str) -> str:
        """``text`` in colour, if there are any."""
        text = self.plain(text)
        return f"\033[{STYLES[style]}m{text}\033[0m" if self.colours and text else text

    def markdown(self, text: str) -> Iterator[str]:
        """The lines of Markdown's paragraphs, lists, headings, tables and fences."""
        for fenced, block in blocks(text):
            if fenced:
                yield from (self.styled("    " + line if line else "", "code") for line in block.splitlines())
            elif block.startswith("#"):
                yield from (self.styled(line, "heading") for line in wrapped(inline(block.lstrip("# ")), self.width))
            elif block.startswith("|"):
                yield from table(self.plain(block), self.width)
            else:
                for item in re.split(r"\n(?=(?:- |\d+\. ))", block):
                    mark = re.match(r"- |\d+\. ", item)
                    lead = mark[0] if mark else ""
                    yield from wrapped(self.plain(inline(item[len(lead) :])), self.width, lead)
            yield ""

    def code(self, source: str) -> Iterator[str]:
        """A block of Python."""
        yield from (self.styled("    " + line if line else "", "code") for line in source.splitlines())

    def output(self, text: str) -> Iterator[str]:
        """What a block printed."""
        yield from (self.plain(f"    │ {line}".rstrip()) for line in text.splitlines())

    def error(self, text: str) -> Iterator[str]:
        """The error in which a block ended: a sentence, which may be long."""
        yield from wrapped(self.plain(text), self.width, self.plain("    │ "))


def blocks(text: str) -> Iterator[tuple[bool, str]]:
    """Paragraphs, and the contents of fences: (whether fenced, text)."""
    for i, part in enumerate(re.split(r"^```\w*\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)):
        if i % 2:
            yield True, part.rstrip("\n")
        else:
            yield from ((False, block) for block in re.split(r"\n\s*\n", part.strip("\n")) if block)


def inline(text: str) -> str:
    """Markdown within a line as plain text: a link to a file by its path, others by their words; code keeps its backticks."""
    text = re.sub(r"\[[\w/.]*\]\(\.\./\.\./([^)]*)\)", r"\1", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"(`[^`]*`)|\*\*?([^*`]+?)\*\*?", lambda match: match[1] or match[2], text)


def table(block: str, width: int) -> Iterator[str]:
    """A Markdown table with its columns aligned and its last column wrapped; where there is no room for that, as a list."""
    lines = [line for line in block.splitlines() if not re.fullmatch(r"[-:| ]+", line)]
    rows = [[inline(cell.strip()) for cell in line.strip()[1:-1].split("|")] for line in lines]
    widths = [max(width_of(cell) for cell in column) for column in zip(*rows, strict=True)][:-1]
    room = width - sum(widths) - 2 * len(widths)
    narrow = room < min(24, max(width_of(row[-1]) for row in rows))
    for i, (*cells, last) in enumerate(rows):
        if narrow:
            yield from wrapped(" · ".join(cell for cell in (*cells, last) if cell), width, "- " if i else "")
        else:
            lead = "".join(cell + " " * (full + 2 - width_of(cell)) for cell, full in zip(cells, widths, strict=True))
            yield from wrapped(last, width, lead)


def width_of(text: str) -> int:
    """How many columns ``text`` takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text: str, width: int, lead: str = "") -> Iterator[str]:
    """``text`` in lines of at most ``width`` columns; ``lead`` stands before the first line, blanks of its length before the others.

    A line is broken at blanks, and between wide characters, but not before a closing sign nor after an opening one.
    """
    line, empty = lead, True
    indent = " " * width_of(lead)
    end = 0
    for match in UNIT.finditer(text):
        unit = match[0]
        gap = " " if match.start() > end and not empty else ""
        if not empty and width_of(line + gap + unit) > width:
            yield line.rstrip()
            line, gap = indent, ""
        line += gap + unit
        empty, end = False, match.end()
    yield line.rstrip()
