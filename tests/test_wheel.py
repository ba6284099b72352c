"""What `pip install` brings: the wheel holds every file of the packages, and trains in an environment without this tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tensorlite", "gpt", "data", "study")
TINY = [
    "--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--batch-size=2", "--steps=3", "--warmup-steps=1", "--eval-iters=1",
    "--sample-length=5",
]  # fmt: skip


def run(command: list[str | Path], folder: Path) -> str:
    """What a program prints in ``folder``, in which nothing points to this tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves a folder `build` beside the sources, and takes from there what it finds."""
    folder = tmp_path_factory.mktemp("sources")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    run([sys.executable, "-c", "from setuptools import build_meta; build_meta.build_wheel('dist')"], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment in which the wheel is installed; its dependencies are those of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")  # behind `site`: the wheel is found first
    return python


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file())
    assert inside == {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert {f"{package}/py.typed" for package in PACKAGES} <= inside, "the types are there, and a type checker is told so"


def test_the_sources_of_the_kernels_are_found(python: Path, tmp_path: Path):
    program = """
from tensorlite.kernels.cuda.compile import FOLDER, source
for file in sorted(FOLDER.glob("*.cu")):
    assert "__global__" in source(file.name)
    print(file.name)
"""
    kernels = (ROOT / "tensorlite" / "kernels" / "cuda").glob("*.cu")
    assert run([python, "-c", program], tmp_path).split() == sorted(file.name for file in kernels)


def test_the_installed_wheel_trains_and_generates(python: Path, tmp_path: Path):
    where = run([python, "-c", "import tensorlite, gpt, data; print(tensorlite.__file__, gpt.__file__, data.__file__)"], tmp_path)
    assert where.count(str(python.parent.parent)) == 3, where
    run([python, "-m", "gpt.train", *TINY], tmp_path)  # on pydoc, the text that comes with Python
    assert len(run([python, "-m", "gpt.generate", "--checkpoint", "runs/tiny", "--prompt", "The ", "--max-new-tokens", "5"], tmp_path)) >= 9
