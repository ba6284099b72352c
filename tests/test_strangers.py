"""A user's own file that has the name of one of our packages: one sentence that names it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("gpt.train", "gpt.generate", "gpt.chat", "gpt.finetune", "gpt.plot", "gpt")


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python in a folder of the user's, with our packages further back on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["data/__init__.py", "data.py", "tensorlite.py"])
def test_a_program_names_a_file_that_shadows_a_package(tmp_path, name, program):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('a program of the user')")
    done = run("-m", program, folder=tmp_path)
    assert done.returncode == 2
    package = name.partition("/")[0].removesuffix(".py")
    assert done.stderr == (
        f"error: {(tmp_path / name).resolve()} is in the way of {package!r}, a package of tensorlite: "
        "rename it, or leave the current folder out with python -P.\n"
    )
    assert done.stdout == ""


def test_an_import_names_a_file_that_shadows_a_package(tmp_path):
    (tmp_path / "data.py").write_text("")
    done = run("-c", "from gpt.model import GPT", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {(tmp_path / 'data.py').resolve()} is in the way of 'data'")


@pytest.mark.parametrize("names", [["data.py", "gpt.py", "tensorlite.py"], ["data/__init__.py", "gpt/__init__.py"]])
def test_without_the_current_folder_every_program_starts(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('a program of the user')")
    done = run("-P", "-m", "gpt", "--help", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--mode" in done.stdout


def test_a_folder_of_texts_shadows_no_package(tmp_path):
    """It is no package, so Python goes on looking."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("text")
    assert run("-m", "gpt", "--help", folder=tmp_path).returncode == 0
