"""Standard streams that are closed, full or gone: one sentence at most, and no traceback."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from data.console import ignore_write_errors
from data.errors import run_main
from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.model import build_model
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
TOKEN = CharTokenizer.train("the quick brown fox\n")
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8)
    return save_model(tmp_path_factory.mktemp("runs") / "noise", build_model(config), TOKEN)


def program(*argv: object, close: tuple[int, ...] = (), **streams) -> subprocess.CompletedProcess:
    """Run Python with ``argv``, without the file descriptors in ``close``."""
    script = f"import os, sys; [os.close(n) for n in {close}]; os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.run([sys.executable, "-c", script, *map(str, argv)], cwd=ROOT, timeout=PATIENCE, text=True, **streams)


@needs_full
@pytest.mark.parametrize("argv", [["-m", "gpt.generate", "--checkpoint", "RUN"], ["-OO", "-m", "gpt", "--help"]], ids=["generate", "help"])
def test_a_full_device_for_standard_output_is_one_error(run: Path, argv: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = program(*[str(run) if word == "RUN" else word for word in argv], stdout=full)
    assert (done.returncode, done.stderr) == (2, "error: standard output cannot be written: no space left on device.\n")


@needs_full
def test_an_error_that_cannot_be_printed_still_has_its_exit_code(run: Path) -> None:
    with open("/dev/full", "w") as full:
        assert program("-m", "gpt.generate", "--checkpoint", run, "--prompt", "Z", stderr=full).returncode == 2


@pytest.mark.parametrize("close", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_handled(run: Path, close: tuple[int, ...]) -> None:
    done = program("-m", "gpt.generate", "--checkpoint", run, "--prompt", "the ", "--max-new-tokens", 3, close=close)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the ") or 1 in close


def test_no_opened_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    """What a library writes to standard error would otherwise be in that file."""
    script = (
        "from data.errors import run_main\nimport os, sys\n"
        f"def main():\n file = open({str(tmp_path / 'file')!r}, 'w')\n os.write(2, b'noise')\n return 40 + (file.fileno() > 2)\n"
        "sys.exit(run_main(main))"
    )
    assert program("-c", script, close=(1, 2)).returncode == 41
    assert (tmp_path / "file").read_text() == ""


def test_an_error_of_another_file_keeps_its_traceback() -> None:
    def broken() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        run_main(broken)


def test_an_ignored_write_error_is_reported_once(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdout", Broken())
    told: list[Exception] = []
    with ignore_write_errors("stdout", told.append):
        print("one", flush=True)
        print("two", flush=True)
    assert [error.errno for error in told] == [5]
    assert isinstance(sys.stdout, Broken)


def test_the_programs_work_without_docstrings() -> None:
    """``-OO`` takes them away."""
    done = program("-OO", "-m", "gpt", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("All programs under one name:  python -m gpt --mode ")
