"""Classification: what a GPT has learnt about text, asked for one label instead of the next token.

A new head, a single linear layer, reads what the last layer norm gives and scores the classes; the language model's own head is not used
and not changed. In a causal model position t knows the tokens up to t, so each position can say what it thinks *so far*, and
the label is asked of the last token of each text:

    x    a _ g o o d _ f i l m     ·  ·     pads on the right, which nothing before them sees
    y    - - - - - - - - - - 1     -  -     the label where the text ends, IGNORE everywhere else

Two ways to gather what the positions know:

    last    the last token's vector alone. It has seen everything, and attention can bring to it whatever matters. The GPT papers do this.
    mean    the mean over all positions up to here, a running mean. It need not be brought: every position adds what it noticed.

``mean`` is the default. A pretrained model's last vector is made to predict the next character, and attention has to be taught to bring
the topic of the text there; in the mean it is there from the start. Told to tell two authors apart by 64 characters, the preset ``tiny``
got 79 % right with the mean and 68 % with the last token while all but the head and the last norm was frozen. With everything trained both
got 89 %.

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
from gpt.checkpoints.model_folder import CheckpointError, load_model
from gpt.checkpoints.weights import WeightsFile, is_broken, sealed
from gpt.config import require_name
from gpt.errors import fail
from gpt.finetuning.records import RecordError, encode_all, read_records, text_of
from gpt.model import GPT, LanguageModel
from gpt.training.rows import IGNORE, Row, padded
from tensorlite import Tensor, nn
from tensorlite.backend import Device
from tensorlite.nn import functional as F

POOLINGS = ("mean", "last")
HEAD = "classifier.safetensors"
METADATA = "classifier"  # our entry in its metadata


class Classifier(LanguageModel):
    """Scores for each label, at every position of a text.

    Args:
        body: is trained along, unless it is frozen.
        labels: their names; a place in this list is a class.

    Raises:
        ValueError: for fewer than two labels, or an unknown pooling.
    """

    def __init__(self, body: GPT, labels: Sequence[str], pooling: str = "mean") -> None:
        super().__init__(body.config)
        require_name("pooling", pooling, POOLINGS)
        if len(labels) < 2:
            raise ValueError(f"to tell texts apart takes at least two labels, got {', '.join(labels) or 'none'}.")
        self.body, self.labels, self.pooling = body, list(labels), pooling
        weight = body.wte.weight
        self.score = nn.Linear(self.config.n_embd, len(labels), device=weight.device, dtype=weight.dtype)
        nn.init.normal_(self.score.weight, std=0.02)
        assert self.score.bias is not None
        nn.init.zeros_(self.score.bias)

    def logits(self, idx: Tensor) -> Tensor:
        """What each position thinks of the text so far: (B, T) -> (B, T, classes)."""
        x = self.body.features(idx)  # (B, T, C)
        if self.pooling == "mean":
            lengths = tl.arange(1, idx.shape[1] + 1, dtype=x.dtype, device=x.device)  # (T,)
            x = x.cumsum(1) / lengths.reshape(-1, 1)
        return self.score(x)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The scores, and with targets the mean of -log p(label); ``targets`` is IGNORE wherever no label is asked for."""
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
        write_atomically(Path(folder) / HEAD, safetensors.numpy.save(head, {METADATA: json.dumps(sealed(metadata, head))}))

    def predict(self, rows: Sequence[Row], batch_size: int = 32) -> np.ndarray:
        """The likeliest class of each row."""
        return self._scores(rows, batch_size).argmax(axis=-1)

    def probabilities(self, rows: Sequence[Row], batch_size: int = 32) -> np.ndarray:
        """How likely each class is for each row: (rows, classes), and each row adds up to 1."""
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
                scores = self.logits(tl.tensor(padded(several)[0], device=device)).numpy()
                found.append(scores[np.arange(len(several)), [len(row) - 1 for row in several]])
        self.train(mode)
        return np.concatenate(found)


def is_classifier(path: str | os.PathLike[str]) -> bool:
    """Whether ``path``, a folder or the weights in it, is what `gpt.finetune --task classify` has left."""
    return _head_beside(path).is_file()


def refuse_classifier(path: str | os.PathLike[str]) -> None:
    """Its body has unlearnt to write: say what it is for.

    Raises:
        UserError: if ``path`` is a classifier.
    """
    if is_classifier(path):
        fail(f'{path} was taught to tell texts apart, not to write: python -m gpt.classify --checkpoint {path} "TEXT".')


def _head_beside(path: str | os.PathLike[str]) -> Path:
    folder = expand_path(path)
    return (folder.parent if folder.suffix == ".safetensors" else folder) / HEAD


def load_classifier(folder: str | os.PathLike[str], device: Device | str = "numpy") -> tuple[Classifier, Tokenizer]:
    """The classifier that `gpt.finetune` has left in ``folder``, in eval mode.

    Raises:
        CheckpointError: if there is none, or it is damaged.
    """
    file = _head_beside(folder)
    if expand_path(folder).is_dir() and not file.exists():
        raise CheckpointError(f"{folder} has no {HEAD}: its model was not taught to classify; python -m gpt.finetune --task classify does.")
    body, tokenizer, _ = load_model(folder, device)
    if not isinstance(body, GPT):
        raise CheckpointError(f"the model in {folder} is no GPT, and cannot classify.")
    try:
        stored = WeightsFile(file)
        metadata, weights = json.loads(stored.metadata[METADATA]), stored.read_all()
        assert isinstance(body, GPT)
        labels = metadata["labels"]
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels are a list of words, got {labels!r}")
        if stored.entries["weight"].shape != (len(labels), body.config.n_embd):
            raise ValueError(f"{len(labels):,} labels do not fit weights of {stored.entries['weight'].shape}")
        classifier = Classifier(body, labels, metadata["pooling"])
        classifier.score.load_state_dict(weights)
        if is_broken(metadata, weights):
            raise ValueError("it does not hold what was written")
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {HEAD}: its model was not taught to classify.") from None
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, AssertionError, RecursionError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"the classifier in {file} cannot be read ({error}).") from error
    classifier.eval()
    return classifier, tokenizer


@dataclass(frozen=True)
class Labelled:
    """Texts and their classes, ready for a `Classifier`.

    Attributes:
        cropped: how many texts were longer than block_size and have lost their end.
    """

    rows: list[Row]
    labels: list[str]
    cropped: int


def classes_of(rows: Sequence[Row]) -> np.ndarray:
    """The class of each row: its only target."""
    return np.array([row.y[-1] for row in rows])


def read_labelled(
    source: str | os.PathLike[str],
    tokenizer: Tokenizer,
    block_size: int,
    text_field: str = "text",
    label_field: str = "label",
) -> Labelled:
    """The texts in a .jsonl or .csv file, each with a label: a word or a whole number.

    Raises:
        RecordError: naming the line without a text or a label, or what the tokenizer does not know, or if there is only one label.
    """
    records = read_records(source)
    texts = [(record.line, text_of(record, text_field, source)) for record in records]
    named = []
    for record in records:
        label = record.fields.get(label_field)
        if not isinstance(label, str | int) or label == "":
            there = ", ".join(repr(name) for name in record.fields)
            raise RecordError(
                f"line {record.line} of {source} has no label: {label_field!r} must be a word or a whole number, "
                + (f"got {label!r}." if label_field in record.fields else f"but there is only {there}.")
            )
        named.append(str(label))
    labels = sorted(set(named))
    if len(labels) < 2:
        raise RecordError(f"every text in {source} has the label {labels[0]!r}: there is nothing to tell apart.")
    rows, cropped = [], 0
    for ids, label in zip(encode_all(texts, tokenizer, source), named, strict=True):
        cropped += len(ids) > block_size
        rows.append(row_of(ids, block_size, labels.index(label)))
    return Labelled(rows, labels, cropped)


def row_of(ids: np.ndarray, block_size: int, label: int = IGNORE) -> Row:
    """A text as a row: its first block_size tokens, and the label as the target of the last."""
    x = ids[:block_size] if len(ids) else np.zeros(1, np.int64)  # nothing is left where all characters are unknown and skipped
    y = np.full(len(x), IGNORE)
    y[-1] = label
    return Row(x, y)


def confusion(truth: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """How often a text of one class (row) was taken for another (column): (classes, classes)."""
    table = np.zeros((len(labels), len(labels)), int)
    np.add.at(table, (truth, predicted), 1)
    return table


def describe_confusion(table: np.ndarray, labels: Sequence[str], texts: str = "") -> str:
    """Accuracy, what guessing the commonest label would give, and the table itself.

    Args:
        texts: which ones; without a word, those that were kept for validation.
    """
    total = int(table.sum())
    accuracy, guess = np.trace(table) / total, table.sum(axis=1).max() / total
    width = max(6, *(len(label) for label in labels)) + 2
    head = "is \\ taken for"
    first = max(len(head), *(len(label) for label in labels))
    lines = [head.ljust(first) + "".join(label.rjust(width) for label in labels) + "found".rjust(width)]
    for label, row, right in zip(labels, table, np.diag(table), strict=True):
        found = f"{right / row.sum():.0%}" if row.sum() else "-"
        lines.append(label.ljust(first) + "".join(f"{count:>{width},}" for count in row) + found.rjust(width))
    texts = texts or f"{total:,} texts that were not learnt from"
    sentence = f"accuracy {accuracy:.1%} on {texts}; always the commonest label: {guess:.1%}"
    return "\n".join([sentence, "", *lines])
