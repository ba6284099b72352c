"""Classify texts:  python -m gpt.classify --checkpoint runs/finetuned "A fine film."

`python -m gpt.finetune --task classify` trains a classifier. For a single text all labels are printed with their probabilities. For a file
or a pipe, each text gets a line: the label, its probability, and the text.

    python -m gpt.classify --checkpoint runs/finetuned "A fine film." "A waste of time."
    python -m gpt.classify --checkpoint runs/finetuned --file reviews.txt                 a text on each line
    python -m gpt.classify --checkpoint runs/finetuned --file reviews.csv                 or .jsonl: the field "text"
    python -m gpt.classify --checkpoint runs/finetuned --file reviews.csv --json          all probabilities, for other programs

If the file has labels, too, a confusion table follows.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.console import error_text
from data.corpus import clean_text
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.cli.arguments import Parser, add_model_options, check_backend
from gpt.errors import fail, run_main
from gpt.finetuning.classifier import Classifier, confusion_matrix, format_confusion, load_classifier, text_row
from gpt.finetuning.config import UNKNOWN
from gpt.finetuning.records import KINDS, encode_texts, read_records, text_field
from gpt.finetuning.tasks import with_unknown_policy
from gpt.generation.stream import limit_threads

AT_ONCE = 32  # texts


@dataclass(frozen=True)
class Text:
    """One text, its line in the file, and its label, if it has one."""

    line: int
    text: str
    label: str | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and print the labels.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct.
    """
    options = _parse(argv)
    source = options.file or ("the command line" if options.texts else "standard input")
    texts = _given(options)
    classifier, tokenizer = load_classifier(options.checkpoint, options.backend)
    _require_known_labels(texts, classifier.labels, source)
    tokenizer = with_unknown_policy(tokenizer, options.unknown)
    alone = bool(options.texts) and len(texts) == 1 and not options.json
    cropped, truth, found = 0, [], []
    with limit_threads(classifier):
        for text, probabilities, is_cropped in _classified(classifier, tokenizer, texts, source):
            cropped += is_cropped
            _show(text, probabilities, classifier.labels, alone, options.json)
            if text.label is not None:
                truth.append(classifier.labels.index(text.label))
                found.append(int(probabilities.argmax()))
    if cropped:
        print(f"note: {cropped:,} of {len(texts):,} texts are longer than the model's context: it has read "
              f"their first {classifier.config.block_size:,} tokens.", file=sys.stderr)  # fmt: skip
    if truth:
        table = confusion_matrix(np.array(truth), np.array(found), classifier.labels)
        print("\n" + format_confusion(table, classifier.labels, f"the {len(truth):,} labelled texts in {source}"), file=sys.stderr)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m gpt.classify", description="Classify texts with a finetuned model.", usage="%(prog)s -c DIR [options] [TEXT …]"
    )
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="a text, or several (default: standard input, one a line)")
    add_model_options(parser, "a folder that gpt.finetune --task classify has written")
    parser.add_argument("--file", metavar="FILE", help=f"texts from a file, one a line, or {' or '.join(KINDS)}; - is standard input")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each text, with the probabilities of all labels")
    parser.add_argument(
        "--unknown", default="error", choices=UNKNOWN, help="what to do with characters that the tokenizer does not know (default: error)"
    )
    options = parser.parse_args(argv)
    check_backend(options)
    if options.texts and options.file:
        fail("there are texts on the command line and in --file: give one of them.")
    return options


def _given(options: argparse.Namespace) -> list[Text]:
    """The texts from the command line, a file or a pipe."""
    if options.texts:
        texts = [Text(number, text.replace("\r\n", "\n")) for number, text in enumerate(options.texts, 1)]
    elif options.file and expand_path(options.file).suffix in KINDS:
        records = read_records(options.file)
        texts = [Text(record.line, text_field(record, "text", options.file), _label(record.fields.get("label"))) for record in records]
    else:
        lines = _read(options.file).split("\n")
        texts = [Text(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not texts or not all(text.text for text in texts):
        fail("there is no text to classify: give one, or name a --file." if not texts else "a text to classify must not be empty.")
    return texts


def _read(file: str | None) -> str:
    """A file, or standard input, as text."""
    if file is None and sys.stdin.isatty():
        return ""
    try:
        return clean_text(sys.stdin.buffer.read() if file in (None, "-") else expand_path(file).read_bytes(), file or "standard input")
    except OSError as error:
        fail(f"the texts cannot be read: {file or 'standard input'}: {error_text(error)}.")


def _label(value: object) -> str | None:
    return str(value) if isinstance(value, str | int) and value != "" else None


def _require_known_labels(texts: Iterable[Text], labels: Sequence[str], source: str) -> None:
    """Raises a UserError for a label that the model does not know."""
    for text in texts:
        if text.label is not None and text.label not in labels:
            known = ", ".join(labels)
            fail(f"line {text.line} of {source} has the label {text.label!r}, which the model does not know: it knows {known}.")


def _classified(
    classifier: Classifier, tokenizer: Tokenizer, texts: Iterable[Text], source: str
) -> Iterator[tuple[Text, np.ndarray, bool]]:
    """Each text with the probabilities of the labels, and whether it was too long and was cut."""
    texts = iter(texts)
    while several := list(itertools.islice(texts, AT_ONCE)):
        ids = encode_texts([(text.line, text.text) for text in several], tokenizer, source)
        rows = [text_row(tokens, classifier.config.block_size) for tokens in ids]
        for text, tokens, probabilities in zip(several, ids, classifier.probabilities(rows), strict=True):
            yield text, probabilities, len(tokens) > classifier.config.block_size


def _show(text: Text, probabilities: np.ndarray, labels: Sequence[str], alone: bool, as_json: bool) -> None:
    order = np.argsort(-probabilities, kind="stable")
    best = labels[order[0]]
    if as_json:
        chances = {label: round(float(chance), 6) for label, chance in zip(labels, probabilities, strict=True)}
        print(json.dumps({"text": text.text, "label": best, "probabilities": chances}, ensure_ascii=False))
    elif alone:
        width = max(map(len, labels))
        for number in order:
            print(f"{labels[number]:<{width}}  {probabilities[number]:6.1%}")
    else:
        print(f"{best}\t{probabilities[order[0]]:.1%}\t{' '.join(text.text.split())}")


if __name__ == "__main__":
    sys.exit(run_main(main))
