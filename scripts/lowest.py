"""`make lowest`: the numeric tests and the formats, with the lowest versions that pyproject.toml allows (tests/lowest.txt)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from environments import ROOT, VERSIONS, interpreter, make_environment

EVERYTHING = ".[plot,tensorboard,bfloat16,data,gpt2,test]"
# The other libraries are the newest, so the lowest versions may call functions that these have deprecated.
PYTEST = ["pytest", "-m", "numeric or formats", "-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning"]


def main(arguments: list[str]) -> None:
    """Run the tests in a new environment with the oldest Python on this machine: the oldest libraries have no wheels for newer ones."""
    python = next(filter(None, map(interpreter, VERSIONS)), None)
    if python is None:
        sys.exit(f"there is none of Python {', '.join(VERSIONS)} here.")
    with tempfile.TemporaryDirectory() as folder:
        inside = make_environment(Path(folder, "venv"), python, "--constraint", "tests/lowest.txt", "--editable", EVERYTHING)
        listed = subprocess.run([inside, "-m", "pip", "list", "--disable-pip-version-check"], capture_output=True, text=True, check=True)
        print(listed.stdout, flush=True)
        sys.exit(subprocess.run([inside, "-m", *PYTEST, *arguments], cwd=ROOT).returncode)


if __name__ == "__main__":
    main(sys.argv[1:])
