"""The model that is served, and what a request may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from data.tokenizer import Tokenizer
from gpt.finetuning.classifier import Classifier
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.jinja_template import JinjaTemplate
from gpt.model import LanguageModel
from gpt.serving.engine import Engine
from gpt.serving.protocol import RequestError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_tokens: of a text.
        choices: texts in an answer, over all prompts.
        context_keep: see `gpt.generation.stream.context_length`.
    """

    max_tokens: int = 1024
    choices: int = 16
    context_keep: int | None = None


@dataclass
class Service:
    """A model, and what is needed to ask it.

    Attributes:
        template: of a model that answers; None for one that continues a text.
        log: called with a prompt and its texts, if texts are to be logged.
    """

    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    engine: Engine
    template: ChatTemplate | JinjaTemplate | None = None
    limits: Limits = field(default_factory=Limits)
    log: Callable[[str, list[str]], None] | None = None

    @property
    def kind(self) -> str:
        """What the model does: "classify", "chat" or "continue"."""
        if isinstance(self.model, Classifier):
            return "classify"
        return "chat" if self.template else "continue"

    def require_model(self, name: str | None) -> None:
        """Raise for another model's name.

        Raises:
            RequestError: with 404.
        """
        if name is not None and name != self.name:
            raise RequestError(f"there is no model {name[:80]!r} here, only {self.name!r}.", 404, "model", "model_not_found")

    def require_writer(self) -> None:
        """Raise if the model writes no text.

        Raises:
            RequestError: saying what it does instead.
        """
        if self.kind == "classify":
            raise RequestError(f"{self.name!r} classifies texts and writes none: ask /v1/classify.", param="model", code="wrong_model")
