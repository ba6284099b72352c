"""Every block of every lesson runs on tensorlite and on torch, prints the same, and prints what its file says, in all languages."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import re
from pathlib import Path

import pytest

from study import exercise, lab, notebook, table
from study.__main__ import COMMANDS
from study.page import ENGINES, LANGUAGES, Page, find, load, names, number_of, parse
from study.runner import on_engine, run
from tests.margins import checked, with_checks

ROOT = Path(__file__).resolve().parent.parent
LESSONS = [str(number) for number in range(1, 22)]


def watched(page: Page) -> Page:
    """``page`` with code that looks at each number it rounds."""
    parts = [dataclasses.replace(part, source=with_checks(part.source)) if hasattr(part, "source") else part for part in page.parts]
    return dataclasses.replace(page, parts=tuple(parts))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", names())
def test_a_lesson_prints_what_its_file_says(name, engine, monkeypatch):
    text_of = table.text_of
    monkeypatch.setattr(table, "text_of", lambda number, digits: text_of(checked(number, digits), digits))
    page = load(name)
    printed = [text for _, text in run(watched(page), engine)]
    assert printed == [code.output(engine) for code in page.code()], "python scripts/course.py brings the file up to date"
    long = re.search(r"\d\.\d{5,}", "\n".join(printed))
    assert not long, f"{long[0]} has digits that depend on the order of adding: print fewer"


@pytest.mark.parametrize("name", names())
def test_the_engines_print_the_same(name):
    """They differ in the words of their errors alone."""
    for code in load(name).code():
        assert code.raises or code.output("tensorlite") == code.output("torch")


@pytest.mark.parametrize("language", LANGUAGES[1:])
@pytest.mark.parametrize("name", names())
def test_a_translation_has_the_same_code_outputs_and_sections(name, language):
    english, page = load(name), load(name, language)
    assert page.code() == english.code(), "python scripts/course.py copies them"
    assert [type(part) for part in page.parts] == [type(part) for part in english.parts], "the prose stands between the same blocks"
    assert (page.number, re.findall(r"\d:\d\d:\d\d", page.subtitle)) == (english.number, re.findall(r"\d:\d\d:\d\d", english.subtitle))
    headings = [len(re.findall(r"^## ", text.path.read_text(encoding="utf-8"), re.MULTILINE)) for text in (page, english)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", names())
def test_the_notebook_in_docs_is_that_of_the_lesson(name, language):
    page = load(name, language)
    path = ROOT / "docs" / "course" / f"{page.path.stem}.ipynb"
    assert path.read_text(encoding="utf-8") == notebook.text_of(page), "python scripts/course.py writes them"


def test_no_notebook_is_left_over():
    expected = {f"{load(name, language).path.stem}.ipynb" for name in names() for language in LANGUAGES}
    assert {path.name for path in (ROOT / "docs" / "course").glob("*.ipynb")} == expected


def test_the_lessons_are_those_of_the_course_in_its_order():
    pages = [load(name) for name in names()]
    lessons = [page for page in pages if not page.is_beside]
    assert [page.number for page in lessons] == LESSONS[: len(lessons)]
    assert [number_of(page.name) for page in pages] == [page.number for page in pages], "the file is named as its heading is"
    times = [re.findall(r"\d:\d\d:\d\d", page.subtitle) for page in lessons]
    assert times == sorted(times)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), "each begins where the last one ended"


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", names())
def test_the_targets_of_links_exist(name, language):
    page = load(name, language)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.path.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.path.parent / link).exists()] == []
    assert any("tensorlite/" in link or "gpt/" in link or "data/" in link for link in links), "no page of the book is named"


@pytest.mark.parametrize("name", names())
def test_a_lesson_fits_eighty_columns_and_is_not_long(name):
    page = load(name)
    assert sum(len(code.source.splitlines()) for code in page.code()) <= 80
    texts = [(code.source, 76) for code in page.code()] + [
        (text, 74) for code in page.code() for text in code.outputs.values() if not code.raises
    ]
    assert [line for text, width in texts for line in text.splitlines() if len(line) > width] == []


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", names())
def test_the_programs_that_a_lesson_names_exist(name, language):
    text = load(name, language).path.read_text(encoding="utf-8")
    for module, word, rest in re.findall(r"python -m ([\w.]+) ?([a-z_]*)([^`\n]*)", text):
        assert importlib.util.find_spec(module), f"python -m {module}"
        if module == "study" and word:
            assert word in COMMANDS, f"python -m study {word}"
        if word == "write":
            assert rest.strip() in exercise.all_names(), rest
        if word == "lab":
            for kind, variants in (("without", lab.WITHOUT), ("with", lab.WITH)):
                named = re.findall(rf"--{kind} ([\w,-]+)", rest)
                assert {one for some in named for one in some.split(",")} <= {variant.name for variant in variants}, rest


def test_only_imports_differ_between_the_engines():
    source = "import tensorlite as torch\nfrom tensorlite import nn\nfrom tensorlite.nn import functional as F\nprint('import tensorlite')"
    assert (
        on_engine(source, "torch") == "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\nprint('import tensorlite')"
    )
    assert on_engine(source, "tensorlite") == source


def test_a_number_that_depends_on_rounding_is_detected():
    assert checked(0.126, 2) == 0.126
    for value, digits in [(0.125, 2), (0.12501, 2), (-2.5, 0)]:
        with pytest.raises(AssertionError, match="at the edge"):
            checked(value, digits)
    with pytest.raises(AssertionError, match="at the edge"):
        exec(with_checks("x = 0.125\nprint(f'{x:.2f}')"), {})
    with pytest.raises(AssertionError, match="at the edge"):
        exec(with_checks("x = 0.0125\nprint(f'{x:6.1%} {7:5}')".replace("0.0125", "0.0125 / 1")), {})


def test_an_output_belongs_to_the_block_above_it():
    page = parse(
        "# 7b · Title\n\n*Beside*\n\nProse.\n\n```python\n1\n```\n\n```output\none\n```\n\n```text\nfigure\n```\n"
        "\n```python raises\n1 / 0\n```\n\n```output tensorlite\na\n```\n\n```output torch\nb\n```\n",
        Path("07b_title.md"),
    )
    assert (page.number, page.title, page.subtitle, page.name, page.is_beside) == ("7b", "Title", "Beside", "07b_title", True)
    first, second = page.code()
    assert (first.source, first.raises, first.outputs) == ("1", False, {"tensorlite": "one", "torch": "one"})
    assert (second.source, second.raises, second.outputs) == ("1 / 0", True, {"tensorlite": "a", "torch": "b"})
    assert page.parts[2].text == "```text\nfigure\n```"


def test_a_block_that_should_raise_and_does_not_is_detected():
    page = parse("# 1 · T\n\n*s*\n\n```python raises\nx = 1\n```\n", Path("01_t.md"))
    with pytest.raises(AssertionError, match="raises nothing"):
        list(run(page))


@pytest.mark.parametrize("wanted, found", [("1", "01_text"), ("02", "02_tokens"), ("tokens", "02_tokens"), ("TEXT", "01_text")])
def test_a_lesson_is_found(wanted, found):
    assert find(wanted) == found


TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text", ["low low lower newest newest widest", "aaaa aaab aaaa abab", TEXT], ids=["words", "repeats", "a long text"]
)
def test_the_bpe_of_the_lesson_makes_the_merges_of_hugging_face(text):
    import tokenizers

    names = {}
    for code in load("20b_bpe").code()[:2]:
        exec(code.source, names)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=len(set("".join(text.split()))) + 300, show_progress=False)
    theirs.train_from_iterator([text], trainer)
    expected = [tuple(pair) for pair in json.loads(theirs.to_str())["model"]["merges"]]
    assert names["train"](text, len(expected)) == expected
    assert len(expected) == 300 or text is not TEXT
