"""Byte pair encoding, trained on a text by the library `tokenizers` of Hugging Face.

It starts from single bytes, and repeatedly merges the pair of tokens that occurs most often in the training text into one token. Frequent
words become one token, rare ones a few, and nothing is unknown. It is stored as the library's own tokenizer.json, so every program
that uses the library can read our files, and we can read theirs.

Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016); on bytes: GPT-2 (2019).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.tokenizer.base import END_OF_TEXT, TokenizerError, checked_ids, hash_of, require, token_dtype, write_json
from data.tokenizer.byte_level import ByteLevelTokenizer, check_unicode, pieces
from data.tokenizer.words import WordCache

SMALLEST_VOCABULARY = 256 + 1  # every byte, and <|endoftext|>


def _library() -> Any:
    return require("tokenizers", extra="data", what="a BPE tokenizer")


class HuggingFaceTokenizer:
    """The tokenizer of a tokenizer.json, run by its library.

    No text encodes to a special token: the characters ``<|endoftext|>`` in a text are ordinary characters. Nothing is added at the
    beginning or end of a text.

    Args:
        content: a tokenizer.json.

    Raises:
        TokenizerError: if the library cannot read it.
        MissingExtraError: without the library.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        library = _library()
        try:
            tokenizer = library.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library raises nothing more precise
            raise TokenizerError(f"this tokenizer.json cannot be read by tokenizers {library.__version__}: {error}.") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        if getattr(tokenizer.model, "dropout", None):
            tokenizer.model.dropout = None  # BPE dropout is random
        self._tokenizer = tokenizer
        self._content = dict(content)

    @functools.cached_property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1

    @functools.cached_property
    def end_of_text(self) -> int | None:
        """The id of ``<|endoftext|>``, or of its name in other models."""
        special = {token["content"]: token["id"] for token in self._content.get("added_tokens") or () if token.get("special")}
        return next((special[name] for name in (END_OF_TEXT, "<|end_of_text|>", "</s>") if name in special), None)

    @functools.cached_property
    def unknown_id(self) -> int | None:
        """The id of the library's unk_token, if there is one."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        return self._tokenizer.token_to_id(name) if name else None

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``.

        Raises:
            TokenizerError: if there is half a surrogate pair in ``text``.
        """
        return np.array(self._encode([check_unicode(text)])[0], token_dtype(self.vocab_size))

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``, special tokens included.

        Raises:
            TokenizerError: if an id is not one of this tokenizer's.
        """
        return self._tokenizer.decode(checked_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def to_dict(self) -> dict[str, Any]:
        """The tokenizer.json."""
        return self._content

    @functools.cached_property
    def hash(self) -> str:
        """A hash of this tokenizer.json, which does not depend on its layout."""
        return hash_of(self._content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tokenizer.json."""
        write_json(path, self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HuggingFaceTokenizer) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self.hash)

    def __reduce__(self) -> tuple[type, tuple[dict[str, Any]]]:
        return type(self), (self._content,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.vocab_size:,} tokens, {self.hash[:12]})"


class BpeTokenizer(HuggingFaceTokenizer, ByteLevelTokenizer):
    """Byte-level BPE: ``decode(encode(text)) == text``, whatever the text.

    Args:
        content: a tokenizer.json whose tokens are strings of bytes, such as GPT-2's; see `BpeTokenizer.train`.
    """

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 4096) -> BpeTokenizer:
        """Train a tokenizer on ``texts``. The same texts in the same order give the same tokenizer, on any number of cores.

        The vocabulary is smaller than vocab_size if no more pairs occur twice.

        Raises:
            TokenizerError: if vocab_size is below 257: the bytes alone take 256.
            MissingExtraError: without the library.
        """
        if vocab_size < SMALLEST_VOCABULARY:
            raise TokenizerError(
                f"a byte-level vocabulary has at least {SMALLEST_VOCABULARY} entries, every byte and {END_OF_TEXT}, got {vocab_size}."
            )
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator((check_unicode(piece) for text in texts for piece in pieces(text)), trainer)
        return cls(json.loads(tokenizer.to_str()))

    decode = ByteLevelTokenizer.decode  # the same as the library's, and can return bytes

    @functools.cached_property
    def tokens(self) -> list[bytes]:
        """Id -> bytes; empty for an id that the file does not have."""
        added = {token["id"]: token["content"] for token in self._content.get("added_tokens", ())}
        tokens = [b""] * self.vocab_size
        for token, i in self._tokenizer.get_vocab().items():
            tokens[i] = token.encode() if i in added else _bytes_of(token)
        return tokens

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``.

        Raises:
            TokenizerError: if there is half a surrogate pair in ``text``.
        """
        if not self._cuts_at_spaces:
            return super().encode(text)
        return np.concatenate([np.zeros(0, self._memory.dtype), *map(self._memory.ids, pieces(check_unicode(text)))])

    @functools.cached_property
    def _memory(self) -> WordCache:
        return WordCache(self._encode, token_dtype(self.vocab_size))

    @functools.cached_property
    def _cuts_at_spaces(self) -> bool:
        """Whether the text is only split into words by GPT-2's pattern, without a normalizer before it."""
        words = self._content.get("pre_tokenizer") or {}
        plain = words.get("type") == "ByteLevel" and words.get("use_regex", True) and not words.get("add_prefix_space", True)
        only_specials_added = all(token.get("special") for token in self._content.get("added_tokens") or ())
        return plain and only_specials_added and self._content.get("normalizer") is None


def tokenizer_from_json(content: Mapping[str, Any]) -> HuggingFaceTokenizer:
    """The tokenizer in a tokenizer.json of the library's; a `BpeTokenizer` if its tokens are strings of bytes.

    Raises:
        TokenizerError: if the library cannot read it.
        MissingExtraError: without the library.
    """
    decoder, vocabulary = content.get("decoder"), content["model"].get("vocab")
    bytes_inside = isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"
    if bytes_inside and isinstance(vocabulary, dict) and _CHAR_OF_BYTE.keys() <= vocabulary.keys():
        return BpeTokenizer(content)
    return HuggingFaceTokenizer(content)


def tokenizer_from_merges(vocab: Mapping[str, int], merges: str) -> HuggingFaceTokenizer:
    """The tokenizer of GPT-2's two files: ``vocab.json``, a token's id, and ``merges.txt``, a pair of tokens a line in the order learnt.

    Raises:
        TokenizerError: if the library cannot read them.
        MissingExtraError: without the library.
    """
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": vocab[END_OF_TEXT], "content": END_OF_TEXT, **special}] if END_OF_TEXT in vocab else [],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": dict(vocab),
            "merges": [line for line in merges.splitlines() if line[:9] != "#version:" and line],
        },
    }
    return tokenizer_from_json(content)


def _bytes_of(token: str) -> bytes:
    """The bytes that a token of the file stands for."""
    return bytes(_CHAR_OF_BYTE[char] for char in token) if all(char in _CHAR_OF_BYTE for char in token) else token.encode()


def _printable_bytes() -> dict[str, int]:
    """How GPT-2 writes bytes in JSON: a printable byte is the character of that code, the others are U+0100, U+0101, …."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_CHAR_OF_BYTE = _printable_bytes()
