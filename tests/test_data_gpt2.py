"""GPT-2's tokenizer through tiktoken, with ranks learnt here: the real ones are on the network, which no test needs."""

import base64
import json
import pickle
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken

from data.corpus import load_corpus
from data.tokenizer import (
    BpeTokenizer,
    Gpt2Tokenizer,
    MissingExtraError,
    TokenizerError,
    load_tokenizer,
    named_tokenizer,
    tokenizer_from_dict,
)
from data.tokenizer.gpt2 import RANKS, cached_ranks

CACHED = cached_ranks()
TEXT = load_corpus("pydoc").text[:200_000]
LEARNT = BpeTokenizer.train([TEXT[:30_000]], 1000)
TOKENIZER = Gpt2Tokenizer(LEARNT.tokens[1:])  # its first is <|endoftext|>
SCALARS = "".join(map(chr, [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]))


def write_ranks(path: Path, tokens: list[bytes] | None = None) -> Path:
    tokens = LEARNT.tokens[1:] if tokens is None else tokens
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


# --- there and back -----------------------------------------------------------------------------------


def test_round_trip_over_all_unicode_scalars() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(SCALARS)) == SCALARS


def test_round_trip_of_20_000_random_byte_strings() -> None:
    source = random.Random(1)
    for _ in range(20_000):
        raw = source.randbytes(source.randrange(24))
        assert TOKENIZER.decode_bytes(TOKENIZER.encode_bytes(raw)) == raw


@pytest.mark.parametrize(
    "text", [TEXT, SCALARS, "", " ", "a  b   c\n\n d\t\t e'll we've\u00a0\u3000x"], ids=["prose", "scalars", "empty", "space", "mix"]
)
def test_the_same_ids_as_the_other_library(text: str) -> None:
    np.testing.assert_array_equal(TOKENIZER.encode(text) + 1, LEARNT.encode(text))  # there, end of text is the first; here, the last


def test_a_long_row_of_spaces() -> None:
    text = " " * 1_200_000 + "x"
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_end_of_text_is_the_last_id_and_no_text_encodes_to_it() -> None:
    assert TOKENIZER.end_of_text == TOKENIZER.vocab_size - 1 == 999
    ids = TOKENIZER.encode("one<|endoftext|>two")
    assert 999 not in ids
    assert TOKENIZER.decode(ids) == "one<|endoftext|>two"
    assert TOKENIZER.decode([999]) == "<|endoftext|>"


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TokenizerError, match="half a surrogate pair"):
        TOKENIZER.encode("\ud800")


@pytest.mark.skipif(not (CACHED and CACHED.is_file()), reason=f"GPT-2's own ranks are not at {CACHED}")
def test_gpt2_itself() -> None:
    gpt2 = named_tokenizer("gpt2")
    assert gpt2.vocab_size == 50257
    assert gpt2.end_of_text == 50256
    assert gpt2.encode("Hello, I'm a language model,").tolist() == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert gpt2.decode(gpt2.encode(SCALARS)) == SCALARS


# --- files --------------------------------------------------------------------------------------------


def test_a_file_of_ranks_whatever_its_name(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "some.file")
    assert named_tokenizer(path) == load_tokenizer(path) == TOKENIZER
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_tokenizer(path).hash == TOKENIZER.hash


def test_files(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert again == TOKENIZER
    assert again.hash == TOKENIZER.hash
    assert tokenizer_from_dict(json.loads(json.dumps(TOKENIZER.to_dict()))) == TOKENIZER
    assert pickle.loads(pickle.dumps(TOKENIZER)) == TOKENIZER
    fewer = Gpt2Tokenizer(LEARNT.tokens[1:-1])
    assert fewer.hash != TOKENIZER.hash
    assert fewer != TOKENIZER
    assert TOKENIZER != LEARNT


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"IQ== 0\nIg==\n", "in line 2, there should be a string of bytes in base64 and its rank"),
        (b"IQ== 0\nIg== 2\n", "in line 2, the rank 1 is missing"),
        (b"IQ== 0\n?? 1\n", "in line 2"),
        (b"IQ== 0\nIQ== 1\n", "is there twice"),
        (b"IQ== 0\n", "byte 0x00 has none"),
    ],
)
def test_invalid_rank_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "ranks").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / "ranks")


@pytest.mark.parametrize("ranks", [None, 7, ["??"], [7]])
def test_invalid_rank_dicts_are_refused(ranks: object) -> None:
    with pytest.raises(TokenizerError, match="no list of ranks in base64"):
        tokenizer_from_dict({"type": "gpt2", "ranks": ranks})


# --- where it comes from ------------------------------------------------------------------------------


def test_ranks_put_where_the_message_says_are_found(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "tensorlite").mkdir()
    write_ranks(tmp_path / "tensorlite" / RANKS)
    assert named_tokenizer("gpt2") == TOKENIZER


def test_tiktokens_cached_ranks_are_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: TOKENIZER._encoding if name == "gpt2" else None)
    assert named_tokenizer("gpt2") == TOKENIZER


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Hash mismatch for data downloaded")])
def test_without_a_network_one_sentence_says_what_to_put_where(tmp_path: Path, monkeypatch, error: Exception) -> None:
    def offline(name: str):
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(TokenizerError) as caught:
        named_tokenizer("gpt2")
    assert f"get https://openaipublic.blob.core.windows.net/encodings/{RANKS}" in str(caught.value)
    assert f"put it at {tmp_path / 'tensorlite' / RANKS}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_a_home_folder_only_the_path_is_asked_for(monkeypatch, no_home: None) -> None:
    def offline(name: str):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(TokenizerError, match=r"where there is a network and give the path of the file in place of gpt2\.$"):
        named_tokenizer("gpt2")


def test_without_the_library_one_line_says_how_to_get_it(tmp_path: Path, monkeypatch) -> None:
    path = write_ranks(tmp_path / "ranks")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    for name in ("gpt2", path):
        with pytest.raises(MissingExtraError, match=r"^GPT-2's tokenizer needs tiktoken: pip install 'tensorlite\[gpt2\]'\.$"):
            named_tokenizer(name)
