"""python -m gpt.generate: what it prints, and one sentence and exit code 2 for what the user can mend."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.tokenizer import CharTokenizer
from gpt import generate
from gpt.checkpoints.model_folder import WEIGHTS, load_model_folder, save_model
from gpt.config import GPTConfig
from gpt.errors import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError, fail, run_main
from gpt.generation.chat_template import ChatTemplate
from gpt.generation.stream import generate_text
from gpt.model import build_model
from tensorlite import random
from tensorlite.backend import DeviceUnavailableError
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
TOKEN = CharTokenizer.train("the quick brown fox – naïve\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was never trained: its text is noise, but it is the same noise for the same seed."""
    config = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8)
    with random.use_generator(random.make_generator(0)):
        return save_model(tmp_path_factory.mktemp("runs") / "noise", build_model(config), TOKEN)


def out(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert run_main(lambda: generate.main([str(word) for word in argv])) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def complaint(capsys: pytest.CaptureFixture, *argv: object) -> str:
    assert run_main(lambda: generate.main([str(word) for word in argv])) == EXIT_USER_ERROR == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err.removesuffix("\n")


def program(*argv: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "gpt.generate", *map(str, argv)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **options.pop("env", {})}
    options = {"stdin": subprocess.DEVNULL, **options}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options)


# --- what it prints -----------------------------------------------------------------------------------


def test_the_output_is_the_prompt_and_its_continuation(run: Path, capsys: pytest.CaptureFixture) -> None:
    text = out(capsys, "--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 30, "--seed", 3)
    model, tokenizer, _ = load_model_folder(run)
    assert text == generate_text(model, tokenizer, "the ", 30, generator=random.make_generator(3, 0)) + "\n"
    assert len(text) == 4 + 30 + 1


def test_the_file_of_weights_is_a_checkpoint_too(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert out(capsys, "--checkpoint", run / WEIGHTS, "--seed", 1) == out(capsys, "--checkpoint", run, "--seed", 1)


def test_a_model_that_answers_is_better_asked_in_a_chat(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = shutil.copytree(run, tmp_path / "answers")
    ChatTemplate(user="q", assistant="f").save(folder)
    generate.main(["--checkpoint", str(folder), "--seed", "1"])
    captured = capsys.readouterr()
    assert captured.err.startswith("note: this model was finetuned on conversations")
    assert captured.err.endswith(f"python -m gpt.chat --checkpoint {folder}\n")
    assert captured.out == out(capsys, "--checkpoint", run, "--seed", 1)


def test_500_tokens_are_the_default(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert len(out(capsys, "--checkpoint", run)) == 501


def test_without_a_seed_texts_differ(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert out(capsys, "--checkpoint", run) != out(capsys, "--checkpoint", run)


def test_temperature_zero_is_greedy(run: Path, capsys: pytest.CaptureFixture) -> None:
    greedy = ["--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 40]
    assert out(capsys, *greedy, "--temperature", 0) == out(capsys, *greedy, "--top-k", 1) == out(capsys, *greedy, "--top-p", 1e-9)


def test_a_top_k_beyond_the_vocabulary_means_all(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert out(capsys, "--checkpoint", run, "--seed", 1, "--top-k", 10_000) == out(capsys, "--checkpoint", run, "--seed", 1)


def test_several_samples(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", run, "--prompt", "fox", "--max-new-tokens", 20, "--seed", 3]
    three = out(capsys, *options, "--num-samples", 3).split("\n" + "-" * 80 + "\n")
    assert len(set(three)) == 3
    assert three[0] + "\n" == out(capsys, *options)
    assert all(text.startswith("fox") for text in three)


def test_completion_only_prints_no_prompt(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", run, "--prompt", "fox", "--max-new-tokens", 20, "--seed", 3, "--num-samples", 2]
    both, alone = (out(capsys, *options, *more).split("\n" + "-" * 80 + "\n") for more in ([], ["--completion-only"]))
    assert both == ["fox" + text for text in alone]


def test_the_cache_does_not_change_the_text(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 50, "--seed", 3, "--min-p", 0.01, "--repetition-penalty", 1.1]
    assert out(capsys, *options, "--no-cache") == out(capsys, *options)


def test_context_keep_changes_the_text_only_when_the_context_is_full(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 50, "--seed", 3]
    kept = out(capsys, *options, "--context-keep", 3)
    assert kept == out(capsys, *options, "--context-keep", 3, "--no-cache")
    assert kept != out(capsys, *options) == out(capsys, *options, "--context-keep", 8)
    assert kept[:9] == out(capsys, *options)[:9], "the same until 9 tokens are too many"


def test_a_stop_string_ends_the_text_before_it(run: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 60, "--seed", 3, "--completion-only"]
    whole = out(capsys, *options).removesuffix("\n")
    stop, other = whole[20:23], whole[40]
    first = min(whole.index(stop), whole.index(other))
    assert out(capsys, *options, "--stop", stop, "--stop", other) == whole[:first] + "\n"
    assert out(capsys, *options, "--stop", stop) == whole[: whole.index(stop)] + "\n"
    assert out(capsys, *options, "--stop", "Zoo") == whole + "\n"


def test_a_prompt_from_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "prompt.txt").write_text("fox –\nna", encoding="utf-8")
    options = ["--checkpoint", run, "--seed", 1, "--max-new-tokens", 5]
    plain = out(capsys, *options, "--prompt", "fox –\nna")
    assert out(capsys, *options, "--prompt-file", tmp_path / "prompt.txt") == plain
    (tmp_path / "prompt.txt").write_bytes("\ufefffox –\r\nna".encode())  # as an editor on Windows saves it
    assert out(capsys, *options, "--prompt-file", tmp_path / "prompt.txt") == plain == out(capsys, *options, "--prompt", "fox –\r\nna")
    (tmp_path / "prompt.txt").write_bytes(b"the \xff")
    assert "the prompt is not UTF-8 text: byte 0xff at offset 4" in complaint(capsys, *options, "--prompt-file", tmp_path / "prompt.txt")
    assert "no such file" in complaint(capsys, *options, "--prompt-file", tmp_path / "none.txt")
    assert "not allowed with" in complaint(capsys, *options, "--prompt-file", "x", "--prompt", "y")


@pytest.mark.parametrize("more", [[], ["--prompt-file", "-"]])
def test_a_prompt_through_a_pipe(run: Path, more: list[str]) -> None:
    process = program("--checkpoint", run, "--max-new-tokens", 0, *more, stdin=subprocess.PIPE, env={"PYTHONIOENCODING": "utf-8"})
    stdout, stderr = process.communicate("naïve –".encode(), timeout=PATIENCE)
    assert (process.returncode, stdout.decode(), stderr) == (0, "naïve –\n", b"")


def test_a_prompt_longer_than_the_context_is_cropped_with_a_note(run: Path, capsys: pytest.CaptureFixture) -> None:
    prompt = "the quick brown fox"
    assert run_main(lambda: generate.main(["--checkpoint", str(run), "--prompt", prompt, "--max-new-tokens", "5", "--seed", "1"])) == 0
    captured = capsys.readouterr()
    assert captured.err == "note: the prompt has 19 tokens; the model reads the last 8.\n"
    assert captured.out.startswith(prompt)
    shorter = out(capsys, "--checkpoint", run, "--prompt", prompt[-8:], "--max-new-tokens", 5, "--seed", 1)
    assert captured.out == prompt[:-8] + shorter
    generate.main(["--checkpoint", str(run), "--prompt", prompt, "--max-new-tokens", "0", "--context-keep", "7"])
    assert capsys.readouterr().err == "note: the prompt has 19 tokens; the model reads the last 7.\n"


def test_the_program_itself(run: Path) -> None:
    process = program("--checkpoint", run, "--prompt", "naïve – ", "--max-new-tokens", 5, "--seed", 0, env={"PYTHONIOENCODING": "utf-8"})
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stderr) == (0, b"")
    assert stdout.decode().startswith("naïve – ")


def test_a_terminal_that_cannot_show_a_character(run: Path) -> None:
    process = program("--checkpoint", run, "--prompt", "naïve", "--max-new-tokens", 0, env={"PYTHONIOENCODING": "ascii"})
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout, stderr) == (0, b"na?ve\n", b"")


def test_the_text_is_streamed_and_a_closed_pipe_ends_the_program(run: Path) -> None:
    process = program("--checkpoint", run, "--max-new-tokens", 10_000_000)
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(10)) == 10  # long before the last of ten million
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) == EXIT_BROKEN_PIPE
    assert process.stderr.read() == b""
    process.stderr.close()


# --- complaints ---------------------------------------------------------------------------------------


def test_unseen_characters_in_the_prompt_are_named(run: Path, capsys: pytest.CaptureFixture) -> None:
    message = complaint(capsys, "--checkpoint", run, "--prompt", "the Zoo!")
    assert "never saw these characters: 'Z' (U+005A) at position 4, '!' (U+0021) at position 7" in message


def test_a_misspelt_checkpoint_gets_the_nearest_name(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert complaint(capsys, "--checkpoint", run.with_name("nois")).endswith(f"did you mean {run}?")


def test_the_option_checkpoint_is_required(capsys: pytest.CaptureFixture) -> None:
    assert "--checkpoint" in complaint(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temprature", "1"], "unknown option --temprature: did you mean --temperature?"),
        (["--top-q=3"], "did you mean --top-"),
        (["--zzz"], "unknown option --zzz: see --help."),
        (["stray"], "stray"),
        (["--temperature", "-1"], "temperature must be 0 (always the most likely token) or a positive number, got -1.0."),
        (["--temperature", "nan"], "temperature must be 0 (always the most likely token) or a positive number, got nan."),
        (["--temperature", "warm"], "'warm'"),
        (["--top-k", "0"], "top_k must be at least 1, got 0"),
        (["--top-k", "2.5"], "'2.5'"),
        (["--top-p", "1.5"], "top_p must be above 0 and at most 1, got 1.5."),
        (["--min-p", "2"], "min_p must be at least 0 and at most 1, got 2.0."),
        (["--min-p", "nan"], "min_p must be at least 0 and at most 1, got nan."),
        (["--repetition-penalty", "0"], "repetition_penalty must be between 0.01 and 100 (1 for none), got 0.0."),
        (["--max-new-tokens", "-1"], "--max-new-tokens must be at least 0, got -1."),
        (["--stop", ""], "--stop must be a text that is not empty: every text begins with the empty one."),
        (["--context-keep", "0"], "--context-keep must be at least 1, got 0."),
        (["--context-keep", "9"], "--context-keep must be at most 8, the tokens that this model's context holds, got 9."),
        (["--num-samples", "0"], "--num-samples must be at least 1, got 0."),
        (["--seed", "-1"], "--seed must be at least 0, got -1."),
        (["--backend", "cuda"], "Use 'cupy'."),
        (["--prompt"], "--prompt"),
    ],
)
def test_impossible_options_get_one_sentence(run: Path, capsys: pytest.CaptureFixture, options: list[str], message: str) -> None:
    assert message in complaint(capsys, "--checkpoint", run, *options)


def test_a_missing_gpu_is_one_error(run: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(index: int) -> None:
        raise DeviceUnavailableError("there is no GPU here.")

    monkeypatch.setattr("tensorlite.backend._import_cupy", unavailable)
    assert complaint(capsys, "--checkpoint", run, "--backend", "cupy") == "error: there is no GPU here."


def test_the_exit_code_of_the_program(run: Path) -> None:
    process = program("--checkpoint", run, "--prompt", "ZZZ")
    stdout, stderr = process.communicate(timeout=PATIENCE)
    assert (process.returncode, stdout) == (2, b"")
    assert stderr.startswith(b"error: the tokenizer never saw this character: 'Z'")
    assert stderr.count(b"\n") == 1


def test_help(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as raised:
        generate.main(["--help"])
    assert raised.value.code == 0
    assert "--top-k" in capsys.readouterr().out


# --- run_main -----------------------------------------------------------------------------------------


def test_run_main_returns_the_exit_code(capsys: pytest.CaptureFixture) -> None:
    assert run_main(lambda: None) == 0
    assert run_main(lambda: 3) == 3
    assert run_main(lambda: fail("this is wrong.")) == EXIT_USER_ERROR
    assert capsys.readouterr().err == "error: this is wrong.\n"


def test_run_main_on_ctrl_c(capsys: pytest.CaptureFixture) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    assert run_main(interrupted) == EXIT_INTERRUPTED == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize("bug", [ValueError("x"), RuntimeError("x"), TypeError("x"), KeyError("x")])
def test_run_main_does_not_catch_bugs(bug: Exception) -> None:
    def broken() -> None:
        raise bug

    with pytest.raises(type(bug)):
        run_main(broken)


def test_fail_is_a_user_error() -> None:
    with pytest.raises(UserError, match="this is wrong"):
        fail("this is wrong")
