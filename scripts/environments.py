"""The Python versions on this machine, and virtual environments with them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.11", "3.12", "3.13", "3.14")  # the versions that the project supports


def interpreter(version: str) -> Path | None:
    """A Python of ``version`` that works: from PATH, or from pyenv; None if there is none."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for path in (shutil.which(name), *sorted(pyenv.glob(f"{version}.*/bin/{name}"))):
        if path and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:  # a shim of pyenv may not work
            return Path(path)
    return None


def make_environment(folder: Path, python: Path, *requirements: str) -> Path:
    """Make a new virtual environment with ``requirements``, installed by pip; return its Python."""
    subprocess.run(["sh", ROOT / "scripts" / "make_venv.sh", folder], env={**os.environ, "PYTHON": str(python)}, check=True)
    inside = folder / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *requirements], cwd=ROOT, check=True)
    return inside
