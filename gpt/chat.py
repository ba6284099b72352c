"""Talk to a trained model:  python -m gpt.chat --checkpoint runs/tiny

A model that was taught to answer has a template beside its weights (`gpt.generation.chat_template`); it sees the conversation in that form
and stops when it is your turn. Any other model goes on with the text: what you type is added to it, an empty line lets it write on.

A line that begins with / is a command; two of them send a message that begins with one. While it writes, Ctrl-C stops it; at your turn,
Ctrl-D leaves.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence

from data.errors import DataError
from data.files import explain, write_atomically
from data.paths import expand_path
from gpt.checkpoints.loading import open_model
from gpt.cli.arguments import Parser, add_model_options, add_sampling_options, check, check_context_keep
from gpt.errors import run_main
from gpt.finetuning.classifier import refuse_classifier
from gpt.generation.chat_template import load_template
from gpt.generation.conversation import Conversation
from gpt.generation.sampling import Sampling
from gpt.generation.stream import suitable_threads
from tensorlite import random


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
            path = expand_path(argument)
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


def _not_utf8(line: str) -> str:
    """Which byte of what was typed is none of a character; nothing where all are. See `_take_any_bytes`."""
    found = next(((place, char) for place, char in enumerate(line) if "\udc80" <= char <= "\udcff"), None)
    return f"byte 0x{ord(found[1]) - 0xDC00:02x} after {found[0]:,} characters" if found else ""


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
