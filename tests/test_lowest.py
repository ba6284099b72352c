"""The versions that `make lowest` installs are those that pyproject.toml allows, one for each dependency."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = "dev"  # linters: what they say of old versions is nobody's concern


def test_the_lowest_versions_are_the_floors_of_pyproject():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = {name: group for name, group in project["project"]["optional-dependencies"].items() if name != TOOLS}
    needed = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(one for group in groups.values() for one in group),
    ]
    floor = re.compile(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<[\d.]+)?(?:; .*)?")
    floors = sorted({"{}=={}".format(*floor.fullmatch(one).groups()) for one in needed})
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").splitlines()
    assert sorted(line for line in lines if not line.startswith("#")) == floors
