"""A conversation with a trained model: the messages so far, and the model's next one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer
from gpt.generation.chat_template import ChatTemplate, Message
from gpt.generation.decoders import make_decoder
from gpt.generation.jinja_template import JinjaTemplate
from gpt.generation.stream import stream_text
from gpt.model import LanguageModel


class Conversation:
    """The messages so far, and the model's next one.

    Args:
        template: the form of a conversation as one text; without one, user and model continue the same text in turn.
        context_keep: see `gpt.generation.stream.context_length`.
        sampling: how tokens are chosen, see `gpt.generation.sampling.Sampling`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: ChatTemplate | JinjaTemplate | None = None,
        *,
        max_new_tokens: int = 200,
        stop: Sequence[str] = (),
        generator: np.random.Generator | None = None,
        context_keep: int | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.template = model, template
        self.tokenizer = template.tokenizer(tokenizer) if isinstance(template, JinjaTemplate) else tokenizer
        self.max_new_tokens, self.generator, self.context_keep = max_new_tokens, generator, context_keep
        self.stop = [*stop, *(template.stop if template else ())]
        self.sampling = dict(sampling or {})
        self.decoder = make_decoder(model)  # keeps the keys and values of earlier turns
        self.reset()

    def reset(self) -> None:
        """Forget the conversation."""
        self.text = ""
        self.messages: list[Message] = []

    def say(self, line: str) -> Generator[str, None, None]:
        """Add ``line``; yields the model's answer piece by piece. An answer that is interrupted is kept as far as it goes.

        Raises:
            DataError: for characters that the tokenizer does not know; then nothing is added.
        """
        self.tokenizer.encode(line)  # so that positions in an error message count from the beginning of this line
        if self.template:
            asked: list[Message] = [*self.messages, {"role": "user", "content": line}]
            shown = self._prompt_that_fits(asked)
        else:
            asked = []
            shown = self.text + ("\n" if self.text and line else "") + line
        pieces = stream_text(
            self.model,
            self.tokenizer,
            shown,
            self.max_new_tokens,
            generator=self.generator,
            stop=self.stop,
            context_keep=self.context_keep,
            decoder=self.decoder,
            use_cache=self.decoder is not None,
            **self.sampling,
        )
        return self._record_reply(pieces, shown, asked)

    def _record_reply(self, pieces: Iterator[str], shown: str, asked: list[Message]) -> Generator[str, None, None]:
        said, stripper = "", WhitespaceStripper()
        try:
            for piece in pieces:
                shown_now = stripper.push(piece) if self.template else piece
                said += shown_now
                yield shown_now
        finally:
            if self.template:
                self.messages = [*asked, {"role": "assistant", "content": said}]
            else:
                self.text = shown + said

    def _prompt_that_fits(self, messages: list[Message]) -> str:
        """The conversation as text, without its oldest turns if they would leave no room for an answer."""
        assert self.template
        block_size = self.model.config.block_size
        room = block_size - min(self.max_new_tokens, block_size // 2)
        while len(messages) > 1 and len(self.tokenizer.encode(self.template.prompt(messages))) > room:
            messages = messages[2:]
        return self.template.prompt(messages)

    def as_text(self) -> str:
        """The whole conversation, as the model reads it."""
        return "".join(text for text, _ in self.template.render(self.messages)) if self.template else self.text


class WhitespaceStripper:
    """``push(text)`` gives a text piece by piece without white space around it: white space waits until something follows."""

    def __init__(self) -> None:
        self.begun, self.waiting = False, ""

    def push(self, piece: str) -> str:
        """What of the text can be shown now."""
        text = self.waiting + piece if self.begun else piece.lstrip()
        shown = text.rstrip()
        self.begun, self.waiting = self.begun or bool(shown), text[len(shown) :]
        return shown
