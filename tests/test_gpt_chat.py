"""Chat: the conversation as the model sees it, and the program at a pseudo-terminal; ``python -m gpt --mode``."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.tokenizer import CharTokenizer, TokenizerError
from gpt import __main__ as gpt_main
from gpt import chat as chat_module
from gpt.chat import Chat
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.conversation import Conversation
from gpt.generation.stream import generate_text
from gpt.model import LanguageModel, build_model
from tensorlite import random
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
TOKEN = CharTokenizer.train("### User:\n### Assistant:\nthe quick brown fox – naïve.?")


def make(block_size: int = 64) -> LanguageModel:
    config = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=block_size, n_layer=1, n_head=2, n_embd=8)
    with random.use_generator(random.make_generator(0)):
        return build_model(config).eval()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("runs") / "noise", make(), TOKEN)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """A model that always answers with the same pieces; the list records its prompts and options."""
    calls: list[tuple] = []

    def answers(model, tokenizer, prompt, max_new_tokens, **options):
        tokenizer.encode(prompt)
        calls.append((prompt, options))
        return iter(["\n", "a ", "fox", "\n"])

    monkeypatch.setattr("gpt.generation.conversation.stream_text", answers)
    return calls


# --- the conversation ---------------------------------------------------------------------------------


def test_a_base_model_continues_the_text(told: list):
    conversation = Conversation(make(), TOKEN)
    assert "".join(conversation.say("the quick")) == "\na fox\n"
    assert conversation.as_text() == "the quick\na fox\n"
    list(conversation.say(""))
    list(conversation.say("brown"))
    assert [prompt for prompt, _ in told] == ["the quick", "the quick\na fox\n", "the quick\na fox\n\na fox\n\nbrown"]


def test_an_instruction_tuned_model_gets_the_template(told: list):
    conversation = Conversation(make(1000), TOKEN, ChatTemplate(), stop=["naïve"])
    assert "".join(conversation.say("the fox?")) == "a fox"
    list(conversation.say("quick?"))
    first = "### User:\nthe fox?\n\n### Assistant:\n"
    assert [prompt for prompt, _ in told] == [first, first + "a fox\n\n### User:\nquick?\n\n### Assistant:\n"]
    assert told[0][1]["stop"][0] == "naïve"
    assert "### User:" in told[0][1]["stop"]
    conversation.reset()
    list(conversation.say("the fox?"))
    assert told[-1][0] == first


def test_the_oldest_turns_are_dropped_when_the_context_is_full(told: list):
    conversation = Conversation(make(150), TOKEN, ChatTemplate(), max_new_tokens=20)
    for _ in range(6):
        list(conversation.say("the quick brown fox?"))
    assert len(conversation.messages) == 12
    for prompt, _ in told:
        assert prompt.startswith("### User:")
        assert len(prompt) <= 130
    assert told[-1][0].count("### User:") == 2


def test_a_stopped_answer_stays_in_the_conversation(told: list):
    conversation = Conversation(make(), TOKEN, ChatTemplate())
    answer = conversation.say("fox?")
    assert [next(answer), next(answer)] == ["", "a"]
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": "a"}


def test_a_message_with_unknown_characters_is_refused(told: list):
    for template in (None, ChatTemplate()):
        conversation = Conversation(make(), TOKEN, template)
        with pytest.raises(TokenizerError, match="never saw this character: 'Z'"):
            conversation.say("Zoo")
        assert conversation.as_text() == ""


def test_the_position_of_an_unknown_character_is_that_in_the_typed_line(told: list):
    for template in (None, ChatTemplate()):
        conversation = Conversation(make(), TOKEN, template)
        assert "".join(conversation.say("fox"))
        with pytest.raises(TokenizerError, match=r"'Z' .* at position 2"):
            conversation.say("a Zoo")


def test_an_answer_has_no_white_space_around_it(told: list, monkeypatch: pytest.MonkeyPatch):
    pieces = ["\n", " ", "a", " \n", "", "\nfox. ", "\n\n"]
    monkeypatch.setattr("gpt.generation.conversation.stream_text", lambda *args, **options: iter(pieces))
    assert list(Conversation(make(), TOKEN, ChatTemplate()).say("fox")) == ["", "", "a", "", "", " \n\nfox.", ""]
    assert "".join(Conversation(make(), TOKEN).say("fox")) == "\n a \n\nfox. \n\n"


@pytest.mark.parametrize("context_keep", [None, 10])
def test_a_turn_equals_the_text_of_generate(context_keep: int | None):
    model = make(block_size=24)
    conversation = Conversation(
        model, TOKEN, max_new_tokens=30, generator=np.random.default_rng(4), context_keep=context_keep, sampling={"temperature": 0.7}
    )
    first = "".join(conversation.say("the "))
    second = "".join(conversation.say(""))
    options = {"generator": np.random.default_rng(4), "temperature": 0.7, "use_cache": False, "context_keep": context_keep}
    text = generate_text(model, TOKEN, "the ", 30, **options)
    assert "the " + first == text
    assert text + second == generate_text(model, TOKEN, text, 30, **options)


# --- the commands -------------------------------------------------------------------------------------


def test_commands(told: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    file = tmp_path / "talk.txt"
    typed = ["fox", "/temperature", "/temperature 0.5", "/temperature -1", "/temperature warm", f"/save {file}", f"/save {file}", "/save"]
    typed += ["/reset", f"/save {tmp_path / 'no' / 'x'}", "/dance", "Zoo", "/quit", "never asked"]
    lines = iter(typed)
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    conversation = Conversation(make(), TOKEN)
    Chat(conversation).run()
    said = capsys.readouterr().out
    expectations = [
        "/reset  /temperature T  /save FILE",
        "\na fox\n",
        "(temperature 1)",
        "(temperature 0.5)",
        "(the conversation is forgotten)",
    ]
    expectations += [
        "error: temperature must be 0 (always",
        "error: a temperature is a number, got 'warm'.",
        f"(written to {file})",
        "/save needs a file name",
    ]
    expectations += ["exists and was not changed", "unknown command", "error: the tokenizer never saw this character: 'Z'"]
    for expected in expectations:
        assert expected in said, expected
    assert file.read_text() == "fox\na fox\n"
    assert conversation.as_text() == ""
    assert conversation.sampling == {"temperature": 0.5}
    assert next(lines) == "never asked"


# --- at a terminal ------------------------------------------------------------------------------------


class Terminal:
    """The program at a pseudo-terminal: what is typed, and what the screen shows."""

    # The new process makes the terminal its own: then Ctrl-C reaches it. (pty.fork would do it before exec, in the copy of a
    # process that has threads, and whatever lock one of these held would be held for ever.)
    OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])"

    def __init__(self, *argv: object) -> None:
        self.screen, keyboard = pty.openpty()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TERM": "dumb", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-c", self.OWN_TERMINAL, sys.executable, *map(str, argv)]
        streams = {"stdin": keyboard, "stdout": keyboard, "stderr": keyboard}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **streams)
        os.close(keyboard)
        self.seen = b""

    def until(self, pattern: str) -> str:
        """What the screen shows since the last time, up to ``pattern``."""
        end = time.monotonic() + PATIENCE
        while not (found := re.search(pattern.encode(), self.seen, re.DOTALL)):
            assert time.monotonic() < end, f"{pattern!r} never came: {self.seen[-300:]!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                self.seen += os.read(self.screen, 65536)
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text.decode(errors="replace").replace("\r\n", "\n")  # a pattern may match in the middle of a character

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def exit_code(self) -> int:
        try:
            while os.read(self.screen, 65536):
                pass
        except OSError:  # what a terminal says when the other end is gone
            pass
        os.close(self.screen)
        return self.process.wait()


def test_a_conversation_at_a_terminal(run: Path, tmp_path: Path):
    terminal = Terminal("-m", "gpt.chat", "--checkpoint", run, "--seed", 1, "--max-new-tokens", 30)
    assert "The model continues your text" in terminal.until("> ")
    terminal.type("the naïve\n")
    answer = terminal.until("\n> ").removeprefix("the naïve\n").removesuffix("\n> ")
    assert len(answer) == 30
    terminal.type("/temperature 0\n")
    assert "(temperature 0)" in terminal.until("\n> ")
    terminal.type(f"/save {tmp_path}/said\n")
    terminal.until("\n> ")
    assert (tmp_path / "said").read_text() == "the naïve" + answer
    terminal.type("\x1b[A\x1b[A\x1b[A\n")  # three up: the first line again
    assert "the naïve" in terminal.until("\n> ")
    terminal.type("half a li")
    terminal.until("half a li")  # somebody is reading
    time.sleep(0.1)
    terminal.type("\x03")  # Ctrl-C gives the line up
    terminal.until("> ")
    terminal.type("/quit\n")
    assert terminal.exit_code() == 0


def test_ctrl_c_stops_the_answer_and_ctrl_d_leaves(run: Path):
    terminal = Terminal("-m", "gpt.chat", "--checkpoint", run, "--max-new-tokens", 10_000_000)
    terminal.until("> ")
    terminal.type("the \n")
    terminal.until("the \r\n.{20}")
    terminal.type("\x03")
    terminal.until("\n> ")
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_an_instruction_tuned_model_at_a_terminal(run: Path, tmp_path: Path):
    save_model(tmp_path, make(), TOKEN)
    ChatTemplate().save(tmp_path)
    terminal = Terminal("-m", "gpt", "--mode", "chat", "--checkpoint", tmp_path, "--max-new-tokens", 10, "--temperature", 0)
    assert "The model answers." in terminal.until("> ")
    terminal.type("the fox?\n")
    terminal.until("\n> ")
    terminal.type("/quit\n")
    assert terminal.exit_code() == 0


def test_lines_come_through_a_pipe(run: Path):
    command = [sys.executable, "-m", "gpt.chat", "--checkpoint", run, "--max-new-tokens", "3"]
    done = subprocess.run(command, cwd=ROOT, input=b"the\n", capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--temperature", "nan"], "temperature must be 0"),
        (["--max-new-tokens", "-1"], "--max-new-tokens must be at least 0"),
        (["--temprature", "1"], "did you mean --temperature?"),
        (["--context-keep", "65"], "--context-keep must be at most 64"),
    ],
)
def test_impossible_options_get_one_sentence(run: Path, capsys: pytest.CaptureFixture, argv: list[str], message: str):
    assert run_main(lambda: chat_module.main(["--checkpoint", str(run), *argv])) == 2
    assert message in capsys.readouterr().err


def test_a_broken_template_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    save_model(tmp_path, make(), TOKEN)
    (tmp_path / "template.json").write_text("[]")
    assert run_main(lambda: chat_module.main(["--checkpoint", str(tmp_path)])) == 2
    assert "is no template" in capsys.readouterr().err


# --- python -m gpt --mode -----------------------------------------------------------------------------


def test_a_mode_runs_its_program(run: Path, capsys: pytest.CaptureFixture):
    options = ["--checkpoint", str(run), "--prompt", "the", "--seed", "1", "--max-new-tokens", "5"]
    texts = []
    for argv in (["--mode", "generate", *options], [*options, "--mode=generate"], [*options[:2], "--mode", "generate", *options[2:]]):
        assert run_main(lambda argv=argv: gpt_main.main(argv)) == 0
        texts.append(capsys.readouterr().out)
    assert len(set(texts)) == 1
    assert texts[0].startswith("the")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--mode is missing: it is one of train, generate, chat, finetune, classify, evaluate, plot, look, serve."),
        (["--mode"], "--mode is missing"),
        (["--mode", "genrate"], "there is no mode 'genrate': did you mean generate?"),
        (["--mode", "x"], "it is one of train"),
        (["--mode", "generate", "--checkpoint", "x", "--top-q", "1"], "did you mean --top-"),
    ],
)
def test_unknown_modes_are_refused(capsys: pytest.CaptureFixture, argv: list[str], message: str):
    assert run_main(lambda: gpt_main.main(argv)) == 2
    assert message in capsys.readouterr().err


def test_help_lists_the_modes(capsys: pytest.CaptureFixture):
    assert gpt_main.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  finetune ") for line in lines)
    assert all(line == line.rstrip() for line in lines)


# --- what is typed --------------------------------------------------------------------------------------


def test_invalid_utf8_is_refused_and_the_chat_continues(run: Path) -> None:
    command = [sys.executable, "-m", "gpt.chat", "--checkpoint", run, "--max-new-tokens", "3"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    typed = "naïve ".encode() + b"\xff\n/save ~nobody-of-this-name/x\n/save a\0b\nthe\n"
    done = subprocess.run(command, cwd=ROOT, input=typed, capture_output=True, timeout=PATIENCE, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    said = done.stdout.decode()
    assert "error: this line is not UTF-8 text, and was not sent: byte 0xff after 6 characters." in said
    assert "error: ~nobody-of-this-name/x: there is no home folder" in said
    assert "error: 'a\\x00b'" in said
    assert len(said.rsplit("> ", 2)[1]) == 4, "and the last line is answered"


def test_invalid_utf8_at_a_terminal_is_refused(run: Path) -> None:
    terminal = Terminal("-m", "gpt.chat", "--checkpoint", run, "--max-new-tokens", 3)
    terminal.until("> ")
    os.write(terminal.screen, b"the \xff\n")
    assert "this line is not UTF-8 text, and was not sent: byte 0xff after 4 characters." in terminal.until("\n> ")
    terminal.type("/quit\n")
    assert terminal.exit_code() == 0


def test_lines_may_end_as_on_windows(told: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    lines = iter(["the fox\r", "/quit\r", "never asked"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    Chat(Conversation(make(), CharTokenizer.train("/ \nthe quick brown fox"))).run()
    assert next(lines) == "never asked"
    assert "unknown command" not in capsys.readouterr().out
    assert [prompt for prompt, _ in told] == ["the fox"]


def test_a_message_that_begins_with_a_slash(told: list, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    lines = iter(["//the /fox", "/fox", "/help", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    Chat(Conversation(make(), CharTokenizer.train("/ \nthe quick brown fox"))).run()
    assert [prompt for prompt, _ in told] == ["/the /fox"]
    said = capsys.readouterr().out
    assert "unknown command; the commands are /reset" in said
    assert said.count("// sends a message that begins with /") == 3, "at the beginning, after a mistake, and when asked for help"
