"""The lists of `tests.groups` name files that are there."""

from __future__ import annotations

from fnmatch import filter as matching
from pathlib import Path

import pytest

from tests.groups import FORMATS, NOT_NUMERIC, groups_of

FILES = [path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")]


@pytest.mark.parametrize("name", [*NOT_NUMERIC, *FORMATS])
def test_a_list_names_files_that_are_there(name):
    assert matching(FILES, name)


def test_a_new_file_is_numeric():
    assert groups_of("test_of_tomorrow.py") == ("numeric",)
    assert groups_of("test_gpt_pretrained.py") == ("numeric", "formats")
    assert groups_of("test_data_sources.py") == ("formats",)
    assert groups_of("test_docs.py") == ()
