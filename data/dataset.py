"""The data that a user wants to train on: a prepared folder, a text file, or a named corpus.

A text is tokenized in memory, and nothing is written to disk. That is right for a text of the size of a book. Larger data belongs in a
prepared folder, which is made once (`python -m data.prepare`) and needs no memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpus import Corpus, load_corpus
from data.errors import DataError
from data.loader import Tokens, split_tokens
from data.paths import expand_path
from data.prepared import Prepared, open_prepared
from data.sources.named import NAMES, named_source
from data.tokenizer import BpeTokenizer, CharTokenizer, Tokenizer, named_tokenizer

LARGEST_TEXT = 200 * 10**6  # bytes
BPE_VOCABULARY = 4096


@dataclass(frozen=True)
class Dataset:
    """Tokens to train on and to validate with, in memory or on the disk.

    Attributes:
        vocab_size: every id is below it; at least the tokenizer's.
        summary: the sizes, in one line for people.
        first_line: the first line of the training text.
        notes: what the user should know, one sentence each.
    """

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    vocab_size: int
    summary: str
    first_line: str
    notes: tuple[str, ...] = ()


def open_dataset(
    source: str | os.PathLike[str], val_fraction: float = 0.1, tokenizer: str | None = None, vocab_size: int | None = None
) -> Dataset:
    """Open ``source``: a prepared folder, a UTF-8 text file, or the name of a corpus.

    Args:
        val_fraction: the share of a text, from its end, for validation; a prepared folder is split already.
        tokenizer: "char", "bpe" (trained on the training part), "gpt2" or the path of a tokenizer. The default is characters for a
            text, and its own tokenizer for a folder.
        vocab_size: the number of ids of the model, if more than the tokenizer has; for "bpe", how many to learn.

    Raises:
        DataError: if it cannot be opened, or its parts do not fit together.
    """
    path = expand_path(source)
    if path.is_dir():
        return _from_folder(path, tokenizer, vocab_size)
    if path.is_file() and path.stat().st_size > LARGEST_TEXT:
        raise DataError(
            f"{path} is too large to be made into tokens in memory ({path.stat().st_size / 1e6:,.0f} MB): "
            f"prepare it once, python -m data.prepare {path} --out DIR, and train on that folder."
        )
    corpus = _corpus(source)
    chosen = _tokenizer_for(corpus.text, val_fraction, tokenizer, vocab_size)
    if vocab_size is not None and vocab_size < chosen.vocab_size:
        raise DataError(f"vocab_size {vocab_size:,} is too small: the tokenizer has {chosen.vocab_size:,} ids.")
    tokens = chosen.encode(corpus.text)
    train, val = split_tokens(tokens, val_fraction)
    if isinstance(chosen, CharTokenizer):
        summary = f"{len(corpus):,} characters, {chosen.vocab_size} different ones: {corpus.source}"
    else:
        summary = f"{len(corpus):,} characters, {len(tokens):,} tokens, {chosen.vocab_size:,} different ones: {corpus.source}"
    return Dataset(train, val, chosen, vocab_size or chosen.vocab_size, summary, _first_line(corpus.text))


def _corpus(source: str | os.PathLike[str]) -> Corpus:
    """A text by its name or its path."""
    if source not in NAMES:
        return load_corpus(source)
    found = named_source(str(source)) if source != "openwebtext" else None
    if isinstance(found, Corpus):
        return found
    raise DataError(f"{source} is too large for most memories: python -m data.prepare {source} --out DIR, and train on that folder.")


def _from_folder(folder: Path, name: str | None, vocab_size: int | None) -> Dataset:
    if name in ("char", "bpe"):
        raise DataError(f"{folder} holds tokens already; the tokenizer {name} is trained when a text is prepared.")
    prepared = open_prepared(folder, named_tokenizer(name) if name else None, vocab_size)
    beginning = prepared.tokenizer.decode(prepared.train[:500])
    return Dataset(
        prepared.train, prepared.val, prepared.tokenizer, prepared.vocab_size, _summary(prepared), _first_line(beginning), prepared.notes
    )


def _tokenizer_for(text: str, val_fraction: float, name: str | None, vocab_size: int | None) -> Tokenizer:
    match name:
        case None | "char":
            return CharTokenizer.train(text)
        case "bpe":
            return BpeTokenizer.train([text[: int(len(text) * (1 - val_fraction))]], vocab_size or BPE_VOCABULARY)
        case _:
            return named_tokenizer(name)


def _summary(prepared: Prepared) -> str:
    """One line about a prepared folder."""
    tokens = f"{len(prepared.train):,} tokens and {len(prepared.val):,} to validate with, {prepared.tokenizer.vocab_size:,} different ones"
    documents = _total(prepared.meta, "documents")
    return f"{tokens}: {prepared.folder}" + (
        f", {documents:,} document{'s' * (documents > 1)} of {prepared.meta.get('source')}" if documents else ""
    )


def _total(meta: Mapping[str, Any], what: str) -> int:
    counts = meta.get(what)
    return sum(counts.values()) if isinstance(counts, dict) else 0


def _first_line(text: str) -> str:
    return text.lstrip().partition("\n")[0]
