"""`python -m study write` and `check`, as they are used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from study import check, write
from study.errors import StudyError
from study.examiner import verdicts
from study.exercise import TO_WRITE, load
from study.verdict import Verdict
from tests.patience import PATIENCE

ROOT = Path(__file__).parent.parent


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def answered(monkeypatch):
    """Checks give the verdicts that the test names, and start no process."""

    def set_verdicts(**given):
        monkeypatch.setattr(check, "verdicts", lambda pages: (given[name] for name, _ in pages))

    return set_verdicts


def run(*arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-W", "error", "-m", "study", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE)


def without_numbers(screen):
    """In one line, and without what another version of NumPy may draw otherwise: the place, and the two numbers there."""
    return re.sub(r"at \[\d, \d\] yours is \S+ central differences say \S+", "", " ".join(screen.split()))


def test_a_page_can_be_written_checked_and_completed(here):
    """As a new user does it, in processes of their own."""
    done = run("write", "softmax", folder=here)
    assert done.returncode == 0, done.stderr
    page = here / "my_study" / "softmax.py"
    assert page.read_text(encoding="utf-8") == load("softmax").start
    page.write_text(load("softmax").start.replace(TO_WRITE, "    print('here I am')\n    return y * dy\n"), encoding="utf-8")
    done = run("check", "softmax", folder=here)
    assert done.returncode == 1
    assert done.stdout.startswith("here I am\n"), "what a page prints is shown"
    said = done.stdout[done.stdout.index("✘") :]
    assert max(map(len, said.splitlines())) <= 80
    assert without_numbers(said) == without_numbers(
        "✘ softmax: dx is wrong for x of the shape (3, 4): at [2, 3] yours is 0.01289, central differences say 0.1977 (12 of 12 numbers "
        "are wrong). It looks like a missing term of rank one: along axis 1 the difference is a multiple of the output (softmax without "
        '"- Σ dy·y" along axis 1?) Hint 1 of 3: The probabilities of a row add up to 1. If x₀ rises, y₀ rises and all others fall. So '
        "dx₀ depends on every dy of its row. --hint shows the next: python -m study check softmax --hint"
    )
    shown = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    assert without_numbers(said) in without_numbers(shown), "the screen that docs/study.md shows"
    page.write_text(load("softmax").solution, encoding="utf-8")
    done = run("check", folder=here)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "✔softmax",
        "  1 of 32 pages are yours, 0 of 10 mysteries are solved.",
        "  Next: python -m study write square",
    ]
    assert "✔softmax" in run(folder=here).stdout


def test_a_page_is_never_overwritten(here, capsys):
    assert write.main(["exp"]) == 0
    path = here / "my_study" / "exp.py"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(StudyError, match=r"is there already.*--again makes a fresh page, and keeps yours as exp.old.py"):
        write.main(["exp"])
    assert write.main(["exp", "--again"]) == 0
    assert path.read_text(encoding="utf-8") == load("exp").start
    assert (here / "my_study" / "exp.old.py").read_text(encoding="utf-8") == "mine"


def test_without_a_name_the_next_page_is_written(here, capsys):
    for expected in ("square", "multiply", "add_bias"):
        assert write.main([]) == 0
        assert f"my_study/{expected}.py" in capsys.readouterr().out.replace("\\", "/")


def test_hints_come_one_after_the_other(here, capsys, answered):
    answered(exp=Verdict("exp", False, "dx is wrong."))
    write.main(["exp"])
    capsys.readouterr()
    assert check.main(["exp"]) == 1
    assert "Hint 1 of 3" in capsys.readouterr().out
    for number in (2, 3, 3):
        assert check.main(["exp", "--hint"]) == 0
        assert f"Hint {number} of 3" in capsys.readouterr().out
    assert check.main(["exp"]) == 1
    assert "Hint 3 of 3: dx = dy · y.\n  --solution shows" in capsys.readouterr().out
    assert check.main(["exp", "--solution"]) == 0
    assert capsys.readouterr().out == "        return dy * y\n"
    assert json.loads((here / "my_study" / "progress.json").read_text()) == {"hint": ["exp 1", "exp 2", "exp 3"]}


def test_the_first_wrong_page_of_several_is_reported(here, capsys, answered):
    for name in ("square", "exp", "log"):
        write.main([name])
    capsys.readouterr()
    answered(
        square=Verdict("square", False, "not written yet.", written=False),
        exp=Verdict("exp", True, "6 numbers agree."),
        log=Verdict("log", False, "dx is wrong.", "the wrong sign."),
    )
    assert check.main([]) == 1
    said = capsys.readouterr().out
    assert said.startswith("·square ✔exp ✘log\n\n✘ log: dx is wrong.\n  It looks like the wrong sign.\n")
    assert json.loads((here / "my_study" / "progress.json").read_text())["write"] == ["exp"]


@pytest.mark.parametrize(
    "program, arguments, sentence",
    [
        (write, ["sofmax"], "there is no exercise 'sofmax': did you mean softmax?"),
        (check, ["layer-norm"], "there is no exercise 'layer-norm': did you mean layernorm?"),
        (check, ["softmax"], "python -m study write softmax makes it"),
        (check, [], "there is no page in my_study yet: python -m study write square makes the first."),
        (check, ["--hint"], "--hint is for one exercise"),
        (write, ["--fresh"], "unrecognized arguments: --fresh"),
    ],
)
def test_an_unknown_name_gets_one_sentence(here, program, arguments, sentence):
    with pytest.raises(StudyError) as error:
        program.main(arguments)
    assert sentence in str(error.value)


def test_a_folder_with_the_name_of_a_page_is_an_error(here):
    (here / "my_study").write_text("")
    with pytest.raises(StudyError, match=r"softmax.py cannot be written"):
        write.main(["softmax"])


def test_no_checking_process_remains(here):
    import multiprocessing

    write.main(["exp"])
    assert [verdict.written for verdict in verdicts([("exp", load("exp").path())])] == [False]
    assert multiprocessing.active_children() == []
