"""Talk to a trained model:  python -m gpt.chat --checkpoint runs/tiny

A model that was finetuned on conversations has a template beside its weights (`gpt.generation.chat_template`), or in its GGUF file
(`gpt.generation.jinja_template`). It reads the conversation in that form and answers. Any other model continues the text: what you type is
added to it, and an empty line lets the model continue.

A line that begins with / is a command; // sends a message that begins with /. Ctrl-C stops an answer; Ctrl-D ends the program.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Sequence

from data.errors import DataError
from data.files import explain, write_atomically
from data.paths import expand_path
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser, add_int8_option, add_model_options, add_sampling_options, check_context_keep, check_sampling
from gpt.errors import run_main
from gpt.finetuning.classifier import refuse_classifier
from gpt.finetuning.find_template import find_template
from gpt.generation.chat_template import TemplateError
from gpt.generation.conversation import Conversation
from gpt.generation.memory_order import order_for_one_text
from gpt.generation.sampling import Sampling
from gpt.generation.stream import limit_threads
from tensorlite import random


class Chat:
    """A conversation at a terminal: reads lines and runs the commands."""

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
        """Read and answer until the user quits."""
        print(self._help(""))
        stay = True
        while stay:
            try:
                stay = self._turn()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:  # it ends a line or an answer
                print()

    def _turn(self) -> bool:
        """Read one line and answer; False when the user quits."""
        line = input("> ").removesuffix("\r")  # of a file with Windows' line ends
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
            with contextlib.closing(self.conversation.say(line)) as pieces:  # an answer that is stopped is kept as far as it goes
                for piece in pieces:
                    print(piece, end="", flush=True)
            print()
        except (DataError, TemplateError) as error:
            print(f"error: {error}")

    def _reset(self, _: str) -> str:
        self.conversation.reset()
        return "(the conversation is forgotten)"

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
            return "error: /save needs a file name."
        try:
            path = expand_path(argument)
            if path.exists():
                return f"error: {path} exists and was not changed; choose another name."
            write_atomically(path, self.conversation.as_text())
        except DataError as error:
            return f"error: {error}"
        except OSError as error:
            return f"error: {explain(error, argument)}"
        return f"(written to {path})"

    def _help(self, _: str) -> str:
        kind = "The model answers." if self.conversation.template else "The model continues your text; an empty line lets it go on."
        commands = "/reset  /temperature T  /save FILE  /help  /quit"
        return f"{kind} Ctrl-C stops it.\n{commands}\n// sends a message that begins with /"

    def _quit(self, _: str) -> None:
        return None

    def _unknown(self, _: str) -> str:
        return f"error: unknown command; the commands are {' '.join(self.commands)}; // sends a message that begins with /."


def _not_utf8(line: str) -> str:
    """Which byte of ``line`` is not UTF-8; empty if all are. See `_take_any_bytes`."""
    found = next(((place, char) for place, char in enumerate(line) if "\udc80" <= char <= "\udcff"), None)
    return f"byte 0x{ord(found[1]) - 0xDC00:02x} after {found[0]:,} characters" if found else ""


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and talk.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct.
    """
    parser = Parser(prog="python -m gpt.chat", description="Talk to a trained model.", usage="%(prog)s -c DIR [options]")
    add_model_options(parser)
    add_int8_option(parser)
    add_sampling_options(parser, max_new_tokens=200)
    options = parser.parse_args(argv)
    sampling = check_sampling(parser, options)
    refuse_classifier(options.checkpoint)
    model, tokenizer, config = load_model(options.checkpoint, options.backend, options.int8)
    order_for_one_text(model)
    check_context_keep(options, config.block_size)
    conversation = Conversation(
        model,
        tokenizer,
        find_template(options.checkpoint),
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        generator=None if options.seed is None else random.make_generator(options.seed, 0),
        context_keep=options.context_keep,
        sampling=sampling,
    )
    _take_any_bytes()
    _edit_lines()
    with limit_threads(model):
        Chat(conversation).run()


def _take_any_bytes() -> None:
    """Read a byte that is not UTF-8 as half a surrogate pair, so that an error message can name it."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def _edit_lines() -> None:
    """Enable arrow keys and history at the prompt, where Python has readline; Windows has its own."""
    if sys.platform != "win32" and sys.stdin.isatty():
        try:
            import readline
        except ImportError:
            return
        readline.parse_and_bind("set enable-bracketed-paste off")


if __name__ == "__main__":
    sys.exit(run_main(main))
