"""The lists of `tests.groups`, and of the script that plants mutants, name files that are there."""

from __future__ import annotations

from fnmatch import filter as matching
from pathlib import Path

import pytest

from scripts import mutants
from tests.groups import FORMATS, NOT_NUMERIC, groups_of

ROOT = Path(__file__).resolve().parent.parent
FILES = [path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")]


@pytest.mark.parametrize("name", [*NOT_NUMERIC, *FORMATS])
def test_the_lists_name_existing_files(name):
    assert matching(FILES, name)


def test_a_new_file_is_numeric():
    assert groups_of("test_of_tomorrow.py") == ("numeric",)
    assert groups_of("test_gpt_pretrained.py") == ("numeric", "formats")
    assert groups_of("test_data_sources.py") == ("formats",)
    assert groups_of("test_docs.py") == ()


@pytest.mark.parametrize("room", mutants.ROOMS)
def test_the_rooms_of_the_mutants_exist_and_have_tests(room: str):
    folder, names = mutants.ROOMS[room]
    assert (ROOT / folder).is_dir()
    for name in names:
        assert list(ROOT.glob(f"tests/test_{name}.py")), name
