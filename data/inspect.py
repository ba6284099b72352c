"""What is in a prepared folder:  python -m data.inspect DIR

Shows the sizes, the frequency of each token, the compression, and samples of the text, because reading a sample finds more than any
check. It reads all tokens, one piece at a time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from data.errors import run_main
from data.prepared import Prepared, open_prepared
from data.token_file import TokenFile
from data.tokenizer import ByteLevelTokenizer, CharTokenizer, IdsTokenizer, Tokenizer, named_tokenizer

WIDTH = 40  # of the longest bar


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; returns the exit code.

    Raises:
        DataError: if the folder is not prepared, or does not fit together.
    """
    parser = argparse.ArgumentParser(prog="python -m data.inspect", description="Show what is in a prepared folder.")
    parser.add_argument("folder", metavar="DIR", help="a folder that python -m data.prepare has written, or nanoGPT's prepare.py")
    parser.add_argument("--tokenizer", metavar="NAME", help="gpt2 or a file: what the tokens mean, where the folder does not say")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="how many of the most frequent tokens to show (default: 20)")
    parser.add_argument("--sample", type=int, default=200, metavar="N", help="tokens of each text to show, from its middle (default: 200)")
    options = parser.parse_args(argv)
    prepared = open_prepared(options.folder, named_tokenizer(options.tokenizer) if options.tokenizer else None)
    for line in report(prepared, options.top, options.sample):
        print(line)
    return 0


def report(prepared: Prepared, top: int = 20, sample: int = 200) -> Iterator[str]:
    """The report on ``prepared``, line by line."""
    tokenizer = prepared.tokenizer
    counts = {file.path.name: count_tokens(file, prepared.vocab_size) for file in (prepared.train, prepared.val)}
    total = sum(counts.values(), np.zeros(prepared.vocab_size, np.int64))
    rows = {
        "folder": str(prepared.folder),
        "source": prepared.meta.get("source"),
        "tokenizer": f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} tokens, {np.count_nonzero(total):,} of them in use",
        "hash": tokenizer.hash,
        "documents": _of_meta(prepared, "documents"),
        "characters": _of_meta(prepared, "characters"),
        **{file.path.name: f"{len(file):,} tokens of {file.dtype.name}" for file in (prepared.train, prepared.val)},
        "compression": _compression(tokenizer, total),
        "unknown": _unknown(prepared, total),
    }
    yield from (f"{name:<12}{text}" for name, text in rows.items() if text)
    yield from prepared.notes
    yield ""
    yield "The most frequent tokens:"
    yield from histogram(tokenizer, total, top)
    for file in (prepared.train, prepared.val):
        yield ""
        yield f"From the middle of {file.path.name}:"
        middle = max(0, (len(file) - sample) // 2)
        yield tokenizer.decode(file[middle : middle + sample])


def count_tokens(file: TokenFile, vocab_size: int) -> np.ndarray:
    """How often each id occurs: (V,) int64."""
    counts = np.zeros(vocab_size, np.int64)
    for chunk in file.chunks():
        counts += np.bincount(chunk, minlength=vocab_size)
    return counts


def histogram(tokenizer: Tokenizer, counts: np.ndarray, top: int) -> Iterator[str]:
    """The ``top`` most frequent ids, each with its text, its share of all, and a bar."""
    order = np.argsort(-counts, kind="stable")[:top]
    for i in order[counts[order] > 0]:
        bar = "#" * max(1, round(WIDTH * counts[i] / counts[order[0]]))
        yield f"{i:>8} {_shown(tokenizer, int(i)):<20} {counts[i]:>14,} {counts[i] / counts.sum():>7.2%}  {bar}"


def _compression(tokenizer: Tokenizer, counts: np.ndarray) -> str | None:
    """The mean number of bytes of UTF-8 for a token, computed from the tokens."""
    if isinstance(tokenizer, IdsTokenizer):
        return None
    documents_apart = np.arange(len(counts)) != (-1 if tokenizer.end_of_text is None else tokenizer.end_of_text)
    used = np.flatnonzero(counts * documents_apart)
    size = sum(_length(tokenizer, int(i)) * int(counts[i]) for i in used)
    tokens = int(counts[used].sum())
    return f"{size / tokens:.2f} bytes of text a token ({size:,} bytes)" if tokens else None


def _unknown(prepared: Prepared, counts: np.ndarray) -> str | None:
    """The share of the text that the tokenizer has no ids for."""
    tokenizer, total = prepared.tokenizer, int(counts.sum())
    if isinstance(tokenizer, IdsTokenizer):
        return None
    if tokenizer.unknown_id is not None:
        replaced = int(counts[tokenizer.unknown_id])
        return f"{replaced / total:.4%} of the tokens ({replaced:,}) stand for characters that the tokenizer does not know"
    if isinstance(tokenizer, CharTokenizer) and tokenizer.unknown == "skip" and "characters" in prepared.meta:
        characters = sum(prepared.meta["characters"].values())
        line_ends = sum(documents - 1 for documents in prepared.meta.get("documents", {}).values() if documents)  # between two documents
        lost = characters - (total - line_ends * ("\n" in tokenizer.characters))
        return f"{lost / characters:.4%} of the characters ({lost:,}) were left out: the tokenizer does not know them"
    return "none"


def _shown(tokenizer: Tokenizer, i: int) -> str:
    """One token in quotes; if it is a part of a character, as bytes."""
    text = tokenizer.decode([i])
    return repr(tokenizer.decode_bytes([i]) if "\ufffd" in text and isinstance(tokenizer, ByteLevelTokenizer) else text)


def _length(tokenizer: Tokenizer, i: int) -> int:
    """The number of bytes of one token."""
    if isinstance(tokenizer, ByteLevelTokenizer):
        return len(tokenizer.decode_bytes([i]))
    return len(tokenizer.decode([i]).encode("utf-8", "surrogatepass"))


def _of_meta(prepared: Prepared, what: str) -> str | None:
    """The two counts that meta.json has of documents or characters."""
    counts = prepared.meta.get(what)
    if not isinstance(counts, dict):
        return None
    return ", ".join(f"{counts[part]:,} to {verb}" for part, verb in (("train", "train on"), ("val", "validate with")) if part in counts)


if __name__ == "__main__":
    sys.exit(run_main(main))
