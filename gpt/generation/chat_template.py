"""The form of a conversation as one text, for a model that reads nothing but text.

    ### User:
    What is the capital of France?

    ### Assistant:
    Paris.

The marks are saved beside the weights, in template.json, so that a later conversation has the form that the model was trained on.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.files import write_atomically
from data.paths import expand_path
from gpt.errors import UserError

TEMPLATE = "template.json"
ROLES = ("system", "user", "assistant")

Message = Mapping[str, str]  # {"role": "user", "content": "…"}


class TemplateError(UserError):
    """A template that cannot be read; the message says what is wrong with it."""


@dataclass(frozen=True)
class ChatTemplate:
    """The marks before and after each message.

    Raises:
        TemplateError: for a mark that is not a text, or an empty one where a message begins or ends.
    """

    user: str = "### User:\n"
    assistant: str = "### Assistant:\n"
    system: str = "### System:\n"
    end: str = "\n\n"

    def __post_init__(self) -> None:
        for name, mark in dataclasses.asdict(self).items():
            if not isinstance(mark, str) or not mark:
                raise TemplateError(f"a template's {name!r} must be a text that is not empty, got {mark!r}.")

    def render(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The messages as pieces of one text. True marks the assistant's part: its message, and the mark that ends it."""
        pieces, assistant_spoke = [], False
        for message in messages:
            pieces.append((str(getattr(self, message["role"])), assistant_spoke))
            assistant_spoke = message["role"] == "assistant"
            pieces.append((message["content"] + self.end, assistant_spoke))
        return pieces

    def training_pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """What a model learns to answer from, as `render`, with the mark after which the user speaks: so it learns to end its turn."""
        return [*self.render(messages), (self.user, True)]

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant's answer follows. Marks inside a message begin no turn, see `without_marks`."""
        typed = [{**message, "content": self.without_marks(message["content"])} for message in messages]
        return "".join(text for text, _ in self.render(typed)) + self.assistant

    def without_marks(self, text: str) -> str:
        """``text`` in which no mark is complete: of each that somebody has typed the first character is taken away.

        Without this a message could end its own turn and write the other side's.
        """
        end = self.end.strip()
        marks = (*self.stop, end) if end else self.stop
        while found := [at for mark in marks if (at := text.find(mark)) >= 0]:
            text = text[: min(found)] + text[min(found) + 1 :]
        return text

    @property
    def stop(self) -> tuple[str, ...]:
        """The strings that end an answer: the marks of the next turn."""
        return tuple(dict.fromkeys(mark.strip() or mark for mark in (self.user, self.system, self.assistant)))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write template.json into a checkpoint's folder.

        Raises:
            OSError: if it cannot be written.
        """
        write_atomically(Path(folder) / TEMPLATE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")


def load_template(folder: str | os.PathLike[str]) -> ChatTemplate | None:
    """The template in a checkpoint's folder (or in a file of its own), or None where there is none, as for a base model.

    Raises:
        TemplateError: for one that is no template.
    """
    path = expand_path(folder)
    file = path / TEMPLATE if path.is_dir() else path
    if path.is_dir() and not file.exists():
        return None
    if file.suffix == ".safetensors":  # a checkpoint may be named by its file
        return load_template(file.parent)
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        return ChatTemplate(**content)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        marks = ", ".join(field.name for field in dataclasses.fields(ChatTemplate))
        raise TemplateError(f"{file} is no template ({error}): it is a JSON object with any of {marks}.") from error
