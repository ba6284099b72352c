"""Text as it appears: whole characters only, nothing of a stop string, an end at the end of text."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from data.tokenizer import HuggingFaceTokenizer
from gpt.config import GPTConfig
from gpt.generation.detokenizer import StreamDetokenizer
from gpt.generation.stream import generate_text, stream_tokens
from gpt.model import build_model


class Bytes:
    """A tokenizer whose tokens are a few bytes each; the last id is the end of the text."""

    def __init__(self, *tokens: bytes) -> None:
        self.tokens = tokens
        self.end_of_text = len(tokens)

    def decode(self, ids) -> str:
        return b"".join(self.tokens[int(i)] for i in np.ravel(ids)).decode("utf-8", "replace")


def written(tokens: list[bytes], stop: list[str] = ()) -> list[str]:
    pieces = StreamDetokenizer(Bytes(*tokens), stop)
    return [*(pieces.push(i) for i in range(len(tokens))), pieces.finish()]


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[a:b] for a, b in itertools.pairwise(edges)]


def test_a_character_appears_after_its_last_byte():
    assert written([b"a\xe2", b"\x80", b"\x93b"]) == ["a", "", "–b", ""]
    assert written(["naïve".encode(), b"\xf0\x9f", b"\x98\x80\xc3", b"\xa9"]) == ["naïve", "", "😀", "é", ""]


def test_incomplete_bytes_become_a_replacement_character():
    assert written([b"a\xff", b"b", b"\xe2"]) == ["a", "\ufffdb", "", "\ufffd"]


def test_a_stop_string_ends_the_text_before_it():
    assert written([b"ab", b"c\n", b"\n", b"def"], ["\n\n"]) == ["ab", "c", "", "", ""]
    assert written([b"ab", b"c\n", b"x", b"\n"], ["\n\n"]) == ["ab", "c", "\nx", "", "\n"]
    assert written([b"abcXYZdef"], ["Z", "cX"]) == ["ab", ""]
    assert written([b"abc"], ["", "abcd"]) == ["", "abc"]
    assert written([b"aa", b"ab"], ["aab"]) == ["", "a", ""]


def test_the_end_of_the_text():
    pieces = StreamDetokenizer(Bytes(b"ab\n", b"c"), ["\n\n"])
    assert [pieces.push(0), pieces.push(2), pieces.stopped, pieces.push(1), pieces.finish()] == ["ab", "\n", True, "", ""]


@given(st.text(), st.lists(st.integers(0, 200)))
def test_the_pieces_are_the_text(text: str, places: list[int]):
    assert "".join(written(cut(text.encode("utf-8", "replace"), places))) == text.encode("utf-8", "replace").decode()


@given(st.text("ab–"), st.lists(st.integers(0, 200)), st.lists(st.text("ab–", min_size=1, max_size=3), min_size=1, max_size=3))
def test_stopping_does_not_depend_on_the_pieces(text: str, places: list[int], stop: list[str]):
    ends = [text.index(s) for s in stop if s in text]
    tokens = cut(text.encode(), places)
    pieces = StreamDetokenizer(Bytes(*tokens), stop)
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
def test_a_stop_string_is_found_across_any_two_pieces(size: int):
    raw = "the quick – brown fox".encode()
    tokens = [raw[i : i + size] for i in range(0, len(raw), size)]
    assert "".join(written(tokens, ["– b"])) == "the quick "


# --- tokens that are not simply put side by side ------------------------------------------------------


def library_tokenizers() -> dict[str, HuggingFaceTokenizer]:
    """One of each kind whose tokens mean something else alone than after another."""
    words = {word: i for i, word in enumerate(["[UNK]", "one", "two", "three", ".", "do", "##ing", "n't", "is"])}
    spaced = [("▁one", -1.0), ("▁two", -1.0), ("▁", -1.0), ("three", -1.0), ("▁do", -1.0), ("ing", -1.0), (".", -1.0)]
    in_bytes = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁one": 256, "▁two": 257, "▁": 258}
    models, decoders = tokenizers.models, tokenizers.decoders
    llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made = {
        "WordLevel": (models.WordLevel(words, unk_token="[UNK]"), tokenizers.pre_tokenizers.Whitespace(), None),
        "WordPiece": (models.WordPiece(words, unk_token="[UNK]"), tokenizers.pre_tokenizers.Whitespace(), decoders.WordPiece()),
        "Metaspace": (models.Unigram(spaced, None), tokenizers.pre_tokenizers.Metaspace(), decoders.Metaspace()),
        "ByteFallback": (models.BPE(in_bytes, [], byte_fallback=True), None, decoders.Sequence(llama)),
    }
    found = {}
    for name, (model, pre_tokenizer, decoder) in made.items():
        tokenizer = tokenizers.Tokenizer(model)
        if pre_tokenizer:
            tokenizer.pre_tokenizer = pre_tokenizer
        if decoder:
            tokenizer.decoder = decoder
        found[name] = HuggingFaceTokenizer(json.loads(tokenizer.to_str()))
    return found


LIBRARY = library_tokenizers()
IDS = {
    "WordLevel": [1, 2, 4, 3, 3],
    "WordPiece": [5, 6, 7, 4, 1, 8, 2],
    "Metaspace": [0, 1, 2, 3, 4, 5, 6],
    "ByteFallback": [256, *"😀😁–".encode(), 257, 0xFF, 258, 256, 0xE2, 0x80],
}


@pytest.mark.parametrize("name", LIBRARY)
def test_the_pieces_equal_the_librarys_decoding_of_all_tokens(name: str):
    pieces = StreamDetokenizer(LIBRARY[name])
    assert "".join([*(pieces.push(token) for token in IDS[name]), pieces.finish()]) == LIBRARY[name].decode(IDS[name])


@pytest.mark.parametrize("name", ["WordLevel", "WordPiece", "Metaspace"])
def test_the_pieces_continue_a_prompt(name: str):
    tokenizer, ids = LIBRARY[name], IDS[name]
    for cut in range(1, len(ids)):
        pieces = StreamDetokenizer(tokenizer, before=ids[:cut])
        assert tokenizer.decode(ids[:cut]) + "".join(map(pieces.push, ids[cut:])) == tokenizer.decode(ids)


def test_characters_of_several_bytes_appear_when_complete():
    pieces = StreamDetokenizer(LIBRARY["ByteFallback"])
    assert [pieces.push(byte) for byte in "😀😁".encode()] == ["", "", "", "😀", "", "", "", "😁"]


@pytest.mark.parametrize("name", LIBRARY)
def test_a_stop_string_with_a_blank_is_found(name: str):
    text = LIBRARY[name].decode(IDS[name])
    blank = text.index(" ")
    pieces = StreamDetokenizer(LIBRARY[name], [text[blank - 1 : blank + 2]])
    assert "".join([*(pieces.push(token) for token in IDS[name]), pieces.finish()]) == text[: blank - 1]
    assert pieces.stopped


def test_a_text_is_streamed_as_the_library_would_write_it():
    tokenizer = LIBRARY["WordLevel"]
    tl.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=8, n_layer=1, n_head=1, n_embd=8))
    ids = [*tokenizer.encode("one two"), *(int(token) for token in stream_tokens(model, tokenizer.encode("one two"), 6, temperature=0.0))]
    assert generate_text(model, tokenizer, "one two", 6, temperature=0.0) == tokenizer.decode(ids)
