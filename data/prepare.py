"""From a text, a folder or an archive to token files for training: ``python -m data.prepare SOURCE --out DIR``.

The main process reads the source and distributes the work: batches of documents, and whole archives that lie inside another one.
Workers decompress, decode and tokenize, and the main process writes their results in order. The files do not depend on the number of
workers: they are the same, byte for byte.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.cores import available_cores
from data.corpus import Corpus
from data.encode import BATCH, PACK, SEPARATOR, Batch, Encoder, EncodingTask, SplitIds, separator
from data.errors import DataError, run_main
from data.paths import expand_path
from data.pool import Pool
from data.sources.named import NAMES, named_source
from data.sources.streams import Budget, Reader
from data.sources.text import POLICIES, Policy, decode
from data.sources.walk import PackedArchive, Piece, Tally, Walk, default_budget, size_of, walk
from data.spans import SpanWriter, TextSpan, tokenize
from data.splits import SPLITS, Split, Splitter
from data.staging import TokenWriter, staging, write_json
from data.tokenizer import BpeTokenizer, CharTokenizer, Tokenizer, named_tokenizer, token_dtype

VERSION = 1
BPE_SAMPLE = 64 << 20  # characters that a BPE learns from, at most
UNKNOWN_POLICIES = ("error", "replace", "skip")
_MEGABYTE = 1e6


@dataclass(frozen=True)
class Settings:
    """The options of the program, which describes them in its help."""

    tokenizer: str | os.PathLike[str] = "char"
    vocab_size: int | None = None
    val_fraction: float = 0.1
    sample: float = 1.0
    workers: int = 1
    seed: int = 0
    unknown: str = "error"
    encoding_errors: Policy = "error"
    text_field: str = "text"
    max_expanded_size: int | None = None
    progress: bool | None = None  # None: if stderr is a terminal

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise DataError(f"--val-fraction must be above 0 and below 1, got {self.val_fraction:g}.")
        if not 0 < self.sample <= 1:
            raise DataError(f"--sample must be above 0 and at most 1, got {self.sample:g}.")
        if self.workers < 1:
            raise DataError(f"--workers must be at least 1, got {self.workers}.")
        if self.vocab_size is not None and self.tokenizer != "bpe":
            raise DataError(f"--vocab-size is for --tokenizer bpe; {self.tokenizer} has the vocabulary that it has.")
        if self.encoding_errors not in POLICIES:
            raise DataError(f"--encoding-errors must be one of {', '.join(POLICIES)}, got {self.encoding_errors!r}.")
        if self.unknown not in UNKNOWN_POLICIES:
            raise DataError(f"--unknown must be one of {', '.join(UNKNOWN_POLICIES)}, got {self.unknown!r}.")
        if self.max_expanded_size is not None and self.max_expanded_size < 1:
            raise DataError(f"--max-expanded-size must be at least 1 byte, got {self.max_expanded_size}.")


def prepare(source: str | os.PathLike[str] | Corpus, out: str | os.PathLike[str], settings: Settings | None = None) -> dict[str, Any]:
    """Write train.bin, val.bin, tokenizer.json and meta.json for ``source`` into the folder ``out``; return the content of meta.json.

    Args:
        source: a path, one of `data.sources.named.NAMES`, or a text.

    Raises:
        DataError: if that fails; ``out`` is then unchanged.
    """
    settings = settings or Settings()
    out = expand_path(out)
    corpus = _Source(source, settings, exclude=out)
    with staging(out) as place:
        return _Preparation(corpus, settings, place).run()


class _Source:
    """A source whose pieces can be read several times."""

    def __init__(self, source: str | os.PathLike[str] | Corpus, settings: Settings, exclude: Path) -> None:
        given = named_source(source) if isinstance(source, str) and source in NAMES else source
        self._settings = settings
        self._without = exclude
        self._raw = given.text.encode("utf-8", "surrogatepass") if isinstance(given, Corpus) else None
        self._path = Path() if isinstance(given, Corpus) else expand_path(given)
        self.name = given.name if isinstance(given, Corpus) else self._path.name or str(self._path)
        self.description = given.source if isinstance(given, Corpus) else str(given)
        self.size = len(self._raw) if self._raw is not None else size_of(self._path)
        limit = settings.max_expanded_size
        self._limit = default_budget(self._path) if limit is None else limit
        self.budget = Budget(self._limit, self.name)

    def pieces(self, tally: Tally, pack: int = 0, on_read: Callable[[int], object] = lambda size: None) -> Iterable[Piece | PackedArchive]:
        """See `data.sources.walk.walk`; each time with a new budget."""
        settings = self._settings
        self.budget = Budget(self._limit, self.name)
        if self._raw is not None:
            file = io.BytesIO(self._raw)
            reading = Walk(tally, self.budget, settings.text_field, settings.encoding_errors == "error", on_read=on_read)
            return reading.stream(self.name, Reader(file.read), 0, file)
        return walk(
            self._path,
            tally,
            text_field=settings.text_field,
            encoding_errors=settings.encoding_errors,
            budget=self.budget,
            pack=pack,
            exclude=self._without,
            on_read=on_read,
        )

    def is_single(self) -> bool:
        """Whether there is only one document, which is then split in order. This reads no further than the second document."""
        name = None
        settings = self._settings
        lenient: Policy = "replace" if settings.encoding_errors == "error" else settings.encoding_errors
        for piece in self.pieces(Tally()):
            assert isinstance(piece, Piece)
            if piece.name == self.name and not self._path.is_dir():
                return True  # the source is one text file
            if piece.part == 0 and decode(piece, lenient, Tally()):
                if name is not None:
                    return False
                name = piece.name
        return True

    def texts(self, splitter: Splitter | None) -> Iterator[str]:
        """The training text, to train a tokenizer."""
        for piece in self.pieces(Tally()):
            assert isinstance(piece, Piece)
            if (splitter is None or splitter(piece.name) == "train") and (text := decode(piece, self._settings.encoding_errors, Tally())):
                yield text


class _Preparation:
    """One run, with what it has read and written so far."""

    def __init__(self, source: _Source, settings: Settings, place: Path) -> None:
        self.source = source
        self.settings = settings
        self.place = place
        self.tally = Tally()
        self.alphabet: set[str] = set()
        self.spans: dict[Split, list[TextSpan]] = {split: [] for split in SPLITS}
        self.files: dict[Split, TokenWriter] = {}
        self.documents = dict.fromkeys(SPLITS, 0)
        self.characters = dict.fromkeys(SPLITS, 0)
        self.single = source.is_single()
        self.splitter = None if self.single else Splitter(settings.seed, settings.val_fraction, settings.sample)

    def run(self) -> dict[str, Any]:
        """Read the source and write all files; return the content of meta.json."""
        tokenizer = self._tokenizer()
        try:
            if tokenizer is None:
                self.between = SpanWriter(self.place).write(SEPARATOR.encode())
            else:
                self._open(tokenizer)
            self._read(EncodingTask(tokenizer, self.splitter, self.settings.encoding_errors, self.settings.text_field, self.place))
            if not sum(self.documents.values()):
                raise DataError(self._nothing())
            if tokenizer is None:
                tokenizer = self._characters()
            if self.single:
                self._cut()
                if isinstance(tokenizer, CharTokenizer) and tokenizer.unknown != "skip":  # a token for each character
                    self.characters = {split: self.files[split].tokens for split in SPLITS}
            self._check_splits()
        finally:
            for file in self.files.values():
                file.close()
        tokenizer.save(self.place / "tokenizer.json")
        meta = self._meta(tokenizer)
        write_json(self.place / "meta.json", meta)
        return meta

    def _open(self, tokenizer: Tokenizer) -> None:
        dtype = np.dtype(token_dtype(tokenizer.vocab_size))
        self.files = {split: TokenWriter(self.place / f"{split}.bin", dtype) for split in SPLITS}
        self.separator = self._separator_ids(tokenizer)

    def _read(self, task: EncodingTask) -> None:
        """Read the source from beginning to end, and write the ids."""
        with Pool(self.settings.workers, Encoder, task) as pool, self._bar(self.source.name, self.source.size) as bar:
            encode_here = Encoder(task)
            started = time.monotonic()
            read = 0
            for work, batch in pool.map(_batches(self.source.pieces(self.tally, PACK, bar.update))):
                for part in [batch] if batch is not None else self._opened(cast(PackedArchive, work), encode_here):
                    self._write(part)
                    read += part.size
                rate = read / _MEGABYTE / max(1e-9, time.monotonic() - started)
                bar.set_postfix_str(f"{sum(self.documents.values()):,} documents, {rate:.1f} MB/s of text", refresh=False)

    def _tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None for characters, whose alphabet is not known yet."""
        settings = self.settings
        if settings.tokenizer == "char":
            return None
        if settings.tokenizer == "bpe":
            texts = _shortened(self.source.texts(self.splitter), 1 - settings.val_fraction if self.single else 1.0)
            return BpeTokenizer.train(texts, *([settings.vocab_size] if settings.vocab_size is not None else []))
        tokenizer = named_tokenizer(settings.tokenizer)
        if isinstance(tokenizer, CharTokenizer) and tokenizer.unknown != settings.unknown and settings.unknown != "error":
            return CharTokenizer(tokenizer.characters, settings.unknown)
        return tokenizer

    def _separator_ids(self, tokenizer: Tokenizer) -> np.ndarray:
        if tokenizer.end_of_text is not None:
            return np.array([tokenizer.end_of_text])
        return tokenizer.encode(separator(tokenizer))

    def _opened(self, packed: PackedArchive, encode: Encoder) -> Iterator[Batch]:
        """The content of an archive that is too large for a worker, in batches."""
        reading = Walk(self.tally, self.source.budget, self.settings.text_field, self.settings.encoding_errors == "error")
        for work in _batches(reading.packed(packed)):
            batch = encode(work)
            assert batch is not None
            yield batch

    def _write(self, batch: Batch) -> None:
        self.tally.merge(batch.tally)
        self.source.budget.spend(batch.expanded)
        self.alphabet.update(batch.alphabet)
        for split, row in batch.rows.items():
            self._append(split, row)
            self.documents[split] += row.documents
            self.characters[split] += row.characters

    def _append(self, split: Split, row: SplitIds) -> None:
        if isinstance(row.ids, TextSpan):
            spans = self.spans[split]
            if spans and not row.continues:
                spans.append(self.between)
                self.alphabet.add(SEPARATOR)
            spans.append(row.ids)
        else:
            file = self.files[split]
            if file.tokens and not row.continues:
                file.append(self.separator)
            file.append(row.ids)

    def _characters(self) -> CharTokenizer:
        """Make the tokenizer of all characters in the source, and write the ids."""
        tokenizer = CharTokenizer.train(self.alphabet, self.settings.unknown)
        self._open(tokenizer)
        total = sum(span.characters for spans in self.spans.values() for span in spans)
        with self._bar("characters to ids", total, "") as bar:
            for split in SPLITS:
                for done in tokenize(self.spans[split], tokenizer, self.files[split], self.settings.workers):
                    bar.update(done)
        return tokenizer

    def _cut(self) -> None:
        """Split a single text in order: the first part is for training, the rest for validation. No window lies in both."""
        train, val = self.files["train"], self.files["val"]
        if self.settings.sample < 1:
            train.cut(int(train.tokens * self.settings.sample))
        train.cut(int(train.tokens * (1 - self.settings.val_fraction)), val)

    def _check_splits(self) -> None:
        settings = self.settings
        for split, option in (("val", "larger"), ("train", "smaller")):
            if self.files[cast(Split, split)].tokens:
                continue
            if self.single:
                raise DataError(
                    f"{self.source.description} is too short to be split: --val-fraction {settings.val_fraction:g} of "
                    f"{sum(file.tokens for file in self.files.values()):,} tokens leaves nothing for {split}.bin; use more text."
                )
            raise DataError(
                f"the split by document leaves nothing for {split}.bin: none of {sum(self.documents.values()):,} documents fell to it "
                f"with --val-fraction {settings.val_fraction:g} and --seed {settings.seed}; use a {option} fraction, another seed or "
                "more documents."
            )

    def _nothing(self) -> str:
        left_out = _described(self.tally)
        sampled = f" with --sample {self.settings.sample:g}" if self.settings.sample < 1 else ""
        return f"{self.source.description} yields no text{sampled}{f' ({left_out})' if left_out else ''}; a corpus needs some text."

    def _meta(self, tokenizer: Tokenizer) -> dict[str, Any]:
        settings = self.settings
        return {
            "version": VERSION,
            "source": self.source.description.encode("utf-8", "backslashreplace").decode(),
            "dtype": self.files["train"].dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer_hash": tokenizer.hash,
            "tokens": {split: self.files[split].tokens for split in SPLITS},
            "documents": dict(self.documents),
            "characters": dict(self.characters),
            "split": "in order" if self.single else "by document",
            "val_fraction": settings.val_fraction,
            "sample": settings.sample,
            "seed": settings.seed,
            "encoding_errors": settings.encoding_errors,
            "left_out_or_mended": dict(sorted(self.tally.counts.items())),
        }

    def _bar(self, what: str, total: int, unit: str = "B") -> Any:
        from tqdm import tqdm  # its import takes time; the workers are running by now

        disable = None if self.settings.progress is None else not self.settings.progress
        return tqdm(total=total, desc=what, unit=unit, unit_scale=True, disable=disable, mininterval=0.5)


def _batches(pieces: Iterable[Piece | PackedArchive]) -> Iterator[PackedArchive | list[Piece]]:
    """Tasks for the workers: small pieces are combined, in their order."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if isinstance(piece, PackedArchive):
            if batch:
                yield batch
                batch, size = [], 0
            yield piece
            continue
        batch.append(piece)
        size += len(piece.raw)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shortened(texts: Iterable[str], fraction: float) -> Iterable[str]:
    """The first ``fraction`` of the first `BPE_SAMPLE` characters."""
    found: list[str] = []
    size = 0
    for text in texts:
        found.append(text[: BPE_SAMPLE - size])
        size += len(found[-1])
        if size >= BPE_SAMPLE:
            break
    left = int(size * fraction)
    for text in found:
        yield text[:left]
        left -= min(left, len(text))


def _described(tally: Tally) -> str:
    return "; ".join(f"{what}: {count:,}, the first is {tally.examples[what]}" for what, count in sorted(tally.counts.items()))


def _size(text: str) -> int:
    """The bytes in a text such as ``20GB``, ``512 MiB`` or ``1000``."""
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    number = text.strip().lower().removesuffix("b")
    unit = number.lstrip("0123456789. ")
    if unit not in units:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 20GB, 512MiB or 1000")
    return int(float(number[: len(number) - len(unit)]) * units[unit])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description="Turn text into token files that train.")
    add = parser.add_argument
    add("source", metavar="SOURCE", help=f"a .txt, .jsonl or .csv file, a folder, an archive of any of these, or one of {', '.join(NAMES)}")
    add("--out", required=True, metavar="DIR", help="the folder for train.bin, val.bin, tokenizer.json and meta.json")
    add("--tokenizer", default="char", metavar="NAME", help="char, bpe (trained on the text), gpt2, or a tokenizer file (default: char)")
    add("--vocab-size", type=int, metavar="N", help="the number of tokens of a bpe (default: 4096)")
    add(
        "--val-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="the share of documents, or of a single text, for validation (default: 0.1)",
    )
    add("--sample", type=float, default=1.0, metavar="F", help="the share of the source that is used (default: 1)")
    add("--workers", type=int, default=available_cores(), metavar="N", help="processes (default: one for each core)")
    add("--seed", type=int, default=0, metavar="N", help="the seed of the choice of documents (default: 0)")
    add("--unknown", choices=UNKNOWN_POLICIES, default="error", help="what to do with characters that a tokenizer file does not know")
    add("--encoding-errors", choices=POLICIES, default="error", help="what to do with text that is not UTF-8 (default: error)")
    add("--text-field", default="text", metavar="NAME", help="the field with the text in .jsonl and .csv (default: text)")
    add("--max-expanded-size", type=_size, metavar="SIZE",
        help="the limit for decompressed data, such as 20GB (default: 50 times the size of SOURCE, at least 1 GiB)")  # fmt: skip
    return parser


def main(arguments: list[str] | None = None) -> int:
    """The program."""
    options = vars(_parser().parse_args(arguments))
    source, out = options.pop("source"), options.pop("out")
    meta = prepare(source, out, Settings(**options))
    documents, characters, tokens = (sum(meta[what].values()) for what in ("documents", "characters", "tokens"))
    counted = f"{documents:,} document" + "s" * (documents != 1)
    print(f"{out}: {counted}, {characters:,} characters from {meta['source']}, split {meta['split']}")
    for split in SPLITS:
        print(f"  {split + '.bin':<9} {meta['tokens'][split]:>15,} tokens ({meta['tokens'][split] / tokens:.1%})")
    print(f"  vocabulary {meta['vocab_size']:,}, {meta['dtype']}, {characters / tokens:.2f} characters a token")
    for what, count in meta["left_out_or_mended"].items():
        print(f"  {what}: {count:,}")
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
