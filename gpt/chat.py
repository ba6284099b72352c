"""Talk to a trained model:  python -m gpt.chat --checkpoint runs/tiny

A model that was taught to answer has a template beside its weights (`gpt.writing.template`); it sees the conversation in that form and
stops when it is your turn. Any other model goes on with the text: what you type is added to it, an empty line lets it write on.

A line that begins with / is a command; two of them send a message that begins with one. While it writes, Ctrl-C stops it; at your turn,
Ctrl-D leaves.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np

from data.errors import DataError
from data.files import explain, write_atomically
from data.paths import expanded
from data.tokenizer import Tokenizer
from gpt.arguments import Parser, add_model_options, add_sampling_options, check, check_context_keep
from gpt.errors import run_main
from gpt.finetuning.classify import refuse_classifier
from gpt.inference import stream_text, suitable_threads
from gpt.model import LanguageModel
from gpt.pretrained import open_model
from gpt.writing.decoder import Decoder, supports
from gpt.writing.sampling import Sampling
from gpt.writing.template import Message, Template, load_template
from tensorlite import random


class Conversation:
    """What was said so far, and how the model goes on from it.

    Args:
        template: how a conversation is written down; without one, it is one text that both write.
        context_keep: see `gpt.inference.context_length`.
        sampling: how tokens are chosen, see `gpt.writing.sampling.Sampling`.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: Tokenizer,
        template: Template | None = None,
        *,
        max_new_tokens: int = 200,
        stop: Sequence[str] = (),
        generator: np.random.Generator | None = None,
        context_keep: int | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.generator, self.context_keep = max_new_tokens, generator, context_keep
        self.stop = [*stop, *(template.stop if template else ())]
        self.sampling = dict(sampling or {})
        self.decoder = Decoder(model) if supports(model) else None  # keeps what the conversation has in common from turn to turn
        self.reset()

    def reset(self) -> None:
        """Forget all that was said."""
        self.text = ""
        self.messages: list[Message] = []

    def say(self, line: str) -> Generator[str, None, None]:
        """Add ``line``; yields what the model answers, piece by piece. What it has said until it is stopped counts as said.

        Raises:
            DataError: for characters that the tokenizer never saw; then nothing is added.
        """
        self.tokenizer.encode(line)  # so that an error counts from the beginning of what was just typed
        if self.template:
            asked: list[Message] = [*self.messages, {"role": "user", "content": line}]
            shown = self._that_fits(asked)
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
        return self._listen(pieces, shown, asked)

    def _listen(self, pieces: Iterator[str], shown: str, asked: list[Message]) -> Generator[str, None, None]:
        said = ""
        try:
            for piece in _stripped(pieces) if self.template else pieces:
                said += piece
                yield piece
        finally:
            if self.template:
                self.messages = [*asked, {"role": "assistant", "content": said}]
            else:
                self.text = shown + said

    def _that_fits(self, messages: list[Message]) -> str:
        """The conversation as text, without its oldest turns if they would leave no room for an answer."""
        assert self.template
        block_size = self.model.config.block_size
        room = block_size - min(self.max_new_tokens, block_size // 2)
        while len(messages) > 1 and len(self.tokenizer.encode(self.template.prompt(messages))) > room:
            messages = messages[2:]
        return self.template.prompt(messages)

    def as_text(self) -> str:
        """All that was said, as the model sees it."""
        return "".join(text for text, _ in self.template.render(self.messages)) if self.template else self.text


def _not_utf8(line: str) -> str:
    """Which byte of what was typed is none of a character; nothing where all are. See `_take_any_bytes`."""
    found = next(((place, char) for place, char in enumerate(line) if "\udc80" <= char <= "\udcff"), None)
    return f"byte 0x{ord(found[1]) - 0xDC00:02x} after {found[0]:,} characters" if found else ""


def _stripped(pieces: Iterator[str]) -> Iterator[str]:
    """The same text without the white space around it: what may be its end waits until something follows."""
    begun, waiting = False, ""
    for piece in pieces:
        text = waiting + piece if begun else piece.lstrip()
        shown = text.rstrip()
        begun, waiting = begun or bool(shown), text[len(shown) :]
        yield shown


class Chat:
    """The conversation at a terminal: asks for lines, knows the commands."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.commands: dict[str, Callable[[str], str | None]] = {
            "/reset": self._reset,
            "/temperature": self._temperature,
            "/save": self._save,
            "/help": self._help,
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Ask and answer until the user leaves."""
        print(self._help(""))
        stay = True
        while stay:
            try:
                stay = self._turn()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # an unfinished line, or answer, is given up
                print()

    def _turn(self) -> bool:
        """Ask once and answer; False when the user wants to leave."""
        line = input("> ")
        if broken := _not_utf8(line):
            print(f"error: this line is not UTF-8 text, and was not sent: {broken}.")
            return True
        if not line.startswith("/") or line.startswith("//"):
            self._converse(line.removeprefix("/"))
            return True
        name, _, argument = line.partition(" ")
        answer = self.commands.get(name, self._unknown)(argument.strip())
        if answer is not None:
            print(answer)
        return answer is not None

    def _converse(self, line: str) -> None:
        try:
            with contextlib.closing(self.conversation.say(line)) as pieces:  # closed early, what it said counts
                for piece in pieces:
                    print(piece, end="", flush=True)
            print()
        except DataError as error:
            print(f"error: {error}")

    def _reset(self, _: str) -> str:
        self.conversation.reset()
        return "(forgotten)"

    def _temperature(self, argument: str) -> str:
        sampling = self.conversation.sampling
        if argument:
            try:
                temperature = float(argument)
            except ValueError:
                return f"error: a temperature is a number, got {argument!r}."
            try:
                Sampling(**{**sampling, "temperature": temperature})
            except ValueError as error:
                return f"error: {error}"
            sampling["temperature"] = temperature
        return f"(temperature {sampling.get('temperature', 1.0):g})"

    def _save(self, argument: str) -> str:
        if not argument:
            return "error: /save needs the name of a file."
        try:
            path = expanded(argument)
            if path.exists():
                return f"error: {path} exists, and is left as it is; choose another name."
            write_atomically(path, self.conversation.as_text())
        except DataError as error:
            return f"error: {error}"
        except OSError as error:
            return f"error: {explain(error, argument)}"
        return f"(written to {path})"

    def _help(self, _: str) -> str:
        kind = "It answers." if self.conversation.template else "It goes on with your text; an empty line lets it write on."
        return f"{kind}  /reset  /temperature T  /save FILE  /help  /quit  (a message that begins with / is sent by //)"

    def _quit(self, _: str) -> None:
        return None

    def _unknown(self, _: str) -> str:
        return f"error: there is no such command; there are {' '.join(self.commands)}, and // before a message that begins with /."


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, talk.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend.
    """
    parser = Parser(prog="python -m gpt.chat", description="Talk to a trained model.")
    add_model_options(parser)
    add_sampling_options(parser, max_new_tokens=200)
    options = parser.parse_args(argv)
    sampling = check(parser, options)
    refuse_classifier(options.checkpoint)
    model, tokenizer, config = open_model(options.checkpoint, options.backend)
    check_context_keep(options, config.block_size)
    conversation = Conversation(
        model,
        tokenizer,
        load_template(options.checkpoint),
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        generator=None if options.seed is None else random.make_generator(options.seed, 0),
        context_keep=options.context_keep,
        sampling=sampling,
    )
    _take_any_bytes()
    _edit_lines()
    with suitable_threads(model):
        Chat(conversation).run()


def _take_any_bytes() -> None:
    """Let a byte that is no character come in as half a surrogate pair, so that it can be refused by name."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _edit_lines() -> None:
    """Arrow keys and history at the prompt, where Python was built with them: importing is all it takes. Windows has its own."""
    if sys.platform != "win32" and sys.stdin.isatty():
        try:
            import readline
        except ImportError:
            return
        readline.parse_and_bind("set enable-bracketed-paste off")


if __name__ == "__main__":
    sys.exit(run_main(main))
