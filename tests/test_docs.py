"""What the documents say is done: their code is run, their steps are taken, the lines they quote are there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README.zh-TW.md"]
DOCUMENTS = [*READMES, "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks in ``language``."""
    return re.findall(rf"^```{language}\n(.*?)^```$", read(document), re.MULTILINE | re.DOTALL)


def run_python(*arguments: str, tree: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in ``tree`` with the packages that are there. In a process of its own, since the list of ops belongs to a process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {"PYTHONPATH": str(tree)}
    return subprocess.run([sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def tree(tmp_path):
    """A copy of what a contributor edits."""
    for name in ("tensorlite", "gpt", "data", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize("document", READMES)
def test_the_tour_in_the_readme_runs(document):
    (tour,) = blocks(document, "python")
    done = run_python("-W", "error", "-c", tour, tree=ROOT)
    assert done.returncode == 0, done.stderr


def test_five_steps_add_an_op(tree):
    scripts = []
    for block in blocks("CONTRIBUTING.md", "python"):
        first_line, _, rest = block.partition("\n")
        if first_line.startswith("# "):  # this block belongs in a file
            with (tree / first_line.removeprefix("# ")).open("a", encoding="utf-8") as file:
                file.write(rest)
        else:
            scripts.append(block)
    done = run_python("-W", "error", "-c", "\n".join(scripts), tree=tree)
    assert done.returncode == 0, done.stderr
    loops = [f"tests/{path.name}" for path in tree.glob("tests/test_cases_*.py")]  # to collect the other tests takes long
    done = run_python("-m", "pytest", *loops, "-q", "-k", "softplus", "-p", "no:cacheprovider", tree=tree)
    assert done.returncode == 0, done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 5, "the entry in the table was not taken up"


def break_and_test(tree: Path, page: str, diff: str, *pytest_arguments: str) -> str:
    """What pytest says after the change; it must have failed."""
    removed, added = (re.search(rf"^{sign}(.*\n)", diff, re.MULTILINE)[1] for sign in (r"-", r"\+"))
    source = (tree / page).read_text(encoding="utf-8")
    assert source.count(removed) == 1
    (tree / page).write_text(source.replace(removed, added), encoding="utf-8")
    done = run_python("-m", "pytest", *pytest_arguments, "-q", "-p", "no:cacheprovider", tree=tree)
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_a_broken_backward_is_caught_with_the_words_that_the_page_promises(tree):
    (diff,) = blocks("CONTRIBUTING.md", "diff")
    said = break_and_test(tree, "tensorlite/ops/layernorm.py", diff, "tests/test_cases_gradcheck.py", "-k", "layernorm")
    for promised in blocks("CONTRIBUTING.md", "text"):
        for line in promised.splitlines():
            assert line in said


MISTAKES = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8").split("\n## ")[1:]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.partition("\n")[0])
def test_a_mistake_is_caught_with_the_words_that_the_page_promises(mistake, tree):
    page = re.search(r"\]\(\.\./(tensorlite/[\w/]+\.py)\)", mistake)[1]
    diff, text = (re.search(rf"```{language}\n(.*?)```", mistake, re.DOTALL)[1] for language in ("diff", "text"))
    file, keyword = re.search(r'make test ARGS="(\S+) -k (\w+)"', mistake).groups()
    said = break_and_test(tree, page, diff, file, "-k", keyword)
    for line in text.splitlines():
        assert line in said


@pytest.mark.parametrize("document", READMES)
def test_the_page_shown_in_the_readme_is_the_page_in_the_book(document):
    (excerpt,) = blocks(document, "py")
    source = iter((ROOT / "tensorlite" / "ops" / "layernorm.py").read_text(encoding="utf-8").splitlines())
    for line in excerpt.splitlines():
        if line and "…" not in line:  # an ellipsis stands for lines left out
            assert line in source, f"not in layernorm.py, or not in this order: {line!r}"  # `in` moves the iterator on


def code(document: str) -> list[str]:
    """All blocks of code and all code within lines, in order, without the comments, which are in the document's language."""
    found = re.findall(r"^```\w+\n.*?^```$|`[^`\n]+`", read(document), re.MULTILINE | re.DOTALL)
    return [re.sub(r"(?m)(^|\s+)#.*$", "", one) if one.startswith("```") else one for one in found]


def links(document: str) -> list[str]:
    """Where the links and the pictures of a document lead, in order."""
    return ["".join(found) for found in re.findall(r'\]\(([^)\s]+)\)|<img src="([^"]+)"', read(document))]


def test_both_readmes_say_the_same():
    """The same code, links and sections, as far as a test can tell."""
    english, chinese = READMES
    assert code(english) == code(chinese)
    in_english, in_chinese = ([link for link in links(document) if link not in READMES] for document in READMES)
    assert in_english == in_chinese
    headings = [re.findall(r"(?m)^(#+) ", read(document)) for document in READMES]
    assert headings[0] == headings[1]
    rows = [[line.count("|") for line in read(document).splitlines() if line.startswith("|")] for document in READMES]
    assert rows[0] == rows[1]


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 140, "what does not fit belongs to docs/"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    folder = (ROOT / document).parent
    inside = [link.partition("#")[0] for link in links(document) if not link.startswith(("https:", "#"))]
    missing = [link for link in inside if not (folder / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_named_in_the_documents_exist(document):
    named = set(re.findall(r"`((?:tensorlite|gpt|data|tests|docs|benchmarks|scripts)/[\w./]+)`", read(document)))
    example = {"tensorlite/ops/softplus.py", "tests/case_table/softplus.py"}  # the new op of CONTRIBUTING
    missing = sorted(name for name in named - example if not (ROOT / name).exists())
    assert not missing
