"""The three tasks of finetuning: continue another text, answer, or classify.

A task reads its data, says which model is trained on it, and measures the loss. Everything else is the same for all tasks, and is in
`gpt.finetuning.run`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.corpus import load_corpus
from data.errors import DataError
from data.loader import Batch, BatchError, Tokens, split_tokens
from data.paths import expand_path
from data.prepared import open_prepared, require_same_tokenizer
from data.tokenizer import CharTokenizer, Tokenizer, UnknownCharacterError
from gpt.config import RandomStream
from gpt.errors import fail
from gpt.finetuning.classifier import Classifier, confusion_matrix, format_confusion, read_labelled_texts, row_classes
from gpt.finetuning.instructions import ResponseLoss, read_instructions, tokens_per_row
from gpt.finetuning.records import KINDS, read_records
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.jinja_template import JinjaTemplate
from gpt.model import GPT, LanguageModel
from gpt.training.rows import IGNORE, Row, RowBatches, pack_rows, pad_rows
from gpt.training.scoring import score_rows
from gpt.training.trainer import Trainer
from tensorlite.parallel import World
from tensorlite.random import make_generator

MAX_WINDOWS, MAX_TOKENS = 200, 2**15  # of a text, to measure a loss on
ROWS_PER_ITER = 12  # rows in an evaluation for each of eval_iters


class Task:
    """One kind of finetuning, with its data.

    Attributes:
        model: the model that is trained; for some tasks it wraps the language model.
        train, val: the data for training and for validation.
        summary: the data in words.
        unit: what the loss is a mean over.
        trainer: the subclass of `Trainer` for this kind of data.
        program: the program that uses the result.
    """

    model: LanguageModel
    train: Any
    val: Any
    summary: str
    unit = "token"
    trainer: type[Trainer] = Trainer
    program = "gpt.generate"

    def val_loss(self, world: World) -> float:
        """The loss on the validation data, which the ranks of ``world`` compute together."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what belongs to the task beside the weights."""

    def final_report(self) -> str:
        """What to print at the end."""
        return ""

    def sample_prompt(self) -> str | None:
        """A prompt to show what the model has learnt; None if it does not generate text."""
        return ""


class TextTask(Task):
    """Continue another text: a text file, a prepared folder, or a corpus with a name."""

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: str, val_fraction: float) -> None:
        self.model = model
        self.train, self.val = read_tokens(data, tokenizer, val_fraction)
        self.summary = f"{len(self.train):,} tokens of text, and {len(self.val):,} to validate with: {data}"

    def val_loss(self, world: World) -> float:
        return text_loss(self.model, self.val, world=world)


class RowTrainer(Trainer):
    """A trainer whose data are rows of different lengths, not one long text."""

    batches_have_one_shape = False

    def _evaluation_batches(self, name: str) -> Iterator[Batch]:
        """Each row at most once. The number of rows does not depend on the batch size, so the loss does not either."""
        rows, batch_size = self._make_batches(name, RandomStream.EVALUATION), self.config.batch_size
        chosen = rows.rows_from(0, min(len(rows.rows), self.config.eval_iters * ROWS_PER_ITER))
        return (pad_rows(chosen[start : start + batch_size]) for start in range(0, len(chosen), batch_size))

    def _make_batches(self, name: str, stream: RandomStream) -> Any:
        rows: Any = self.tokens[name]
        seed = int(make_generator(self.config.seed, stream).integers(2**32))
        return RowBatches(rows, self.config.batch_size, seed, name)


class InstructTask(Task):
    """Answer, as in the conversations of a .jsonl file."""

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
        template: ChatTemplate | JinjaTemplate | None = None,
        packing: bool = False,
    ) -> None:
        self.template = template or ChatTemplate()
        self.tokenizer = self.template.tokenizer(tokenizer) if isinstance(self.template, JinjaTemplate) else tokenizer
        rows = read_instructions(data, self.tokenizer, model.config.block_size, self.template)
        self.train, self.val = split_rows(rows, val_fraction, seed, data)
        conversations, packs = len(self.train), ""
        if packing:  # not the validation rows, so that their loss means the same
            self.train = pack_rows(self.train, model.config.block_size)
            packs = f" in {len(self.train):,} rows"
        self.language_model, self.model = model, ResponseLoss(model, tokens_per_row(self.train))
        cropped = sum(len(row) == model.config.block_size for row in rows)
        self.summary = f"{conversations:,} conversations{packs}, and {len(self.val):,} to validate with: {data}" + (
            f"; {cropped:,} fill the context of {model.config.block_size} tokens and may have lost their beginning" if cropped else ""
        )

    def val_loss(self, world: World) -> float:
        return rows_loss(self.language_model, self.val, world)

    def save(self, folder: Path) -> None:
        self.template.save(folder)

    def sample_prompt(self) -> str:
        row = self.val[0]
        return self.tokenizer.decode(row.x[: int(np.argmax(row.y != IGNORE)) + 1])


class ClassifyTask(Task):
    """Classify, as in the texts and labels of a .jsonl or .csv file."""

    trainer = RowTrainer
    unit = "text"
    program = "gpt.classify"

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer, data: str, val_fraction: float, seed: int, pooling: str) -> None:
        if not isinstance(model, GPT):
            fail("a bigram table sees one character at a time: to classify texts, use a checkpoint of a GPT.")
        labelled = read_labelled_texts(data, tokenizer, model.config.block_size)
        self.train, self.val = split_rows(labelled.rows, val_fraction, seed, data)
        self.model = self.classifier = Classifier(model, labelled.labels, pooling)
        self.summary = (
            f"{len(self.train):,} texts with {len(labelled.labels)} labels ({', '.join(labelled.labels[:8])}), "
            f"and {len(self.val):,} to validate with: {data}"
            + (f"; {labelled.cropped:,} are cut to the first {model.config.block_size} tokens" if labelled.cropped else "")
        )

    def val_loss(self, world: World) -> float:
        return rows_loss(self.model, self.val, world)

    def save(self, folder: Path) -> None:
        self.classifier.save(folder)

    def final_report(self) -> str:
        labels = self.classifier.labels
        return format_confusion(confusion_matrix(row_classes(self.val), self.classifier.predict(self.val), labels), labels)

    def sample_prompt(self) -> None:
        return None


def guess_task(data: str) -> str:
    """The task that the content of a file suggests: text, instruct or classify.

    Raises:
        RecordError: for a file of examples that is broken.
    """
    path = expand_path(data)
    if path.suffix not in KINDS or path.is_dir():
        return "text"
    return "classify" if "label" in read_records(path)[0].fields else "instruct"


def read_tokens(data: str | os.PathLike[str], tokenizer: Tokenizer, val_fraction: float) -> tuple[Tokens, Tokens]:
    """The training and the validation part of a text, in the ids of ``tokenizer``.

    Raises:
        DataError: if it cannot be read, if the tokenizer does not know a character, or if a prepared folder has another tokenizer.
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
    """Rows for training and rows for validation, chosen at random, because a file may be sorted by label.

    Raises:
        BatchError: if there are too few for both.
    """
    if len(rows) < 2:
        raise BatchError(f"{name} has {len(rows)} example: at least two are needed, one for training and one for validation.")
    order = make_generator(seed, RandomStream.SPLIT).permutation(len(rows))
    held = min(max(1, round(len(rows) * val_fraction)), len(rows) - 1)
    return [rows[i] for i in order[held:]], [rows[i] for i in order[:held]]


def with_unknown_policy(tokenizer: Tokenizer, policy: str) -> Tokenizer:
    """``tokenizer`` with another policy for characters that it does not know: "error", "skip" or "replace".

    Raises:
        TokenizerError: if it has no character to replace them by.
    """
    return CharTokenizer(tokenizer.characters, policy) if isinstance(tokenizer, CharTokenizer) and policy != "error" else tokenizer


def text_loss(model: LanguageModel, tokens: Tokens, windows: int = MAX_WINDOWS, world: World | None = None) -> float:
    """Mean loss of the language model over evenly spaced windows of ``tokens``, the same every time.

    Raises:
        BatchError: if there is not one whole window.
    """
    T = min(model.config.block_size, len(tokens) - 1)
    if T < 1:
        raise BatchError("the text has fewer than two tokens, so there is no loss to measure.")
    count = min(windows, (len(tokens) - 1) // T, max(1, MAX_TOKENS // T))
    starts = np.linspace(0, len(tokens) - 1 - T, count).astype(int)
    ids = [np.asarray(tokens[start : start + T + 1], np.int64) for start in starts]
    return rows_loss(model, [Row(window[:-1], window[1:]) for window in ids], world)


def rows_loss(model: LanguageModel, rows: Sequence[Row], world: World | None = None) -> float:
    """Mean of -log p over all targets in ``rows``, in eval mode and off the tape."""
    return -math.fsum(score.log_probs.sum() for score in score_rows(model, rows, world=world)) / sum(row.num_targets for row in rows)
