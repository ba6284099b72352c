"""Byte-level BPE: encode and decode over all of Unicode and over arbitrary bytes, and the same ids as the library."""

import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from data.corpus import load_corpus
from data.tokenizer import (
    BpeTokenizer,
    HuggingFaceTokenizer,
    MissingExtraError,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    named_tokenizer,
    tokenizer_from_dict,
)
from data.tokenizer.byte_level import pieces
from data.tokenizer.words import _LINE, words

TEXT = load_corpus("pydoc").text[:200_000]
TRAINED = BpeTokenizer.train([TEXT[:30_000]], vocab_size=1000)
SCALARS = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))


def library(tokenizer: HuggingFaceTokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer.to_dict()))


# --- there and back -----------------------------------------------------------------------------------


def test_round_trip_over_all_unicode_scalars() -> None:
    assert TRAINED.decode(TRAINED.encode(SCALARS)) == SCALARS


@given(st.text())
def test_encode_and_decode_are_inverse(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == text


def test_round_trip_of_20_000_random_byte_strings() -> None:
    source = random.Random(0)
    for _ in range(20_000):
        raw = source.randbytes(source.randrange(24))
        assert TRAINED.decode_bytes(TRAINED.encode_bytes(raw)) == raw


@given(st.lists(st.one_of(st.text().map(str.encode), st.binary(max_size=4))).map(b"".join))
def test_arbitrary_bytes_between_text_can_be_decoded(raw: bytes) -> None:
    assert TRAINED.decode_bytes(TRAINED.encode_bytes(raw)) == raw


def test_every_single_byte_is_a_token() -> None:
    for byte in range(256):
        ids = TRAINED.encode_bytes(bytes([byte]))
        assert len(ids) == 1
        assert TRAINED.decode_bytes(ids) == bytes([byte])


def test_half_a_character_decodes_to_a_replacement_character() -> None:
    ids = TRAINED.encode_bytes("€".encode()[:2])
    assert TRAINED.decode(ids) == "\ufffd"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"at position 3 it has U\+D800, half a surrogate pair"):
        TRAINED.encode("abc\ud800")
    with pytest.raises(TokenizerError, match="half a surrogate pair"):
        BpeTokenizer.train(["\udfff"], 300)


@pytest.mark.parametrize("ids", [[-1], [1000], np.array([2**40])])
def test_ids_out_of_range_are_refused(ids) -> None:
    with pytest.raises(TokenizerError, match="from 0 to 999"):
        TRAINED.decode(ids)


# --- the same as the library --------------------------------------------------------------------------


@given(st.text())
def test_the_same_ids_and_the_same_text_as_the_library(text: str) -> None:
    own = library(TRAINED)
    own.encode_special_tokens = True
    ids = TRAINED.encode(text)
    assert ids.dtype == np.uint16
    assert ids.tolist() == own.encode(text).ids
    assert TRAINED.decode(ids[::2]) == own.decode(ids[::2].tolist(), skip_special_tokens=False)


def test_a_long_text_in_pieces_gives_the_same_ids() -> None:
    own = library(TRAINED).encode(TEXT).ids
    assert TRAINED.encode(TEXT).tolist() == own
    for length in (1, 7, 1000):
        cut = list(pieces(TEXT, length))
        assert "".join(cut) == TEXT
        assert len(cut) > 1
        assert np.concatenate([TRAINED.encode(piece) for piece in cut]).tolist() == own


@given(st.text(st.sampled_from("a1_.é \t\n\r\u00a0\u3000'"), max_size=60))
def test_the_places_of_cuts_do_not_change_the_ids(text: str) -> None:
    ids = [i for piece in pieces(text, 1) for i in TRAINED.encode(piece)]
    assert ids == library(TRAINED).encode(text).ids


# --- words, and the memory for their ids ---------------------------------------------------------------


def library_words(text: str) -> list[str]:
    cut = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cut]


TEMPTING = "aZéſ09_'’\"-—!~<>|\t\n\v\f\r \xa0" + "\x1c\x1f\x7f\x85\u2003\u2028²ªµ×中🙂"


@given(
    st.text(st.sampled_from(TEMPTING + " " * 8))
    | st.lists(st.sampled_from([*TEMPTING, "'s", "'ll", "'LL", " it's", "  ", "\n\n"])).map("".join)
)
def test_words_are_split_as_in_the_library(text: str) -> None:
    found = words(text)
    assert found is None or found == library_words(text)


def test_words_with_every_character_are_split_as_in_the_library() -> None:
    spoken_for = 0
    for char in map(chr, [*range(0xD800), *range(0xE000, 0x20000)]):
        text = f"a{char}b {char}1{char}{char} '{char}s {char} !{char}\n{char}\n "
        if (found := words(text)) is not None:
            assert found == library_words(text), f"U+{ord(char):04X}"
            spoken_for += 1
    assert spoken_for > 250


@pytest.mark.parametrize("memory, longest", [(1 << 17, 64), (3, 64), (1 << 17, 2), (0, 0)])
def test_the_cache_of_words_does_not_change_the_ids(memory: int, longest: int, monkeypatch) -> None:
    monkeypatch.setattr("data.tokenizer.words._MEMORY", memory)
    monkeypatch.setattr("data.tokenizer.words._LONGEST", longest)
    tokenizer = BpeTokenizer(TRAINED.to_dict())
    source = random.Random(0)
    kept, most = tokenizer._memory._known, 0
    for _ in range(300):
        text = "".join(source.choices([*TEMPTING, " the", " words", "\nIt's", " 中文", "supercalifragilistic" * 5], k=30))
        assert tokenizer.encode(text).tolist() == library(TRAINED).encode(text, add_special_tokens=False).ids
        lines = [text] if words(text) else _LINE.split(text)
        most = max([most, *(len(set(words(line) or [])) for line in lines)])  # those of one line are kept together
        assert len(kept) <= max(memory, most) and all(len(word) <= longest for word in kept)


def test_the_cache_of_words_is_bounded(monkeypatch) -> None:
    monkeypatch.setattr("data.tokenizer.words._MEMORY", 100)
    tokenizer = BpeTokenizer(TRAINED.to_dict())
    sizes = []
    for i in range(50):
        tokenizer.encode(" ".join(f"{'abcdefgh'[k % 8]}{'xyz'[i % 3] * (i + k)}" for k in range(30)))
        sizes.append(len(tokenizer._memory._known))
    assert max(sizes) > 30  # what was known before is kept while there is room
    assert max(sizes) <= 100


def test_a_text_never_encodes_to_the_end_of_text_token() -> None:
    ids = TRAINED.encode("one<|endoftext|>two")
    assert TRAINED.end_of_text is not None
    assert TRAINED.end_of_text not in ids
    assert TRAINED.decode(ids) == "one<|endoftext|>two"
    assert TRAINED.decode([TRAINED.end_of_text]) == "<|endoftext|>"
    assert TRAINED.unknown_id is None


# --- training -----------------------------------------------------------------------------------------


def test_training_is_deterministic_on_any_number_of_threads() -> None:
    program = """
from data.corpus import load_corpus
from data.tokenizer import BpeTokenizer
print(BpeTokenizer.train([load_corpus("pydoc").text[:200_000]], vocab_size=1000).hash)
"""
    hashes = {BpeTokenizer.train([TEXT], vocab_size=1000).hash}
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parents[1], env={"PATH": "/usr/bin:/bin", "RAYON_NUM_THREADS": threads},
        )  # fmt: skip
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


def test_training_compresses_and_gives_the_requested_size() -> None:
    assert TRAINED.vocab_size == 1000
    assert len(TRAINED.encode(TEXT)) < len(TEXT) / 2.5


def test_texts_come_from_an_iterator() -> None:
    assert BpeTokenizer.train(iter([TEXT[:5000], TEXT[5000:9000]]), 400) == BpeTokenizer.train([TEXT[:5000], TEXT[5000:9000]], 400)


@pytest.mark.parametrize("texts", [[], [""], ["ab"]])
def test_too_little_text_gives_only_the_bytes(texts: list[str]) -> None:
    tokenizer = BpeTokenizer.train(texts, 4096)
    assert tokenizer.vocab_size == 257
    assert tokenizer.decode(tokenizer.encode("naïve 😀")) == "naïve 😀"


def test_a_vocabulary_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"at least 257 entries, every byte and <\|endoftext\|>, got 256"):
        BpeTokenizer.train([TEXT], 256)


# --- files --------------------------------------------------------------------------------------------


def test_files(tmp_path: Path) -> None:
    TRAINED.save(tmp_path / "tokenizer.json")
    again: Tokenizer = load_tokenizer(tmp_path / "tokenizer.json")
    assert again == TRAINED
    assert again.hash == TRAINED.hash
    assert type(again) is BpeTokenizer
    assert named_tokenizer(tmp_path) == TRAINED  # a folder with one in it
    assert tokenizer_from_dict(json.loads(json.dumps(TRAINED.to_dict()))) == TRAINED
    assert pickle.loads(pickle.dumps(TRAINED)) == TRAINED
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.encode("the import statement").ids == TRAINED.encode("the import statement").tolist()


def test_the_two_files_of_gpt2(tmp_path: Path) -> None:
    """As the library writes them, and as older programs do, without a first line about the version."""
    TRAINED.save(tmp_path / "tokenizer.json")
    tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).model.save(str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    again = named_tokenizer(tmp_path)
    assert type(again) is BpeTokenizer
    assert again.tokens == TRAINED.tokens
    assert again.end_of_text == TRAINED.end_of_text
    assert again.encode(TEXT).tolist() == TRAINED.encode(TEXT).tolist()
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#version:")
    (tmp_path / "merges.txt").write_text("\n".join(lines[1:]), encoding="utf-8")
    assert named_tokenizer(tmp_path) == again
    for damaged, message in (("[]", "an id for each token"), ("{", "cannot be read"), ('{"a": 0}', "cannot be read by tokenizers")):
        (tmp_path / "vocab.json").write_text(damaged)
        with pytest.raises(TokenizerError, match=message):
            named_tokenizer(tmp_path)


def test_the_hash_depends_on_the_content_not_on_the_layout(tmp_path: Path) -> None:
    (tmp_path / "pretty.json").write_text(json.dumps(TRAINED.to_dict(), indent=4, sort_keys=True))
    assert load_tokenizer(tmp_path / "pretty.json").hash == TRAINED.hash
    assert BpeTokenizer.train([TEXT], 999).hash != TRAINED.hash


def test_truncation_and_padding_of_a_tokenizer_file_are_ignored() -> None:
    theirs = library(TRAINED)
    theirs.enable_truncation(4)
    theirs.enable_padding(length=6)
    theirs.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="$A $B", special_tokens=[("<|endoftext|>", TRAINED.end_of_text)]
    )
    assert len(theirs.encode(TEXT[:1000]).ids) == 6
    assert tokenizer_from_dict(json.loads(theirs.to_str())).encode(TEXT[:1000]).tolist() == TRAINED.encode(TEXT[:1000]).tolist()


def test_a_tokenizer_that_is_not_byte_level_works_as_its_library_does() -> None:
    theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, unk_token="[UNK]"))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = tokenizer_from_dict(json.loads(theirs.to_str()))
    assert type(tokenizer) is HuggingFaceTokenizer
    assert tokenizer.encode("one two three").tolist() == [1, 2, 0]
    assert tokenizer.decode([1, 2]) == "one two"
    assert (tokenizer.vocab_size, tokenizer.unknown_id, tokenizer.end_of_text) == (3, 0, None)


@pytest.mark.parametrize("kind", [BpeTokenizer, HuggingFaceTokenizer])
def test_the_end_of_text_in_a_text_is_text_like_any_other(kind: type[HuggingFaceTokenizer]) -> None:
    tokenizer = kind(TRAINED.to_dict())
    ids = tokenizer.encode("one<|endoftext|>two").tolist()
    assert tokenizer.end_of_text not in ids
    assert tokenizer.decode(ids) == "one<|endoftext|>two"


def test_a_tokenizer_json_that_the_library_cannot_read() -> None:
    with pytest.raises(TokenizerError, match="cannot be read by tokenizers"):
        tokenizer_from_dict({"model": {"type": "BPE", "vocab": 7}})


def test_without_the_library_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    TRAINED.save(tmp_path / "tokenizer.json")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    sentence = r"^a BPE tokenizer needs tokenizers: pip install 'tensorlite\[data\]'\.$"
    with pytest.raises(MissingExtraError, match=sentence):
        BpeTokenizer.train([TEXT])
    with pytest.raises(MissingExtraError, match=sentence):
        load_tokenizer(tmp_path / "tokenizer.json")
