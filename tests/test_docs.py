"""The documents are true: their code runs, their steps work, and the lines that they quote exist."""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonargparse
import pytest

from benchmarks.__main__ import BENCHMARKS
from data.errors import DataError
from gpt.errors import UserError
from study.errors import StudyError
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
    done = run_python("-m", "pytest", *loops, "-q", "-k", "atan", "-p", "no:cacheprovider", tree=tree)
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


def test_the_broken_backward_of_contributing_gives_the_printed_message(tree):
    (diff,) = blocks("CONTRIBUTING.md", "diff")
    said = break_and_test(tree, "tensorlite/ops/layernorm.py", diff, "tests/test_cases_gradcheck.py", "-k", "layernorm")
    for promised in blocks("CONTRIBUTING.md", "text"):
        for line in promised.splitlines():
            assert line in said


MISTAKES = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8").split("\n## ")[1:]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.partition("\n")[0])
def test_each_mistake_of_the_page_gives_the_printed_message(mistake, tree):
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


def commands(document: str) -> list[str]:
    """Every command that a document shows, in a block for a shell or within a line, without its comment."""
    lines = [line for language in ("sh", "powershell") for block in blocks(document, language) for line in block.splitlines()]
    lines += re.findall(r"`((?:python -|make |pip install )[^`\n]+)`", read(document))
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line) for line in lines) if line]


class Understood(Exception):
    """A program has read its command line, and would begin."""


@pytest.fixture
def only_read(monkeypatch, tmp_path):
    """Programs stop when they have read their command lines, in a folder with the files that documents name as settings."""
    for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):

        def read_and_stop(self, *arguments, parse_args=parser.parse_args, **options):
            parse_args(self, *arguments, **options)
            raise Understood

        monkeypatch.setattr(parser, "parse_args", read_and_stop)
    (tmp_path / "my.yaml").write_text("n_layer: 2\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)


def check_command(line: str) -> None:
    """Raise unless ``line`` is a command of this project with options that exist."""
    for words in (list(group) for is_pipe, group in itertools.groupby(shlex.split(line), "|".__eq__) if not is_pipe):
        match words:
            case [python, *rest] if Path(python.replace("\\", "/")).name in ("python", "python3", "py"):
                check_python(rest)
            case ["mpiexec", "-n", _, "-hosts", _, "python", *rest] | ["mpiexec", "-n", _, "python", *rest]:
                check_python(rest)
            case ["make", target, *options]:
                assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), f"no target {target}"
                if target == "train" and options:
                    check_python(["-m", "gpt.train", *shlex.split(options[0].removeprefix("ARGS="))])
            case ["pip", "install", "-e", what]:
                extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
                assert set(what.removeprefix(".[").removesuffix("]").split(",")) <= extras.keys()
            case ["source" | "echo", *_] | [".venvScriptsactivate"]:
                pass
            case ["git", "checkout", "tensorlite"]:
                pass
            case _:
                raise AssertionError("not a command that this test knows")


def check_python(words: list[str]) -> None:
    words = [word for word in words if word != "-P"]
    assert words[0] == "-m"
    module, arguments = words[1], words[2:]
    if module == "benchmarks":
        assert not arguments or arguments[0] in BENCHMARKS
    elif module not in sys.stdlib_module_names:
        program = importlib.import_module(f"{module}.__main__" if module in ("gpt", "study") else module)
        if arguments and arguments != ["--help"]:  # a program may be named alone
            with pytest.raises(Understood):
                program.main(arguments)


@pytest.mark.usefixtures("only_read")
@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_commands_in_the_documents_have_valid_options(document):
    wrong = {}
    for line in commands(document):
        try:
            check_command(line)
        except (AssertionError, UserError, DataError, StudyError, SystemExit, pytest.fail.Exception) as error:
            wrong[line] = str(error)
    assert not wrong


@pytest.mark.usefixtures("only_read")
@pytest.mark.parametrize(
    "line",
    [
        "python -m gpt.train --stepz 3",
        "python -m gpt.generate --checkpoint a --tempo 1",
        "make trian",
        'pip install -e ".[plots]"',
        "pyhton",
    ],
)
def test_a_command_that_does_not_exist_is_detected(line):
    with pytest.raises((AssertionError, UserError)):
        check_command(line)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_targets_of_links_exist(document):
    folder = (ROOT / document).parent
    inside = [link.partition("#")[0] for link in links(document) if not link.startswith(("https:", "#"))]
    missing = [link for link in inside if not (folder / link).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_files_named_in_the_documents_exist(document):
    named = set(re.findall(r"`((?:tensorlite|gpt|data|tests|docs|benchmarks|scripts)/[\w./]+)`", read(document)))
    example = {"tensorlite/ops/atan.py", "tests/case_table/atan.py"}  # the new op of CONTRIBUTING
    missing = sorted(name for name in named - example if not (ROOT / name).exists())
    assert not missing
