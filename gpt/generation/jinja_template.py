"""The chat template of a published model: a small program in Jinja that writes a conversation as one text.

    {% for message in messages %}<|im_start|>{{ message['role'] }}
    {{ message['content'] }}<|im_end|>
    {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
    {% endif %}

It comes with the weights, from a stranger, so it runs in Jinja's sandbox: it sees the messages and nothing else of Python. The sandbox
bounds neither time nor memory. Here a template may take `MOST_STEPS` lines of Jinja's compiled code, and no text may be longer than
`MOST_CHARACTERS`.

In the text that it writes, ``<|im_start|>`` is a special token. In what a user types, it is characters like any other: a user cannot end
his own message and speak as the system.

Source of the environment: transformers, `apply_chat_template`.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data.files import write_atomically
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.generation.chat_template import TEMPLATE, Message, TemplateError

MOST_STEPS = 200_000
MOST_CHARACTERS = 1_000_000
_APART = "\ufdd0"  # a character that Unicode gives to no text; it keeps the name of a special token in a message from being one


class JinjaTemplate:
    """Has the interface of `gpt.generation.chat_template.ChatTemplate`.

    Args:
        source: the template.
        special_tokens: id by name; in the rendered text these names are tokens.
        names: what the template may ask for besides the messages, such as bos_token.

    Raises:
        TemplateError: if it is no template, or jinja2 is not installed.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, int], **names: str) -> None:
        self.source, self.special_tokens, self.names = source, dict(special_tokens), names
        jinja2 = _library()
        environment = _environment()
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, OverflowError) as error:
            raise TemplateError(f"the model's chat template is no Jinja template ({error}).") from error

    @property
    def stop(self) -> tuple[str, ...]:
        """The names of the special tokens: an answer ends before the first of them."""
        return tuple(self.special_tokens)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text after which the assistant's answer follows. `SpecialTokenReader` makes tokens of it.

        Raises:
            TemplateError: if the template fails, or takes too many steps or too much memory.
        """
        return self._run([{**message, "content": self._as_characters(message["content"])} for message in messages])

    def render(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The conversation as one text, all of which is said to be the user's."""
        return [(self._run(messages, add_generation_prompt=False), False)]

    def training_pieces(self, messages: Sequence[Message]) -> list[tuple[str, bool]]:
        """The conversation as pieces of one text. True marks what the assistant says, from where the prompt for it ends.

        Raises:
            TemplateError: if the template fails, or writes the beginning of a conversation otherwise once it goes on.
        """
        asked = [{**message, "content": self._as_characters(message["content"])} for message in messages]
        pieces, written = [], ""
        for i, message in enumerate(messages, 1):
            if message["role"] != "assistant":
                continue
            for text, is_assistant in ((self._run(asked[: i - 1]), False), (self._run(asked[:i], add_generation_prompt=False), True)):
                if not text.startswith(written):
                    raise TemplateError("the model's chat template writes what was said otherwise once a conversation goes on.")
                pieces.append((text[len(written) :], is_assistant))
                written = text
        return pieces

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write template.json into a checkpoint's folder; `load_jinja_template` reads it.

        Raises:
            OSError: if it cannot be written.
        """
        record = {"jinja": self.source, "special_tokens": self.special_tokens, "names": self.names}
        write_atomically(Path(folder) / TEMPLATE, json.dumps(record, indent=2) + "\n")

    def tokenizer(self, tokenizer: Tokenizer) -> SpecialTokenReader:
        """``tokenizer``, for the texts that this template writes."""
        return SpecialTokenReader(tokenizer, self.special_tokens)

    def _as_characters(self, content: str) -> str:
        for name in self.special_tokens:
            content = content.replace(name, name[0] + _APART + name[1:])
        return content

    def _run(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        jinja2, given = _library(), [dict(message) for message in messages]
        try:
            with _limited_steps():
                return str(self._template.render(messages=given, add_generation_prompt=add_generation_prompt, **self.names))
        except TemplateError:
            raise
        except (
            jinja2.TemplateError,
            ArithmeticError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise TemplateError(f"the model's chat template does not take this conversation ({error}).") from error


def load_jinja_template(path: str | os.PathLike[str]) -> JinjaTemplate | None:
    """The template of Jinja in a checkpoint's folder (or in a file of its own); None where there is none, or one of another kind.

    Raises:
        TemplateError: for one that cannot be used.
    """
    file = expand_path(path)
    file = file / TEMPLATE if file.is_dir() else file.parent / TEMPLATE if file.suffix == ".safetensors" else file
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None  # `gpt.generation.chat_template.load_template` says what is wrong
    if not isinstance(record, dict) or "jinja" not in record:
        return None
    source, tokens, names = (record.get(name) for name in ("jinja", "special_tokens", "names"))
    if not (
        isinstance(source, str)
        and isinstance(tokens, dict)
        and isinstance(names, dict)
        and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 and name for name, i in tokens.items())
        and all(isinstance(name, str) for name in names.values())
        and not names.keys() & {"source", "special_tokens", "self", "messages", "add_generation_prompt"}
    ):
        raise TemplateError(
            f"{file} is no template: with 'jinja', a text, it has 'special_tokens', ids by name, and 'names', texts by name."
        )
    return JinjaTemplate(source, tokens, **names)


class SpecialTokenReader:
    """A tokenizer for which the names of special tokens in a text are those tokens. In all else it is the one that it is given."""

    def __init__(self, tokenizer: Tokenizer, special_tokens: Mapping[str, int]) -> None:
        self._tokenizer, self._ids = tokenizer, dict(special_tokens)
        names = sorted(map(re.escape, self._ids), key=len, reverse=True)
        self._names = re.compile(f"({'|'.join(names)})") if names else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode(self, text: str) -> np.ndarray:
        """The ids of ``text``."""
        parts = self._names.split(text) if self._names else [text]  # text, name, text, name, …, text
        ids = [np.array([self._ids[part]]) if i % 2 else self._tokenizer.encode(part.replace(_APART, "")) for i, part in enumerate(parts)]
        return np.concatenate(ids).astype(self._tokenizer.encode("").dtype)

    def decode(self, ids: ArrayLike) -> str:
        """The text of ``ids``."""
        return self._tokenizer.decode(ids)


def _environment() -> Any:
    """Jinja's sandbox, with what transformers offers to a template, and with limits on texts."""
    from jinja2.compiler import CodeGenerator
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generator(CodeGenerator):
        """Writes ``a ~ b`` as a call that the environment can limit."""

        def visit_Concat(self, node: Any, frame: Any) -> None:  # noqa: N802 (Jinja's name)
            self.write("environment.joined((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])
        code_generator_class = Generator

        def joined(self, parts: Sequence[Any]) -> str:
            texts = [str(part) for part in parts]
            _require_short(sum(map(len, texts)))
            return "".join(texts)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or (operator == "%" and isinstance(left, str)):
                raise TemplateError(f"the model's chat template computes with {operator}, which is not allowed.")
            if operator == "*" and (hasattr(left, "__len__") or hasattr(right, "__len__")):
                _require_short(_length(left) * _length(right))
            elif operator == "*" and max(abs(left), abs(right)) > _LARGEST:
                raise TemplateError(f"the model's chat template multiplies numbers above {_LARGEST:,}.")
            elif operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
                _require_short(len(left) + len(right))
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return not (isinstance(obj, str) and attr in _PADDING) and super().is_safe_attribute(obj, attr, value)

        def call(self, context: Any, function: Any, *args: Any, **options: Any) -> Any:
            owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
            if isinstance(owner, str) and name == "replace" and len(args) > 1:
                _require_short(len(owner) + owner.count(args[0]) * len(args[1]))
            if isinstance(owner, str) and name == "join" and args:
                return _join(args[0], owner)
            return super().call(context, function, *args, **options)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    for name in ("center", "format", "indent", "wordwrap", "xmlattr", "replace", "pprint", "batch", "slice"):  # they can make long texts
        del environment.filters[name]
    environment.filters["join"] = _join
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent and min(indent, 8))
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form[:100])
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    return environment


_LARGEST = 10**12
_PADDING = ("center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate")


def _require_short(characters: int) -> None:
    if characters > MOST_CHARACTERS:
        raise TemplateError(f"the model's chat template makes a text of {characters:,} characters; {MOST_CHARACTERS:,} are allowed.")


def _length(factor: Any) -> int:
    """The length of a text or a list; a number is what it multiplies that by."""
    return len(factor) if hasattr(factor, "__len__") else abs(int(factor))


def _join(value: Any, d: Any = "", attribute: Any = None) -> str:
    """Jinja's filter and Python's method ``join``, of limited length."""
    texts = [str(part if attribute is None else part[attribute]) for part in value]
    _require_short(sum(map(len, texts)) + len(str(d)) * len(texts))
    return str(d).join(texts)


def _raise_exception(message: str) -> None:
    raise TemplateError(f"the model's chat template refuses this conversation: {message}")


@contextlib.contextmanager
def _limited_steps() -> Iterator[None]:
    """Count the lines of Jinja's code that run, and raise a TemplateError at the limit. A thread's own trace function is put back."""
    steps = 0

    def count(frame: Any, event: str, arg: Any) -> Any:
        nonlocal steps
        if frame.f_code.co_filename != "<template>":
            return None
        steps += 1
        if steps > MOST_STEPS:
            raise TemplateError(f"the model's chat template takes more than {MOST_STEPS:,} steps.")
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _library() -> Any:
    try:
        return importlib.import_module("jinja2")
    except ImportError as error:
        raise TemplateError("the chat template of this model needs the package jinja2: pip install 'tensorlite[gguf]'.") from error
