"""What a trained model can be taught next: another text, to answer, or to tell texts apart.

A task reads its data, says what is to be trained and on what, and measures how well it goes. The rest is the same for all, in
`gpt.finetune`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tensorlite as tl
from data.corpus import load_corpus
from data.errors import DataError
from data.loader import Batch, BatchError, Tokens, split_tokens
from data.paths import expand_path
from data.prepared import open_prepared, require_same_tokenizer
from data.tokenizer import CharTokenizer, Tokenizer, UnknownCharacterError
from gpt.errors import fail
from gpt.finetuning.classifier import Classifier, classes_of, confusion, describe_confusion, read_labelled
from gpt.finetuning.instructions import ResponseLoss, read_instructions, tokens_per_row
from gpt.finetuning.records import KINDS, read_records
from gpt.generation.chat_template import Template
from gpt.model import GPT, LanguageModel
from gpt.training.rows import IGNORE, Row, RowBatches, packed, padded
from gpt.training.trainer import EVALUATION, Trainer
from tensorlite.nn import functional as F
from tensorlite.random import make_generator

SPLIT = 100  # the stream of random numbers that decides which examples are for validation
WINDOWS = 200  # of a text, at most, to measure a loss on
ROWS = 12  # in an evaluation, for each of eval_iters


class Task:
    """One kind of finetuning, with its data.

    Attributes:
        model: what is trained; for some tasks it wraps the language model.
        train, val: what it learns from, and what it is measured on.
        summary: for people.
        unit: of what the loss is a mean.
        trainer: the kind of `Trainer` that knows the data.
        program: that uses the result.
    """

    model: LanguageModel
    train: Any
    val: Any
    summary: str
    unit = "token"
    trainer: type[Trainer] = Trainer
    program = "gpt.generate"

    def val_loss(self) -> float:
        """How well it goes now, on what was not learnt from."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what belongs to the task beside the weights."""

    def closing(self) -> str:
        """What is to be said at the end."""
        return ""

    def sample_prompt(self) -> str | None:
        """What the model shall go on from, to show what it has learnt; None if it does not write."""
        return ""


class TextTask(Task):
    """Go on with another text: a text file, a prepared folder, or a corpus with a name."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: str, val_fraction: float) -> None:
        self.model = model
        self.train, self.val = read_tokens(data, tokenizer, val_fraction)
        self.summary = f"{len(self.train):,} tokens of text, and {len(self.val):,} to validate with: {data}"

    def val_loss(self) -> float:
        return text_loss(self.model, self.val)


class RowTrainer(Trainer):
    """A trainer whose data are rows of their own lengths, not one long text."""

    steps_are_alike = False

    def _evaluation_batches(self, name: str) -> Iterator[Batch]:
        """Each row once, up to a number that has nothing to do with the batch size: then neither has the loss."""
        rows, at_once = self._batches(name, EVALUATION), self.config.batch_size
        chosen = rows.drawn(0, min(len(rows.rows), self.config.eval_iters * ROWS))
        return (padded(chosen[start : start + at_once]) for start in range(0, len(chosen), at_once))

    def _batches(self, name: str, stream: int) -> Any:
        rows: Any = self.tokens[name]
        seed = int(make_generator(self.config.seed, stream).integers(2**32))
        return RowBatches(rows, self.config.batch_size, seed, name)


class InstructTask(Task):
    """Answer: conversations in a .jsonl file."""

    trainer = RowTrainer
    unit = "token of a response"
    program = "gpt.chat"

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        data: str,
        val_fraction: float,
        seed: int,
        template: Template | None = None,
        packing: bool = False,
    ) -> None:
        self.template, self.tokenizer = template or Template(), tokenizer
        rows = read_instructions(data, tokenizer, model.config.block_size, self.template)
        self.train, self.val = split_rows(rows, val_fraction, seed, data)
        conversations, packs = len(self.train), ""
        if packing:  # what is validated with stays apart: the loss then means the same
            self.train = packed(self.train, model.config.block_size)
            packs = f" in {len(self.train):,} rows"
        self.model = ResponseLoss(model, tokens_per_row(self.train))
        cropped = sum(len(row) == model.config.block_size for row in rows)
        self.summary = f"{conversations:,} conversations{packs}, and {len(self.val):,} to validate with: {data}" + (
            f"; {cropped:,} fill the context of {model.config.block_size} tokens and may have lost their beginning" if cropped else ""
        )

    def val_loss(self) -> float:
        return rows_loss(self.model, self.val)

    def save(self, folder: Path) -> None:
        self.template.save(folder)

    def sample_prompt(self) -> str:
        row = self.val[0]
        return self.tokenizer.decode(row.x[: int(np.argmax(row.y != IGNORE)) + 1])


class ClassifyTask(Task):
    """Tell texts apart: a .jsonl or .csv file with texts and labels."""

    trainer = RowTrainer
    unit = "text"
    program = "gpt.classify"

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: str, val_fraction: float, seed: int, pooling: str) -> None:
        if not isinstance(model, GPT):
            fail("a bigram table knows one character at a time: to classify texts, use a checkpoint of a GPT.")
        labelled = read_labelled(data, tokenizer, model.config.block_size)
        self.train, self.val = split_rows(labelled.rows, val_fraction, seed, data)
        self.model = self.classifier = Classifier(model, labelled.labels, pooling)
        self.summary = (
            f"{len(self.train):,} texts with {len(labelled.labels)} labels ({', '.join(labelled.labels[:8])}), "
            f"and {len(self.val):,} to validate with: {data}"
            + (f"; {labelled.cropped:,} are cut to the first {model.config.block_size} tokens" if labelled.cropped else "")
        )

    def val_loss(self) -> float:
        return rows_loss(self.model, self.val)

    def save(self, folder: Path) -> None:
        self.classifier.save(folder)

    def closing(self) -> str:
        labels = self.classifier.labels
        return describe_confusion(confusion(classes_of(self.val), self.classifier.predict(self.val), labels), labels)

    def sample_prompt(self) -> None:
        return None


def guess_task(data: str) -> str:
    """text, instruct or classify, by what the file holds.

    Raises:
        RecordError: for a file of examples that is broken.
    """
    path = expand_path(data)
    if path.suffix not in KINDS or path.is_dir():
        return "text"
    return "classify" if "label" in read_records(path)[0].fields else "instruct"


def read_tokens(data: str | os.PathLike[str], tokenizer: Tokenizer, val_fraction: float) -> tuple[Tokens, Tokens]:
    """Both parts of a text in the ids of ``tokenizer``, which a prepared folder must have been made with.

    Raises:
        DataError: if it cannot be had, or the tokenizer does not know it.
    """
    path = expand_path(data)
    if path.is_dir():
        prepared = open_prepared(path)
        require_same_tokenizer(tokenizer, prepared.tokenizer, path)
        return prepared.train, prepared.val
    text = load_corpus(data).text
    try:
        ids = tokenizer.encode(text)
    except UnknownCharacterError as error:
        remedy = "Leave them out with --unknown skip, or use a checkpoint whose tokenizer knows them."
        raise DataError(f"in {data}: {error} {remedy}") from error
    return split_tokens(ids, val_fraction)


def split_rows(rows: Sequence[Row], val_fraction: float, seed: int, name: str) -> tuple[list[Row], list[Row]]:
    """Rows to learn from and rows to validate with, at random: a file may well be sorted by label.

    Raises:
        BatchError: if there are too few for both.
    """
    if len(rows) < 2:
        raise BatchError(f"{name} has {len(rows)} example: it takes at least two, one to learn from and one to validate with.")
    order = make_generator(seed, SPLIT).permutation(len(rows))
    held = min(max(1, round(len(rows) * val_fraction)), len(rows) - 1)
    return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def with_unknown(tokenizer: Tokenizer, policy: str) -> Tokenizer:
    """``tokenizer``, doing something else about characters that it never saw: "error", "skip" or "replace".

    Raises:
        TokenizerError: if it has nothing to replace them by.
    """
    return CharTokenizer(tokenizer.characters, policy) if isinstance(tokenizer, CharTokenizer) and policy != "error" else tokenizer


def text_loss(model: LanguageModel, tokens: Tokens, windows: int = WINDOWS, batch_size: int = 16) -> float:
    """Mean loss of the language model over windows that lie evenly in ``tokens``: the same ones every time.

    Raises:
        BatchError: if there is not one whole window.
    """
    T = min(model.config.block_size, len(tokens) - 1)
    if T < 1:
        raise BatchError("the text has not even two tokens to measure a loss on.")
    count = min(windows, (len(tokens) - 1) // T)
    starts = np.linspace(0, len(tokens) - 1 - T, count).astype(int)
    ids = [np.asarray(tokens[start : start + T + 1], np.int64) for start in starts]
    return rows_loss(model, [Row(window[:-1], window[1:]) for window in ids], batch_size)


def rows_loss(model: LanguageModel, rows: Sequence[Row], batch_size: int = 16) -> float:
    """Mean of -log p over all targets in ``rows``, in eval mode and off the tape."""
    device, mode = next(iter(model.parameters())).device, model.training
    model.eval()
    total = 0.0
    with tl.no_grad():
        for start in range(0, len(rows), batch_size):
            x, y = (tl.tensor(array, device=device) for array in padded(rows[start : start + batch_size]))
            logits, _ = model(x)
            total += F.cross_entropy(logits.reshape(-1, logits.shape[-1]), y.reshape(-1), ignore_index=IGNORE, reduction="sum").item()
    model.train(mode)
    return total / sum(row.asked for row in rows)
