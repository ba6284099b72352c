"""Small tasks that need no file, made from the reference of the Python language that every machine has (`data.corpus`, "pydoc").

    pydoc-text        the last tenth of it, which `gpt.train` keeps for validation
    pydoc-cloze       passages of it whose last word occurs earlier in the passage
    pydoc-choice      a sentence of it, and four that may follow; three are from elsewhere in it

They show that a model has learnt something of such prose, and compare models of one machine: another version of Python has another text.
They are no measure of what a model knows of the world.
"""

from __future__ import annotations

import re

from data.corpus import load_corpus
from gpt.evaluation.examples import Passage, Question, passage_from, question_from
from tensorlite.random import make_generator

SAMPLES = ("pydoc-text", "pydoc-cloze", "pydoc-choice")
_MOST = 200  # examples
_CHOICES = 4
_VALIDATION = 0.1  # of the text


def sample_text() -> str:
    """The text of pydoc-text."""
    text = load_corpus("pydoc").text
    return text[len(text) - round(len(text) * _VALIDATION) :]


def sample_passages() -> list[Passage]:
    """The passages of pydoc-cloze: six sentences; the last word is one of letters, and occurs before."""
    sentences = _sentences()
    passages: list[Passage] = []
    for i in range(5, len(sentences)):
        text = " ".join(sentences[i - 5 : i + 1]).rstrip(".:")
        *words, last = text.split()
        if len(last) > 3 and last.isalpha() and last in words:
            passages.append(passage_from(text, len(passages) + 1, "pydoc"))
    return passages[:_MOST]


def sample_questions() -> list[Question]:
    """The questions of pydoc-choice: which sentence follows two others. The wrong ones are drawn with a fixed seed."""
    sentences = _sentences()
    questions: list[Question] = []
    for i in range(2, min(len(sentences), _MOST + 2)):
        rng = make_generator(0, i)
        others = [sentence for sentence in sentences if sentence not in sentences[i - 2 : i + 1]]
        choices = [others[j] for j in rng.permutation(len(others))[: _CHOICES - 1]]
        answer = int(rng.integers(_CHOICES))
        choices.insert(answer, sentences[i])
        questions.append(question_from(" ".join(sentences[i - 2 : i]), choices, answer, len(questions) + 1))
    return questions


def _sentences() -> list[str]:
    """The sentences of prose, one after the other, white space made single; code, tables and titles are left out."""
    found = []
    for block in re.split(r"\n\s*\n", sample_text()):
        sentences = re.split(r"(?<=[\w)]\.) (?=[A-Z])", " ".join(block.split()))
        found += [sentence for sentence in sentences if 20 < len(sentence) < 300 and sentence[-1] in ".:" and sentence[0].isupper()]
    return found
