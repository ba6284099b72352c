"""A lesson as a file: Markdown with blocks of Python, and below each block what it prints.

```python            a block; all blocks of a lesson share their names, as the cells of a notebook do
```python raises     a block that ends in an error on purpose: the output is the error's last line
```output            what the block above prints, on both engines
```output torch      the same where the engines differ, as they do in the wording of their errors
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from study.errors import StudyError, nearest

FOLDER = Path(__file__).parent / "lessons"
LANGUAGES = ("en", "zh-TW")
ENGINES = ("tensorlite", "torch")
FENCE = re.compile(r"^```(\w*) ?(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"(\d+)([a-z]?)_(\w+)")  # 7b_encoder_decoder


@dataclass(frozen=True)
class Prose:
    """Markdown between two blocks of code."""

    text: str


@dataclass
class Code:
    """A block of Python.

    Attributes:
        raises: whether it ends in an error on purpose.
        outputs: engine -> what it prints. Where there is one output for both, it is under each.
    """

    source: str
    raises: bool = False
    outputs: dict[str, str] = field(default_factory=dict)

    def output(self, engine: str) -> str:
        """What the file says that this block prints on ``engine``."""
        return self.outputs.get(engine, "")


@dataclass(frozen=True)
class Page:
    """A lesson in one language.

    Attributes:
        path: its file.
        number: "7", or "7b" for a page beside the lesson.
        title: its heading, without the number.
        subtitle: the line below: where the course has it, how long it takes.
        parts: prose and code in their order, from below the subtitle.
    """

    path: Path
    number: str
    title: str
    subtitle: str
    parts: tuple[Prose | Code, ...]

    @property
    def name(self) -> str:
        """The file's name without languages and endings: ``07_self_attention``."""
        return self.path.name.partition(".")[0]

    @property
    def is_beside(self) -> bool:
        """Whether this page is read beside a lesson and is none of the 21."""
        return not self.number.isdigit()

    def code(self) -> list[Code]:
        """The blocks of Python."""
        return [part for part in self.parts if isinstance(part, Code)]


def names() -> list[str]:
    """All pages in the course's order: ``["01_text", "02_tokens", …]``."""
    return sorted(path.stem for path in FOLDER.glob("*.md") if "." not in path.stem)


def number_of(name: str) -> str:
    """``"7b"`` for ``"07b_transformers"``."""
    match = NAME.fullmatch(name)
    assert match, f"{name} is no name of a lesson"
    return f"{int(match[1])}{match[2]}"


def find(wanted: str) -> str:
    """The name of the page that ``wanted`` means: a number (7, 07, 7b), or words of its name (attention).

    Raises:
        StudyError: if there is none; it says what is nearest.
    """
    known = {number_of(name): name for name in names()}
    number = wanted.lower().lstrip("0") or wanted[:1]  # "00" is 0, and nothing is nothing
    if number in known:
        return known[number]
    slugs = {name.partition("_")[2]: name for name in names()}
    spelt = wanted.lower().replace("-", "_").replace(" ", "_")
    holding = [name for slug, name in slugs.items() if spelt and spelt in slug and not spelt.isdigit()]
    if holding:
        return holding[0]
    match = re.fullmatch(r"-?(\d+)[a-z]?", number)
    if match:
        near = min(known, key=lambda one: (abs(int(re.sub(r"\D", "", one)) - int(match[1])), one))
        near = "1" if number.startswith("-") else near
    else:
        slug = nearest(spelt, slugs)
        near = number_of(slugs[slug]) if slug else ""
    advice = f"the nearest is {near}, {load(known[near]).title!r}" if near else "python -m study lists all"
    raise StudyError(f"there is no lesson {wanted!r}: {advice}.")


def path_of(name: str, language: str) -> Path:
    """The file of a page in ``language``."""
    return FOLDER / (f"{name}.md" if language == "en" else f"{name}.{language}.md")


@functools.cache
def load(name: str, language: str = "en") -> Page:
    """Read a page.

    Raises:
        StudyError: for a language in which there is none.
    """
    if language not in LANGUAGES:
        raise StudyError(f"there are no lessons in {language!r}: --language is {' or '.join(LANGUAGES)}.")
    path = path_of(name, language)
    return parse(path.read_text(encoding="utf-8"), path)


def parse(text: str, path: Path) -> Page:
    """A page from its Markdown: ``# 7 · Title``, a blank line, ``*subtitle*``, and the rest."""
    head, subtitle, body = re.fullmatch(r"# (.*?)\n\n\*(.*?)\*\n\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    number, title = head.split(" · ", 1)
    return Page(path, number, title, subtitle, tuple(parts(body)))


def parts(body: str) -> Iterator[Prose | Code]:
    """Prose and code in their order. Fences in other languages are part of the prose."""
    code: Code | None = None
    start = 0
    for match in FENCE.finditer(body):
        language, word, content = match.groups()
        if language not in ("python", "output"):
            continue
        between = body[start : match.start()].strip("\n")
        if code and (between or language == "python"):
            yield code
            code = None
        if between:
            yield Prose(between)
        if language == "python":
            code = Code(content.rstrip("\n"), word == "raises")
        else:
            assert code, f"an output below no block: {content!r}"
            code.outputs |= dict.fromkeys([word] if word else ENGINES, content.rstrip("\n"))
        start = match.end()
    if code:
        yield code
    if body[start:].strip("\n"):
        yield Prose(body[start:].strip("\n"))
