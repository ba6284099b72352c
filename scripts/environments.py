"""The Pythons of this machine, and virtual environments of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")  # those that the project is for


def interpreter(version: str) -> Path | None:
    """A Python of ``version`` that runs: from PATH, or one of pyenv's; None if there is none."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for path in (shutil.which(name), *sorted(pyenv.glob(f"{version}.*/bin/{name}"))):
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:  # pyenv's shims may stand for nothing
            return Path(path)
    return None


def make_environment(folder: Path, python: Path, *requirements: str) -> Path:
    """A new virtual environment with what pip installs for ``requirements``; returns its Python."""
    subprocess.run(["sh", ROOT / "scripts" / "make_venv.sh", folder], env={**os.environ, "PYTHON": str(python)}, check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], cwd=ROOT, check=True)
    return inside
