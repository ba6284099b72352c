"""Classification: a GPT with a head that scores labels instead of tokens.

The head is a single linear layer on the output of the last layer norm. The language model's own head is not used and not changed. In a
causal model position t sees the tokens up to t, so every position scores the text *so far*; the target is at the last token of each text:

    x    a _ g o o d _ f i l m     ·  ·     padding on the right, which no earlier position sees
    y    - - - - - - - - - - 1     -  -     the label where the text ends, IGNORE everywhere else

Two ways to pool the vectors of the positions:

    last    the vector at the last token. It sees the whole text, and attention can collect there whatever matters. The GPT papers do this.
    mean    the running mean over all positions so far. Every position contributes directly.

``mean`` is the default. In a pretrained model the last vector predicts the next character, and attention must first learn to collect the
topic of the text there; the mean contains it from the start. On a task of telling two authors apart by 64 characters, the preset ``tiny``
was right in 79 % of the texts with the mean and in 68 % with the last token, while all but the head and the last norm was frozen. With
everything trained both reached 89 %.

Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2, for ``last``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

import tensorlite as tl
from data.files import write_atomically
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.model_folder import load_model_folder
from gpt.checkpoints.weights import CheckpointError, WeightsFile, checksum_differs, with_checksum
from gpt.config import require_name
from gpt.errors import fail
from gpt.finetuning.records import RecordError, encode_texts, read_records, text_field
from gpt.model import GPT, LanguageModel
from gpt.training.rows import IGNORE, Row, pad_rows
from tensorlite import Tensor, nn
from tensorlite.backend import Device
from tensorlite.nn import functional as F

POOLINGS = ("mean", "last")
HEAD = "classifier.safetensors"
METADATA = "classifier"  # our entry in its metadata


class Classifier(LanguageModel):
    """Scores for each label, at every position of a text.

    Args:
        body: the model below the head; it is trained as well, unless it is frozen.
        labels: the names of the classes.

    Raises:
        ValueError: for fewer than two labels, or an unknown pooling.
    """

    def __init__(self, body: GPT, labels: Sequence[str], pooling: str = "mean") -> None:
        super().__init__(body.config)
        require_name("pooling", pooling, POOLINGS)
        if len(labels) < 2:
            raise ValueError(f"classification needs at least two labels, got {', '.join(labels) or 'none'}.")
        self.body, self.labels, self.pooling = body, list(labels), pooling
        weight = body.wte.weight
        self.score = nn.Linear(self.config.n_embd, len(labels), device=weight.device, dtype=weight.dtype)
        nn.init.normal_(self.score.weight, std=0.02)
        assert self.score.bias is not None
        nn.init.zeros_(self.score.bias)

    def logits(self, idx: Tensor) -> Tensor:
        """The scores of the text up to each position: (B, T) -> (B, T, classes)."""
        x = self.body.features(idx)  # (B, T, C)
        if self.pooling == "mean":
            lengths = tl.arange(1, idx.shape[1] + 1, dtype=x.dtype, device=x.device)  # (T,)
            x = x.cumsum(1) / lengths.reshape(-1, 1)
        return self.score(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The scores; and, given targets, the mean of -log p(label). ``targets`` is IGNORE wherever there is no label."""
        logits = self.logits(idx)
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.reshape(-1, len(self.labels)), targets.reshape(-1), ignore_index=IGNORE)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write head, labels and pooling beside the body's weights; `load_classifier` reads them.

        Raises:
            OSError: if they cannot be written.
        """
        head = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in self.score.state_dict().items()}
        metadata = {"labels": self.labels, "pooling": self.pooling}
        write_atomically(Path(folder) / HEAD, safetensors.numpy.save(head, {METADATA: json.dumps(with_checksum(metadata, head))}))

    def predict(self, rows: Sequence[Row], batch_size: int = 32) -> np.ndarray:
        """The most probable class of each row."""
        return self._scores(rows, batch_size).argmax(axis=-1)

    def probabilities(self, rows: Sequence[Row], batch_size: int = 32) -> np.ndarray:
        """The probability of each class for each row: (rows, classes), with sum 1 over the classes."""
        scores = self._scores(rows, batch_size).astype(float)
        odds = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)

    def _scores(self, rows: Sequence[Row], batch_size: int) -> np.ndarray:
        """(rows, classes), in eval mode and off the tape."""
        mode, device = self.training, self.score.weight.device
        self.eval()
        found = []
        with tl.no_grad():
            for start in range(0, len(rows), batch_size):
                several = rows[start : start + batch_size]
                scores = self.logits(tl.tensor(pad_rows(several)[0], device=device)).numpy()
                found.append(scores[np.arange(len(several)), [len(row) - 1 for row in several]])
        self.train(mode)
        return np.concatenate(found)


def is_classifier(path: str | os.PathLike[str]) -> bool:
    """Whether ``path``, a folder or the weights in it, is a classifier that `gpt.finetune --task classify` has written."""
    return _head_beside(path).is_file()


def refuse_classifier(path: str | os.PathLike[str]) -> None:
    """Raise UserError if ``path`` is a classifier: its body no longer generates text."""
    if is_classifier(path):
        fail(f'{path} is a classifier and generates no text: python -m gpt.classify --checkpoint {path} "TEXT".')


def _head_beside(path: str | os.PathLike[str]) -> Path:
    folder = expand_path(path)
    return (folder.parent if folder.suffix == ".safetensors" else folder) / HEAD


def load_classifier(folder: str | os.PathLike[str], device: Device | str = "numpy") -> tuple[Classifier, Tokenizer]:
    """The classifier in ``folder``, in eval mode.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    file = _head_beside(folder)
    if expand_path(folder).is_dir() and not file.exists():
        raise CheckpointError(f"{folder} has no {HEAD}: its model is no classifier; python -m gpt.finetune --task classify trains one.")
    body, tokenizer, _ = load_model_folder(folder, device)
    if not isinstance(body, GPT):
        raise CheckpointError(f"the model in {folder} is no GPT, and cannot classify.")
    try:
        stored = WeightsFile(file)
        metadata, weights = json.loads(stored.metadata[METADATA]), stored.read_all()
        assert isinstance(body, GPT)
        labels = metadata["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels must be a list of words, got {labels!r}")
        if stored.entries["weight"].shape != (len(labels), body.config.n_embd):
            raise ValueError(f"{len(labels):,} labels do not fit weights of {stored.entries['weight'].shape}")
        classifier = Classifier(body, labels, metadata["pooling"])
        classifier.score.load_state_dict(weights)
        if checksum_differs(metadata, weights):
            raise ValueError("its checksum is not that of its contents")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {HEAD}: its model is no classifier.") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the classifier in {file} cannot be read ({error}).") from error
    classifier.eval()
    return classifier, tokenizer


@dataclass(frozen=True)
class LabelledTexts:
    """Texts and their classes, as rows for a `Classifier`.

    Attributes:
        cropped: how many texts were longer than block_size and were cut.
    """

    rows: list[Row]
    labels: list[str]
    cropped: int


def row_classes(rows: Sequence[Row]) -> np.ndarray:
    """The class of each row: its only target."""
    return np.array([row.y[-1] for row in rows])


def read_labelled_texts(
    source: str | os.PathLike[str],
    tokenizer: Tokenizer,
    block_size: int,
    text_name: str = "text",
    label_name: str = "label",
) -> LabelledTexts:
    """The texts in a .jsonl or .csv file, each with a label: a word or a whole number.

    Raises:
        RecordError: naming the line without a text or a label, or what the tokenizer does not know, or if there is only one label.
    """
    records = read_records(source)
    texts = [(record.line, text_field(record, text_name, source)) for record in records]
    named = []
    for record in records:
        label = record.fields.get(label_name)
        if not isinstance(label, str | int) or label == "":
            fields = ", ".join(repr(name) for name in record.fields)
            raise RecordError(
                f"line {record.line} of {source} has no label: {label_name!r} must be a word or a whole number, "
                + (f"got {label!r}." if label_name in record.fields else f"but there is only {fields}.")
            )
        named.append(str(label))
    labels = sorted(set(named))
    if len(labels) < 2:
        raise RecordError(f"every text in {source} has the label {labels[0]!r}: there is nothing to classify.")
    rows, cropped = [], 0
    for ids, label in zip(encode_texts(texts, tokenizer, source), named, strict=True):
        cropped += len(ids) > block_size
        rows.append(text_row(ids, block_size, labels.index(label)))
    return LabelledTexts(rows, labels, cropped)


def text_row(ids: np.ndarray, block_size: int, label: int = IGNORE) -> Row:
    """A text as a row: its first block_size tokens, and the label as the target of the last."""
    x = ids[:block_size] if len(ids) else np.zeros(1, np.int64)  # empty if all characters are unknown and skipped
    y = np.full(len(x), IGNORE)
    y[-1] = label
    return Row(x, y)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The number of texts of each class (row) for which each class (column) was predicted: (classes, classes)."""
    table = np.zeros((len(labels), len(labels)), int)
    np.add.at(table, (truth, predicted), 1)
    return table


def format_confusion(table: np.ndarray, labels: Sequence[str], texts: str = "") -> str:
    """The accuracy, the accuracy of always guessing the most frequent label, and the table.

    Args:
        texts: which texts they are; if empty, those held out for validation.
    """
    total = int(table.sum())
    accuracy, guess = np.trace(table) / total, table.sum(axis=1).max() / total
    width = max(6, *(len(label) for label in labels)) + 2
    head = "true \\ predicted"
    first = max(len(head), *(len(label) for label in labels))
    lines = [head.ljust(first) + "".join(label.rjust(width) for label in labels) + "recall".rjust(width)]
    for label, row, right in zip(labels, table, np.diag(table), strict=True):
        recall = f"{right / row.sum():.0%}" if row.sum() else "-"
        lines.append(label.ljust(first) + "".join(f"{count:>{width},}" for count in row) + recall.rjust(width))
    texts = texts or f"{total:,} texts held out for validation"
    sentence = f"accuracy {accuracy:.1%} on {texts}; always the most frequent label: {guess:.1%}"
    return "\n".join([sentence, "", *lines])
