"""docs/course/concepts.md: each of the course's 128 concepts leads to a section that has the word, and to a page that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from study.page import find, names, number_of

ROOT = Path(__file__).resolve().parent.parent
CONCEPTS = (ROOT / "docs" / "course" / "concepts.md").read_text(encoding="utf-8")
ROW = re.compile(r"\| (\d+) \| (.+?) \| (.+?) \| \[(\w+)\]\((\S+?)\) \[中\]\((\S+?)\) \| `(.+?)` \| \[\S+?\]\((\S+?)\) \|")


def sections(path: Path) -> dict[str, str]:
    """Anchor -> the text below that heading, as the repository's pages name them; "" is what stands before the first."""
    first, *others = path.read_text(encoding="utf-8").split("\n## ")
    slug = lambda heading: re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")  # noqa: E731
    return {"": first, **{slug(text.partition("\n")[0]): text.partition("\n")[2] for text in others}}


def test_the_128_concepts_of_the_course_each_have_a_row():
    rows = [line for line in CONCEPTS.splitlines() if re.match(r"\| \d", line)]
    assert [line for line in rows if not ROW.fullmatch(line)] == []
    assert len({ROW.fullmatch(line)[2] for line in rows}) == len(rows) == 128
    chapters = [int(ROW.fullmatch(line)[1]) for line in rows]
    assert chapters == sorted(chapters) and set(chapters) == set(range(1, 22))


@pytest.mark.parametrize("row", [line for line in CONCEPTS.splitlines() if re.match(r"\| \d", line)], ids=lambda row: row.split(" | ")[1])
def test_a_concept_is_explained_where_its_row_says(row):
    _, _, _, number, lesson, translation, word, page = ROW.fullmatch(row).groups()
    folder = ROOT / "docs" / "course"
    file, _, anchor = lesson.partition("#")
    assert (folder / file).name == f"{find(number)}.md" and (folder / translation).name == f"{find(number)}.zh-TW.md"
    assert (folder / page).exists()
    assert word in sections(folder / file)[anchor], "the word is not in that section"


def test_every_page_of_the_course_explains_a_concept():
    assert {ROW.fullmatch(line)[4] for line in CONCEPTS.splitlines() if re.match(r"\| \d", line)} == {number_of(name) for name in names()}
