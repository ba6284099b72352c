"""The figures: how well a model predicts a text, the last word of a passage, or which of several texts follows.

    perplexity      exp of the mean of -log p(token). It depends on the tokenizer: a model with longer tokens has fewer, harder ones.
    bits a byte     -log₂ p(text) / bytes of the text. Comparable between any two models
    cloze           the last word of a passage is right if each of its tokens is the most probable one
    choice          the choice with the largest log p(choice | context) is taken; or the largest log p a character, because a sum is
                    smaller the longer a choice is

A standard error says how far a figure would move with another sample of examples: of an accuracy a over n examples √(a (1 - a) / (n - 1)).
Tokens of one text depend on each other; there the windows are the sample, and the error of the mean loss is that of a ratio of sums.

Sources: Paperno et al. 2016, "LAMBADA"; Brown et al. 2020, "Language Models are Few-Shot Learners", for choices by sums and by length;
EleutherAI's lm-evaluation-harness, whose rules for contexts, ties and errors these are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.errors import DataError
from data.tokenizer import Tokenizer
from gpt.evaluation.examples import Passage, Question
from gpt.finetuning.records import RecordError, encode_texts
from gpt.generation.stream import start_ids
from gpt.model import LanguageModel
from gpt.training.rows import IGNORE, Row
from gpt.training.scoring import Score, score_rows

MOST_CONTEXT = 1024  # tokens of a window by default, where a model's own context is longer


@dataclass(frozen=True)
class Figure:
    """A number and its standard error; None where a single example gives none."""

    value: float
    error: float | None


@dataclass(frozen=True)
class Measurement:
    """What one task gives for one model.

    Attributes:
        task: its name.
        count: how many examples, or tokens of a text, there are.
        settings: what the figures depend on besides model and data.
        figures: by name.
        cropped: how many contexts were longer than the model's and lost their beginning.
    """

    task: str
    count: int
    figures: dict[str, Figure]
    settings: dict[str, Any] = field(default_factory=dict)
    cropped: int = 0


def measure_text(
    model: LanguageModel, tokenizer: Tokenizer, text: str, task: str = "text", context: int | None = None, stride: int | None = None
) -> Measurement:
    """How well ``model`` predicts every token of ``text``, each once.

    Args:
        context: the number of tokens in a window; by default the model's context, and at most `MOST_CONTEXT`.
        stride: how many new tokens each window predicts; by default half of the context. Only in the first window a token has fewer than
            context - stride tokens before it. The first token of all follows the one that begins a text.

    Raises:
        DataError: for an empty text, or characters that the tokenizer does not know.
        ValueError: for a context or a stride that cannot be.
    """
    T = min(model.config.block_size, MOST_CONTEXT) if context is None else context
    S = max(1, T // 2) if stride is None else stride
    if not 1 <= T <= model.config.block_size:
        raise ValueError(f"the context goes from 1 to {model.config.block_size:,} tokens, the model's own, got {T:,}.")
    if not 1 <= S <= T:
        raise ValueError(f"the stride goes from 1 to the context, {T:,} tokens, got {S:,}.")
    ids = np.asarray(tokenizer.encode(text), np.int64)
    if not ids.size:
        raise DataError(f"{task} has no tokens: there is nothing to predict.")
    size = len(tokenizer.decode(ids).encode())
    scores = score_rows(model, _windows(np.concatenate([start_ids(tokenizer), ids]), 1, T, S))
    losses, counts = np.array([-score.log_probs.sum() for score in scores]), np.array([len(score.log_probs) for score in scores])
    loss = losses.sum() / counts.sum()
    error = _error_of_ratio(losses, counts)
    bits = losses.sum() / math.log(2) / size
    figures = {
        "perplexity": _perplexity(loss, error),
        "bits a byte": Figure(bits, None if error is None else bits * error / loss),
    }
    return Measurement(task, len(ids), figures, {"context": T, "stride": S})


def measure_cloze(model: LanguageModel, tokenizer: Tokenizer, passages: Sequence[Passage], task: str = "cloze") -> Measurement:
    """How often ``model`` predicts the last word of a passage, and the perplexity of that word.

    Raises:
        RecordError: for characters that the tokenizer does not know.
    """
    scores, cropped = _score_continuations(model, tokenizer, [(one.line, one.before, one.word) for one in passages], task)
    losses = np.array([-score.log_probs.sum() for score in scores])
    figures = {
        "accuracy": _accuracy([bool(score.is_likeliest.all()) for score in scores]),
        "perplexity of the word": _perplexity(losses.mean(), _error_of_ratio(losses, np.ones(len(losses)))),
    }
    return Measurement(task, len(passages), figures, cropped=cropped)


def measure_choices(model: LanguageModel, tokenizer: Tokenizer, questions: Sequence[Question], task: str = "choice") -> Measurement:
    """How often ``model`` finds the right choice the most probable one, by the sum and by the mean a character.

    Raises:
        RecordError: as for `measure_cloze`.
    """
    texts = [(one.line, one.context, choice) for one in questions for choice in one.choices]
    found, cropped = _score_continuations(model, tokenizer, texts, task)
    scores = iter(found)
    by_sum, by_length = [], []
    for question in questions:
        sums = np.array([next(scores).log_probs.sum() for _ in question.choices])
        lengths = np.array([len(choice.lstrip()) or len(choice) for choice in question.choices])
        by_sum.append(bool(sums.argmax() == question.answer))
        by_length.append(bool((sums / lengths).argmax() == question.answer))
    figures = {"accuracy": _accuracy(by_sum), "accuracy by length": _accuracy(by_length)}
    return Measurement(task, len(questions), figures, cropped=cropped)


def _windows(ids: np.ndarray, first: int, context: int, stride: int) -> list[Row]:
    """Rows of at most ``context`` tokens in which each id from number ``first`` on is a target once.

    A window has ``stride`` new targets, the first one as many as it can hold.
    """
    rows, known, last = [], first - 1, len(ids) - 1
    while known < last:
        end = min(last, max(known + stride, context))
        begin = max(0, end - context)
        y = ids[begin + 1 : end + 1].copy()
        y[: max(0, known - begin)] = IGNORE
        rows.append(Row(ids[begin:end], y))
        known = end
    return rows


def _score_continuations(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[tuple[int, str, str]], source: str | os.PathLike[str]
) -> tuple[list[Score], int]:
    """The scores of what follows, of (line, context, continuation), and how many contexts have lost their beginning.

    Both are encoded together, as they would be read. What is predicted begins with the first token that the context alone does not have:
    where a token reaches across the border, the whole token. A continuation that is longer than the model's context is read in windows.
    """
    contexts = encode_texts([(line, before) for line, before, _ in texts], tokenizer, source)
    wholes = encode_texts([(line, before + after) for line, before, after in texts], tokenizer, source)
    rows, counts, cropped, T = [], [], 0, model.config.block_size
    for (line, _, after), context, ids in zip(texts, contexts, wholes, strict=True):
        shared = min(len(context), len(ids))
        different = np.flatnonzero(context[:shared] != ids[:shared])
        begin = int(different[0]) if different.size else shared
        if begin == len(ids):
            raise RecordError(f"line {line} of {source}: of {after!r} the tokenizer leaves nothing to predict.")
        if begin == 0:
            ids, begin = np.concatenate([start_ids(tokenizer), ids]), 1
        windows = _windows(ids, begin, T, T if len(ids) - begin <= T else max(1, T // 2))
        rows += windows
        counts.append(len(windows))
        cropped += len(ids) - 1 > T
    scores = iter(score_rows(model, rows))
    joined = [[next(scores) for _ in range(count)] for count in counts]
    return [Score(*(np.concatenate(parts) for parts in zip(*several, strict=True))) for several in joined], cropped


def _accuracy(right: Sequence[bool]) -> Figure:
    n, accuracy = len(right), float(np.mean(right))
    return Figure(accuracy, math.sqrt(accuracy * (1 - accuracy) / (n - 1)) if n > 1 else None)


def _perplexity(loss: float, error: float | None) -> Figure:
    """exp(loss), and its standard error from that of the loss."""
    perplexity = math.exp(loss) if loss < 700 else math.inf  # a model that gives a token no chance, or is damaged
    return Figure(perplexity, None if error is None else perplexity * error)


def _error_of_ratio(sums: np.ndarray, counts: np.ndarray) -> float | None:
    """The standard error of sums.sum() / counts.sum(), where each pair is one draw. Source: Cochran 1977, section 2.11."""
    n = len(sums)
    if n < 2:
        return None
    residuals = sums - counts * (sums.sum() / counts.sum())
    return math.sqrt(float(residuals @ residuals) / (n * (n - 1))) / float(counts.mean())
