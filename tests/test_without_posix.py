"""On a machine without POSIX every program works, and its files are the same as on any other machine, byte for byte."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.numpy

import gpt.train
from data.prepare import Settings, prepare
from gpt.errors import run_main
from tests.patience import PATIENCE
from tests.without_posix import environment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the stand-in asks /proc which files are open")

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join(f"{number} lazy dogs saw “{number}” foxes.\n" for number in range(300))
MODEL = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--workers=2", "--shards=2"]
TRAINING = ["--schedule=constant", "--eval-interval=4", "--eval-iters=1", "--sample-length=20"]


def start(*arguments: str, **options) -> subprocess.Popen[bytes]:
    """A process on that machine."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], env=environment(), **pipes, **options)


def run(*arguments: str, stdin: str = "", code: int = 0) -> str:
    """What a program prints there; it must end with ``code``."""
    process = start("-m", *arguments)
    out, err = (text.decode("cp1252") for text in process.communicate(stdin.encode(), timeout=PATIENCE))
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return out + err


def busy(*lines: str) -> subprocess.Popen[bytes]:
    """A process there that has done ``lines`` and then waits for a line end."""
    indent = "    " if lines[-1].endswith(":") else ""
    process = start("-c", "\n".join([*lines, indent + "print(flush=True); input()"]))
    assert process.stdout.readline(), process.stderr.read()
    return process


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "dogs.txt"
    path.write_text(TEXT, encoding="utf-8", newline="\n")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory, text) -> Path:
    """A run of four steps, made there."""
    folder = tmp_path_factory.mktemp("runs") / "dogs"
    out = run("gpt.train", *MODEL, *TRAINING, "--steps=4", f"--data={text}", f"--out={folder}")
    assert "validation loss" in out
    return folder


# --- the stand-in refuses what Windows refuses -------------------------------------------------------------


@pytest.mark.parametrize(
    "program, error",
    [
        ("import fcntl", "ModuleNotFoundError"),
        ("import resource", "ModuleNotFoundError"),
        ("import os; os.fork()", "AttributeError"),
        ("import os; os.pwrite(1, b'', 0)", "AttributeError"),
        ("import multiprocessing; multiprocessing.get_context('fork').Process().start()", "AttributeError"),
        ("import signal; signal.SIGHUP", "AttributeError"),
        ("import signal; signal.SIGKILL", "AttributeError"),
        ("import os; os.symlink('a', 'b')", "OSError"),
        ("import os; os.open('.', os.O_RDONLY)", "PermissionError"),
        ("open('/proc/self/status', encoding='utf-8')", "FileNotFoundError"),
        ("open('a:b', 'wb')", "OSError"),
        ("import os; os.mkdir('what?')", "OSError"),
        ("open('a', 'w')", "EncodingWarning"),
        ("from pathlib import Path; Path('a').write_text('')", "EncodingWarning"),
        ("import subprocess, sys; subprocess.run([sys.executable, '-c', ''], text=True)", "EncodingWarning"),
        ("import os; file = open('a', 'wb'); os.remove('a')", "PermissionError"),
        ("import os; os.mkdir('d'); file = open('d/a', 'wb'); os.rename('d', 'e')", "PermissionError"),
        ("import os; file = open('a', 'wb'); open('b', 'wb').close(); os.replace('b', 'a')", "PermissionError"),
        ("import os; open('a', 'wb').close(); open('b', 'wb').close(); os.rename('b', 'a')", "FileExistsError"),
        ("import os, numpy; numpy.save('a', [1]); map = numpy.load('a.npy', mmap_mode='r'); os.remove('a.npy')", "PermissionError"),
        ("print('“ok”' + chr(0x1F600))", "UnicodeEncodeError"),
    ],
)
def test_posix_functions_are_missing_in_the_stand_in(program, error, tmp_path):
    process = start("-c", program, cwd=tmp_path)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.decode().splitlines()[-1].startswith(error + ":")


def test_the_stand_in_ends_lines_as_windows_does(tmp_path):
    process = start("-c", "open('a', 'w', encoding='utf-8').write('1\\n2\\n'); import sys; print(sys.platform)", cwd=tmp_path)
    assert process.communicate(timeout=PATIENCE) == (b"win32\r\n", b"")
    assert (tmp_path / "a").read_bytes() == b"1\r\n2\r\n"


SOURCES = [path for folder in ("tensorlite", "gpt", "data", "study", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]


def texts_without_an_encoding(source: str) -> list[int]:
    """Lines in which a file or a pipe is opened as text, and no encoding is named."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        function, named = ast.unparse(call.func), {keyword.arg for keyword in call.keywords}
        modes = {node.value for arg in call.args for node in ast.walk(arg) if isinstance(node, ast.Constant)}
        is_open = function == "open" and modes.isdisjoint({"rb", "wb", "ab", "xb", "rb+", "r+b"})
        is_file = function.endswith((".read_text", ".write_text")) and not function.startswith(
            "self.write_text"
        )  # that is what a run writes
        is_pipe = function.endswith(("run", "Popen", "check_output")) and "text" in named
        if (is_open or is_file or is_pipe) and "encoding" not in named:
            lines.append(call.lineno)
    return lines


def test_every_text_is_opened_in_an_encoding_that_is_named():
    assert SOURCES
    assert {str(path): lines for path in SOURCES if (lines := texts_without_an_encoding(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "source", ["open(a)", "open(a, 'w')", "a.read_text()", "a.write_text(b)", "run(a, text=True)", "subprocess.Popen(a, text=True)"]
)
def test_a_text_without_an_encoding_is_detected(source):
    assert texts_without_an_encoding(source) == [1]
    assert texts_without_an_encoding(source.replace(")", ", encoding='utf-8')").replace("(, ", "(")) == []


# --- the programs -----------------------------------------------------------------------------------------


def test_a_killed_run_resumes_with_the_same_bits(tmp_path, text):
    options = [*MODEL, *TRAINING, f"--data={text}"]
    process = start("-m", "gpt.train", *options, "--steps=1000000", f"--out={tmp_path / 'killed'}")
    checkpoints = tmp_path / "killed" / "checkpoints"
    while not any(int(path.name[5:]) for path in checkpoints.glob("step-*")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.kill()
    process.communicate()
    steps = max(int(path.name[5:]) for path in checkpoints.glob("step-*")) + 5
    run("gpt.train", "--resume", str(tmp_path / "killed"), f"--steps={steps}")
    assert run_main(lambda: gpt.train.main([*options, f"--steps={steps}", f"--out={tmp_path / 'here'}"])) == 0
    there, here = (safetensors.numpy.load_file(tmp_path / name / "model.safetensors") for name in ("killed", "here"))
    assert there.keys() == here.keys()
    assert all((there[name] == here[name]).all() for name in here)


def test_processes_share_a_batch(tmp_path, text, trained):
    run("gpt.train", *MODEL, *TRAINING, "--steps=4", f"--data={text}", f"--out={tmp_path / 'run'}", "--team=processes")
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


@pytest.mark.parametrize("tokenizer", ["char", "bpe"])
def test_prepare_with_two_workers_makes_the_same_files(tmp_path, tokenizer):
    (tmp_path / "texts").mkdir()
    for number in range(30):
        (tmp_path / "texts" / f"{number}.txt").write_text(TEXT[number * 7 :], encoding="utf-8", newline="\n")
    size = {"vocab_size": 300} if tokenizer == "bpe" else {}
    options = [f"--tokenizer={tokenizer}", *(f"--vocab-size={value}" for value in size.values())]
    run("data.prepare", str(tmp_path / "texts"), f"--out={tmp_path / 'there'}", "--workers=2", *options)
    prepare(tmp_path / "texts", tmp_path / "here", Settings(tokenizer, workers=2, **size))
    there, here = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("there", "here"))
    assert there == here
    assert "train.bin" in run("data.inspect", str(tmp_path / "there"))
    if tokenizer == "char":
        run("gpt.train", *MODEL, *TRAINING, "--steps=1", f"--data={tmp_path / 'there'}", f"--out={tmp_path / 'run'}")


def test_a_folder_that_another_process_prepares_is_refused(tmp_path, text):
    holder = busy("from data.lock import locked; from pathlib import Path", f"with locked(Path({str(tmp_path)!r})):")
    assert f"error: another process is preparing {tmp_path}; wait" in run("data.prepare", str(text), f"--out={tmp_path}", code=2)
    holder.communicate(b"\n", timeout=PATIENCE)
    assert list(tmp_path.iterdir()) == []
    run("data.prepare", str(text), f"--out={tmp_path}")


def test_tokens_in_use_are_not_replaced(tmp_path, text):
    prepare(text, tmp_path / "out", Settings(val_fraction=0.2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    user = busy(f"import numpy; tokens = numpy.memmap({str(tmp_path / 'out' / 'train.bin')!r}, mode='r')")
    said = run("data.prepare", str(text), f"--out={tmp_path / 'out'}", code=2)
    assert "train.bin: the process cannot access the file because it is being used by another process; close the program" in said
    user.communicate(b"\n", timeout=PATIENCE)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    run("data.prepare", str(text), f"--out={tmp_path / 'out'}")


def test_a_run_in_use_is_refused(trained):
    holder = busy("from gpt.training.run_folder import FolderLock; from pathlib import Path", f"lock = FolderLock(Path({str(trained)!r}))")
    said = run("gpt.train", "--resume", str(trained), "--steps=5", code=2)
    assert f"is in use by process {holder.pid}, which trains there" in said
    holder.communicate(b"\n", timeout=PATIENCE)


def test_a_model_trained_without_posix_generates(trained, tmp_path):
    arguments = ["--checkpoint", str(trained), "--max-new-tokens=10", "--seed=1"]
    assert run("gpt.generate", *arguments, stdin="3 lazy “").startswith("3 lazy “")
    said = run("gpt.chat", *arguments, stdin=f"3 lazy\n\n/save {tmp_path / 'said.txt'}\n/quit\n")
    assert "written to" in said
    assert (tmp_path / "said.txt").read_bytes().startswith(b"3 lazy")


@pytest.mark.parametrize("options", [[], ["--lora-rank=2"]], ids=["all", "lora"])
def test_a_model_trained_without_posix_can_be_finetuned(trained, text, tmp_path, options):
    out = run(
        "gpt.finetune", f"--checkpoint={trained}", f"--data={text}", "--steps=2", "--eval-iters=1", f"--out={tmp_path / 'more'}", *options
    )
    assert "gained" in out or "lost" in out
    run("gpt.finetune", "--resume", str(tmp_path / "more"), "--steps=3")
    run("gpt.generate", "--checkpoint", str(tmp_path / "more" / "best"), "--max-new-tokens=3")


def test_pictures_are_drawn_without_posix(trained, tmp_path):
    pytest.importorskip("matplotlib")
    assert (trained / "loss.png").stat().st_size
    run("gpt.plot", str(trained), f"--out={tmp_path / 'a.svg'}")
    run("gpt.plot", str(trained), "--attention", "--prompt=3 lazy", f"--out={tmp_path / 'b.png'}")
    assert {path.name for path in tmp_path.iterdir()} == {"a.svg", "b.png"}
