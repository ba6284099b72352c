"""Passages and questions from a .jsonl file. Errors name the line.

    a passage       {"text": "… he put the key back into his pocket"}
    a question      {"context": "2 + 2 is", "choices": ["4.", "5."], "answer": 0}
    HellaSwag's     {"ctx": "A man sits down.", "endings": ["He eats.", "He flies."], "label": 0}
    ARC's           {"question": "What is ice?", "choices": {"text": ["Water", "Air"], "label": ["A", "B"]}, "answerKey": "A"}

A passage has the shape of LAMBADA's. A question of ARC is read as ``Question: What is ice?``, a new line, and ``Answer:``. Between a
context and a choice there is a space, unless one of them has white space there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from data.paths import expand_path
from gpt.config import closest_name
from gpt.finetuning.records import Record, RecordError, read_records, text_field

_LAST_WORD = re.compile(r"(.*\S)(\s+\S+)\s*", re.DOTALL)
_FIELDS = {  # of each shape those that are used, and those of the published files that are not
    "passage": ({"text"}, {"domain", "id"}),
    "question": ({"context", "choices", "answer"}, {"id"}),
    "HellaSwag": ({"ctx", "endings", "label"}, {"ind", "activity_label", "ctx_a", "ctx_b", "split", "split_type", "source_id"}),
    "ARC": ({"question", "choices", "answerKey"}, {"id"}),
}


@dataclass(frozen=True)
class Passage:
    """A text, and its last word with the white space before it."""

    line: int
    before: str
    word: str


@dataclass(frozen=True)
class Question:
    """A context, what may follow it (with the space between them), and which of these is right."""

    line: int
    context: str
    choices: list[str]
    answer: int


def read_passages(source: str | os.PathLike[str]) -> list[Passage]:
    """The passages in a .jsonl file.

    Raises:
        RecordError: naming the line that is none.
    """
    passages = []
    for record in _read(source):
        _require_fields(record, "passage", source)
        passages.append(passage_from(text_field(record, "text", source), record.line, source))
    return passages


def read_questions(source: str | os.PathLike[str]) -> list[Question]:
    """The questions in a .jsonl file, in any of the three shapes.

    Raises:
        RecordError: naming the line that is none.
    """
    return [_question(record, source) for record in _read(source)]


def passage_from(text: str, line: int, source: str | os.PathLike[str]) -> Passage:
    """A text, cut before its last word.

    Raises:
        RecordError: if it has a single word.
    """
    found = _LAST_WORD.fullmatch(text)
    if not found:
        raise RecordError(f"line {line} of {source} has a single word, {text.strip()[:40]!r}: there is nothing to predict it from.")
    return Passage(line, found[1], found[2])


def question_from(context: str, choices: list[str], answer: int, line: int) -> Question:
    """A question; a space is put between context and choice where neither has white space."""
    spaced = [choice if not context or context[-1].isspace() or choice[0].isspace() else f" {choice}" for choice in choices]
    return Question(line, context, spaced, answer)


def _read(source: str | os.PathLike[str]) -> list[Record]:
    path = expand_path(source)
    if path.suffix != ".jsonl":
        raise RecordError(f"{path} is no .jsonl file: examples to evaluate on are JSON objects, one a line.")
    return read_records(path)


def _question(record: Record, source: str | os.PathLike[str]) -> Question:
    fields, where = record.fields, f"line {record.line} of {source}"
    shape = "HellaSwag" if "endings" in fields else "ARC" if "question" in fields else "question"
    if shape == "ARC" and isinstance(fields["question"], dict):  # as AI2's own files have it
        stem, listed = fields["question"].get("stem"), fields["question"].get("choices")
        options = listed if isinstance(listed, list) and all(isinstance(option, dict) for option in listed) else []
        given = {name: [option.get(name) for option in options] for name in ("text", "label")}
        record = Record(record.line, {**fields, "question": stem, "choices": given})
        fields = record.fields
    _require_fields(record, shape, source)
    if shape == "ARC":
        context = f"Question: {text_field(record, 'question', source)}\nAnswer:"
        table = fields["choices"]
        if not isinstance(table, dict) or not isinstance(table.get("label"), list):
            raise RecordError(f"{where}: 'choices' must have two lists, 'text' and 'label', got {table!r}.")
        choices = _choices(table.get("text"), where)
        return question_from(context, choices, _answer(fields["answerKey"], table["label"], len(choices), where), record.line)
    context_name, choices_name, answer_name = ("ctx", "endings", "label") if shape == "HellaSwag" else ("context", "choices", "answer")
    choices, answer = _choices(fields[choices_name], where), fields[answer_name]
    if shape == "HellaSwag" and isinstance(answer, str) and answer.isdecimal():
        answer = int(answer)
    context = fields[context_name]
    if not isinstance(context, str):
        raise RecordError(f"{where}: {context_name!r} must be a text, got {context!r}.")
    return question_from(context, choices, _answer(answer, range(len(choices)), len(choices), where), record.line)


def _choices(choices: Any, where: str) -> list[str]:
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise RecordError(f"{where}: the choices must be a list of texts that are not empty, got {choices!r}.")
    if len(choices) < 2:
        raise RecordError(f"{where} has {'one choice' if choices else 'no choices'}: at least two are needed.")
    return choices


def _answer(answer: Any, labels: Any, count: int, where: str) -> int:
    """The number of the right choice."""
    if answer is None or answer == "":
        raise RecordError(f"{where} has no answer: a file of questions for a competition may keep them back.")
    labels = list(labels)
    if len(labels) != count:
        raise RecordError(f"{where} has {count} choices, but {len(labels)} of their labels: each choice needs one.")
    if isinstance(answer, bool) or labels.count(answer) != 1:
        raise RecordError(f"{where}: the answer is exactly one of {', '.join(map(repr, labels))}, got {answer!r}.")
    return labels.index(answer)


def _require_fields(record: Record, shape: str, source: str | os.PathLike[str]) -> None:
    """Raise a RecordError for a field that is missing, or not known."""
    used, unused = _FIELDS[shape]
    where = f"line {record.line} of {source}"
    if missing := sorted(used - record.fields.keys()):
        raise RecordError(f"{where} has no {missing[0]!r}, only {_quoted(record.fields)}; a {shape} has {_quoted(sorted(used))}.")
    if unknown := [name for name in record.fields if name not in used | unused]:
        meant = closest_name(unknown[0], used)
        raise RecordError(f"{where} has an unknown field {unknown[0]!r}: " + (f"did you mean {meant!r}?" if meant else f"a {shape} has "
                          f"{_quoted(sorted(used))}."))  # fmt: skip


def _quoted(names: Collection[str]) -> str:
    return ", ".join(repr(name) for name in names) or "nothing"
