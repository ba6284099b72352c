"""The character tokenizer: encode and decode over all of Unicode, and errors for unknown characters."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizer import CharTokenizer, IdsTokenizer, TokenizerError, UnknownCharacterError, load_tokenizer, tokenizer_from_dict

ANY_TEXT = st.text(st.characters(exclude_categories=()), min_size=1)  # half surrogate pairs, NULs, unassigned: everything


@given(ANY_TEXT)
def test_round_trip(text: str) -> None:
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.tolist() == [sorted(set(text)).index(char) for char in text]


@given(ANY_TEXT)
def test_round_trip_of_the_tokenizer(text: str) -> None:
    tokenizer = CharTokenizer.train(text)
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again == tokenizer
    assert again.hash == tokenizer.hash
    assert again.decode(tokenizer.encode(text)) == text


def test_round_trip_of_every_code_point() -> None:
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    tokenizer = CharTokenizer.train(text)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.uint32
    np.testing.assert_array_equal(ids, np.arange(sys.maxunicode + 1))
    assert tokenizer.decode(ids) == text


@given(ANY_TEXT, ANY_TEXT)
def test_unknown_characters_are_named_at_their_first_position(seen: str, text: str) -> None:
    tokenizer = CharTokenizer.train(seen)
    unseen = {char: text.index(char) for char in text if char not in seen}
    if not unseen:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        return
    with pytest.raises(UnknownCharacterError) as raised:
        tokenizer.encode(text)
    assert list(raised.value.characters.items()) == list(unseen.items())  # in the order of the text


def test_ids_are_in_sorted_order() -> None:
    tokenizer = CharTokenizer.train("hello\n")
    assert tokenizer.vocab_size == 5
    ids = tokenizer.encode("hello\n")
    assert ids.dtype == np.uint16
    assert ids.tolist() == [2, 1, 3, 3, 4, 0]


def test_the_type_of_ids_follows_the_vocabulary() -> None:
    characters = [chr(point) for point in range(2**16 + 1)]
    for size, dtype in ((2**16 - 1, np.uint16), (2**16, np.uint32), (2**16 + 1, np.uint32)):
        ids = CharTokenizer(characters[:size]).encode(characters[size - 1])
        assert ids.dtype == dtype
        assert ids.tolist() == [size - 1]


def test_empty_text() -> None:
    tokenizer = CharTokenizer.train("ab")
    assert tokenizer.encode("").shape == (0,)
    assert tokenizer.decode([]) == ""
    with pytest.raises(TokenizerError, match="training text is empty"):
        CharTokenizer.train("")


def test_the_message_about_unknown_characters() -> None:
    tokenizer = CharTokenizer.train("abc")
    with pytest.raises(UnknownCharacterError) as raised:
        tokenizer.encode("aéb\té")
    assert str(raised.value) == (
        "the tokenizer never saw these characters: 'é' (U+00E9) at position 1, '\\t' (U+0009) at position 3; "
        "it knows the 3 different characters of its training text."
    )
    with pytest.raises(UnknownCharacterError, match=r"never saw this character: '😀' \(U\+1F600\) at position 0;"):
        tokenizer.encode("😀😀")


def test_many_unknown_characters_make_no_long_message() -> None:
    with pytest.raises(UnknownCharacterError, match="and 992 more") as raised:
        CharTokenizer.train("abc").encode("".join(chr(0x4E00 + i) for i in range(1000)))
    assert len(raised.value.characters) == 1000


@pytest.mark.parametrize("ids", [[3], [-1], [0, -1, 2], [0, 1, 2, 3, 0], np.array([65535], np.uint16), np.array([2**40])])
def test_ids_out_of_range(ids: list[int]) -> None:
    with pytest.raises(TokenizerError, match=r"there is no token (3|-1|65535|1099511627776): .* from 0 to 2"):
        CharTokenizer.train("abc").decode(ids)


def test_ids_that_are_not_integers_are_refused() -> None:
    with pytest.raises(TokenizerError, match="integers, got float64"):
        CharTokenizer.train("abc").decode([0.5])


def test_decode_takes_numbers_and_arrays_of_any_shape() -> None:
    tokenizer = CharTokenizer.train("abc")
    assert tokenizer.decode(2) == "c"
    assert tokenizer.decode(np.array([[0, 1], [2, 0]])) == "abca"
    assert tokenizer.decode(np.array([0, 1, 2, 0], np.uint8)[::2]) == "ac"


def test_the_hash_is_stable() -> None:
    assert CharTokenizer.train("hello").hash == "6097744749d8509569c3e1af295856ff2f1690b1fac4edaaa86f304cf8f26ed1"
    assert CharTokenizer.train("olleh").hash == CharTokenizer.train("hello").hash
    assert CharTokenizer(list("hlo")).hash != CharTokenizer(list("hol")).hash


def test_files(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.train("naïve — 😀\n\ud800")
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "does not hold JSON"),
        ("[]", "should be 'char' or 'gpt2', got None"),
        ('{"type": "bpe"}', "should be 'char' or 'gpt2', got 'bpe'"),
        ('{"type": "char"}', "no list of characters"),
        ('{"type": "char", "characters": "abc"}', "no list of characters"),
        ('{"type": "char", "characters": []}', "at least one character"),
        ('{"type": "char", "characters": ["a", "bc"]}', "got 'bc'"),
        ('{"type": "char", "characters": ["a", 7]}', "got 7"),
        ('{"type": "char", "characters": ["a", "b", "a"]}', "'a' is there twice"),
    ],
)
def test_invalid_tokenizer_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / "tokenizer.json")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "tokenizer.json")


# --- unknown characters -------------------------------------------------------------------------------


def test_unknown_characters_replaced() -> None:
    tokenizer = CharTokenizer.train("hello", unknown="replace")
    assert tokenizer.characters == [*"ehlo", "\ufffd"]
    assert tokenizer.encode("hex 😀").tolist() == [1, 0, 4, 4, 4]
    assert tokenizer.decode(tokenizer.encode("hex")) == "he\ufffd"
    assert tokenizer.unknown_id == 4


def test_unknown_characters_skipped() -> None:
    tokenizer = CharTokenizer.train("hello", unknown="skip")
    assert tokenizer.vocab_size == 4
    assert tokenizer.decode(tokenizer.encode("he said: 😀ho")) == "heho"
    assert tokenizer.encode("xyz").tolist() == []
    assert tokenizer.unknown_id is None


@pytest.mark.parametrize("unknown", ["error", "replace", "skip"])
def test_the_policy_is_kept_and_is_not_part_of_the_mapping(tmp_path: Path, unknown: str) -> None:
    tokenizer = CharTokenizer("abc\ufffd", unknown)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again == tokenizer
    assert again.unknown == unknown
    assert again.hash == CharTokenizer("abc\ufffd").hash
    assert (again == CharTokenizer("abc\ufffd")) == (unknown == "error")


def test_invalid_policies_are_refused() -> None:
    with pytest.raises(TokenizerError, match="error, replace or skip, not as 'drop'"):
        CharTokenizer("abc", "drop")
    with pytest.raises(TokenizerError, match="only if the tokenizer knows it"):
        CharTokenizer("abc", "replace")
    for unknown in ("error", "replace", "skip"):
        with pytest.raises(TokenizerError, match="its training text is empty"):
            CharTokenizer.train("", unknown)


# --- ids whose tokenizer is not known -----------------------------------------------------------------


def test_ids_as_numbers(tmp_path: Path) -> None:
    tokenizer = IdsTokenizer(50257)
    assert tokenizer.decode([464, 0, 50256]) == " 464 0 50256"
    assert tokenizer.encode(" 464 0\n50256").tolist() == [464, 0, 50256]
    assert tokenizer.encode("").tolist() == []
    assert (tokenizer.end_of_text, tokenizer.unknown_id) == (None, None)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert load_tokenizer(tmp_path / "tokenizer.json") == tokenizer
    assert load_tokenizer(tmp_path / "tokenizer.json").hash != IdsTokenizer(50256).hash


def test_text_that_is_not_numbers_is_refused() -> None:
    with pytest.raises(TokenizerError, match="came without a tokenizer, so text must be a list of ids such as '464 2068', got 'The'"):
        IdsTokenizer(10).encode("The end")
    with pytest.raises(TokenizerError, match="there is no token 10"):
        IdsTokenizer(10).encode("10")
    for size in (0, None, "7"):
        with pytest.raises(TokenizerError, match="at least one id"):
            tokenizer_from_dict({"type": "ids", "vocab_size": size})
