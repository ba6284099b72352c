"""Text as it appears: whole characters only, nothing of a stop string, an end at the end of text."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt.writing.pieces import Pieces


class Bytes:
    """A tokenizer whose tokens are a few bytes each; the last id is the end of the text."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens
        self.end_of_text = len(tokens)

    def decode(self, ids) -> str:
        return b"".join(self.tokens[int(i)] for i in np.ravel(ids)).decode("utf-8", "replace")


def written(tokens: list[bytes], stop: list[str] = ()) -> list[str]:
    pieces = Pieces(Bytes(*tokens), stop)
    return [*(pieces.push(i) for i in range(len(tokens))), pieces.finish()]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


def test_a_character_waits_for_its_bytes():
    assert written([b"a\xe2", b"\x80", b"\x93b"]) == ["a", "", "–b", ""]
    assert written(["naïve".encode(), b"\xf0\x9f", b"\x98\x80\xc3", b"\xa9"]) == ["naïve", "", "😀", "é", ""]


def test_bytes_that_never_become_a_character():
    assert written([b"a\xff", b"b", b"\xe2"]) == ["a", "\ufffdb", "", "\ufffd"]


def test_a_stop_string_ends_the_text_before_it():
    assert written([b"ab", b"c\n", b"\n", b"def"], ["\n\n"]) == ["ab", "c", "", "", ""]
    assert written([b"ab", b"c\n", b"x", b"\n"], ["\n\n"]) == ["ab", "c", "\nx", "", "\n"]
    assert written([b"abcXYZdef"], ["Z", "cX"]) == ["ab", ""]
    assert written([b"abc"], ["", "abcd"]) == ["", "abc"]
    assert written([b"aa", b"ab"], ["aab"]) == ["", "a", ""]


def test_the_end_of_the_text():
    pieces = Pieces(Bytes(b"ab\n", b"c"), ["\n\n"])
    assert [pieces.push(0), pieces.push(2), pieces.stopped, pieces.push(1), pieces.finish()] == ["ab", "\n", True, "", ""]


@given(st.text(), st.lists(st.integers(0, 200)))
def test_the_pieces_are_the_text(text: str, places: list[int]):
    assert "".join(written(cut(text.encode("utf-8", "replace"), places))) == text.encode("utf-8", "replace").decode()


@given(st.text("ab–"), st.lists(st.integers(0, 200)), st.lists(st.text("ab–", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stopping_does_not_depend_on_the_cuts(text: str, places: list[int], stop: list[str]):
    ends = [text.index(s) for s in stop if s in text]
    tokens = cut(text.encode(), places)
    pieces = Pieces(Bytes(*tokens), stop)
    shown = ""
    for i in range(len(tokens)):
        shown += pieces.push(i)
        assert text.startswith(shown)
    shown += pieces.finish()
    # A stop string that is complete ends the text at once; one that begins earlier and would be complete later comes too late.
    if not ends:
        assert shown == text
    else:
        assert min(ends) <= len(shown) <= max(ends)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_stop_string_is_found_wherever_it_is_cut(size: int):
    raw = "the quick – brown fox".encode()
    tokens = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert "".join(written(tokens, ["– b"])) == "the quick "
