"""`python -m gpt.train` as a user meets it: what it prints, what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import gpt.checkpoints.model_folder
import gpt.checkpoints.snapshot
import gpt.training.run_folder
import tensorlite as tl
from gpt.checkpoints.model_folder import load_model_folder
from gpt.config import from_preset
from gpt.errors import UserError, run_main
from gpt.generation.stream import generate_text
from gpt.train import main
from gpt.training.report import table
from gpt.training.run_folder import RunFolder
from gpt.training.stopping import StopRequest
from gpt.training.trainer import learning_rate_factor
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60
TINY = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--warmup-steps=2",
    "--steps=12", "--eval-interval=5", "--eval-iters=2", "--log-interval=4", "--sample-length=30",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "fox.txt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def options(tmp_path, corpus):
    return [*TINY, f"--data={corpus}", f"--out={tmp_path / 'run'}"]


def run(argv):
    """As ``__main__`` does it."""
    return run_main(lambda: main(argv))


def test_a_run_prints_its_progress_and_saves_the_weights(tmp_path, options, capsys):
    assert run(options) == 0
    out, err = capsys.readouterr()
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} different ones" in out
    assert "The quick brown fox" in out
    assert f"{30 * 16 + 8 * 16 + 12 * 16**2 + 3 * 16:,} parameters" in out
    assert [line.split(":")[0] for line in out.splitlines() if "validation loss" in line] == [f"step {n:>5}" for n in (0, 5, 10, 12)]
    assert "step 12/12, " in err
    assert "tokens/s" in err
    assert "\r" not in out + err, "a bar is for terminals"

    folder = tmp_path / "run"
    files = {"config.json", "metrics.jsonl", "model.safetensors", "tokenizer.json", "loss.png", "checkpoints", ".lock"}
    assert {file.name for file in folder.iterdir()} == files
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["steps"] == config["step"] == 12
    assert config["model"]["n_embd"] == 16
    assert config["model"]["vocab_size"] == 30
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_loss" in record] == [0, 5, 10, 12]
    assert [record["step"] for record in records if "loss" in record] == [4, 8, 12]
    assert all(record["tokens_per_second"] > 0 for record in records if "loss" in record)
    assert records[-1]["val_loss"] == config["val_loss"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")

    model, tokenizer, _ = load_model_folder(folder)
    assert generate_text(model, tokenizer, "The quick", 20, generator=np.random.default_rng(0)).startswith("The quick")
    assert len(out.rstrip("\n").partition("--checkpoint")[2].partition("\n\n")[2]) >= 29  # the sample


def test_the_saved_weights_have_the_printed_loss(tmp_path, options):
    assert run(options) == 0
    from data.loader import RandomBatches, split_tokens
    from gpt.config import RandomStream
    from tensorlite.random import make_generator

    model, tokenizer, _ = load_model_folder(tmp_path / "run")
    _, validation = split_tokens(tokenizer.encode(TEXT), 0.1)
    batches = RandomBatches(validation, 4, 8, make_generator(1337, RandomStream.EVALUATION))
    losses = [model(*(tl.tensor(array) for array in batches.next_batch()))[1].item() for _ in range(2)]
    assert np.mean(losses) == pytest.approx(json.loads((tmp_path / "run" / "config.json").read_text())["val_loss"], rel=1e-6)


def test_bigram_from_the_command_line(options, capsys):
    assert run([*options, "--preset=bigram"]) == 0
    out = capsys.readouterr().out
    assert f"bigram table: {30 * 30:,} parameters" in out
    assert "Counting pairs in the training text gives validation loss" in out


def test_an_existing_run_is_not_overwritten(tmp_path, options):
    for _ in range(3):
        assert run([*options, "--steps=1", "--sample-length=0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run", "run-2", "run-3"]


def test_an_empty_folder_can_be_the_run_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    assert RunFolder(tmp_path / "mine").path == tmp_path / "mine"


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, options, capsys, monkeypatch):
    monkeypatch.setattr(gpt.training.run_folder, "can_plot", lambda: False)
    assert run(options) == 0
    assert "loss.png needs matplotlib: pip install 'tensorlite[plot]'." in capsys.readouterr().out
    assert not (tmp_path / "run" / "loss.png").exists()


# --- mistakes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        (["--stepz=4"], "unknown option --stepz: did you mean --steps?"),
        (["--preset=tin"], "did you mean 'tiny'?"),
        (["--n-head=3"], "16 is not divisible by 3"),
        (["--batch-size=-1"], "batch_size must be at least 1, got -1."),
        (["--backend=nunpy"], "unknown device 'nunpy'"),
        (["--data=/nowhere/fox.txt"], "/nowhere/fox.txt"),
        (["--block-size=10000"], "too short"),
    ],
)
def test_a_wrong_option_gets_one_sentence_and_makes_no_folder(tmp_path, options, capsys, wrong, sentence):
    assert run([*options, *wrong]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_cupy_without_a_gpu_says_what_is_missing(tmp_path, options, capsys):
    try:
        tl.Device("cupy").module  # noqa: B018 - asking is the test
    except tl.DeviceUnavailableError as error:
        sentence = str(error)
    else:
        pytest.skip("there is a GPU here")
    assert run([*options, "--backend=cupy"]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_cannot_be_made_is_reported_before_training(tmp_path, options, capsys):
    (tmp_path / "taken").write_text("a file")
    for out in (tmp_path / "taken", tmp_path / "taken" / "run"):
        assert run([*options, f"--out={out}"]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: the run folder cannot be written")
        assert "step" not in out


def test_a_run_folder_without_permission(tmp_path, options, capsys, monkeypatch):
    def denied(*args, **kwargs):  # said by the system, and not by chmod: root may write anywhere
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", denied)
    assert run([*options, f"--out={tmp_path / 'mine' / 'run'}"]) == 2
    assert "permission denied; choose a folder that you may write to" in capsys.readouterr().err


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_reported_before_the_first_step(options, capsys, monkeypatch):
    monkeypatch.setattr("gpt.checkpoints.model_folder.write_atomically", full_disk)
    assert run(options) == 2
    out, err = capsys.readouterr()
    assert "no space left on device" in err
    assert "step" not in out


def test_a_disk_that_fills_up_later_gives_a_warning_and_keeps_only_the_newest_weights(tmp_path, options, capsys, monkeypatch):
    real, calls = gpt.checkpoints.model_folder.write_atomically, []

    def filling(path, content):
        calls.append(path)
        (real if len(calls) <= 3 else full_disk)(path, content)

    monkeypatch.setattr("gpt.checkpoints.model_folder.write_atomically", filling)
    assert run(options) == 2
    err = capsys.readouterr().err
    assert err.count("Training goes on.") == 4  # after each evaluation
    assert err.splitlines()[-1].startswith("error: the checkpoint cannot be saved")
    load_model_folder(tmp_path / "run")  # those from the start are still whole


def test_metrics_that_cannot_be_written_do_not_lose_the_weights(tmp_path, options, capsys, monkeypatch):
    class Full(RunFolder):
        def __init__(self, wanted):
            super().__init__(wanted)
            (self.path / "metrics.jsonl").unlink()
            (self.path / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr("gpt.training.run.RunFolder", Full)
    assert run(options) == 0
    assert capsys.readouterr().err.count("the metrics are not being written") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12
    load_model_folder(tmp_path / "run")


# --- stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", StopRequest.SIGNALS, ids=lambda number: number.name)
def test_stopping_keeps_the_weights(tmp_path, options, number):
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt.train", *options, "--steps=1000000", "--log-interval=1"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        patience = time.monotonic() + PATIENCE
        while not (metrics.exists() and metrics.read_text().count("\n") > 20):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < patience
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    assert f"The weights are saved in {tmp_path / 'run'}." in out
    assert f"{number.name}: stopping and saving" in err
    assert "Traceback" not in err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["step"] > 5
    assert f"Stopped after step {config['step']} of 1000000" in out
    model, _, _ = load_model_folder(tmp_path / "run")
    assert math.isfinite(float(np.abs(model.wte.weight.detach().numpy()).max()))


def test_generate_works_with_the_saved_weights(tmp_path, options):
    assert run([*options, "--sample-length=0"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "gpt.generate", f"--checkpoint={tmp_path / 'run'}", "--prompt=The lazy", "--max-new-tokens=15", "--seed=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The lazy")


def test_metrics_that_cannot_be_written_are_an_error_only_at_the_start(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "metrics.jsonl").unlink()
    (folder.path / "metrics.jsonl").mkdir()
    folder.log(step=1)
    folder.log(step=2)
    assert folder.logged == 0
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        RunFolder(tmp_path / "file")


# --- closed streams -----------------------------------------------------------------------------------


def trained_with(options, **streams) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "gpt.train", *options], cwd=ROOT, timeout=PATIENCE, text=True, **streams)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_log_on_a_full_disk_gives_one_warning(tmp_path, options):
    with open("/dev/full", "w") as full:
        done = trained_with(options, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning: standard output cannot be written (no space left on device)") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12


def test_a_closed_pipe_does_not_end_the_training(tmp_path, options):
    """As ``| head -1`` does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gpt.train", *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().startswith("corpus")
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=PATIENCE) == 0, err
    assert "Traceback" not in err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12


def test_training_works_without_standard_output_and_error(tmp_path, options):
    close = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, '-m', 'gpt.train', *sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", close, *options], cwd=ROOT, timeout=PATIENCE)
    assert done.returncode == 0
    load_model_folder(tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12


def test_without_room_for_a_checkpoint_only_the_weights_are_saved(tmp_path, options, capsys, monkeypatch):
    real = gpt.checkpoints.snapshot._write

    def filling(path, content):
        (full_disk if "step-000000" not in str(path) else real)(path, content)

    monkeypatch.setattr(gpt.checkpoints.snapshot, "_write", filling)
    assert run(options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the checkpoint cannot be saved: ")
    assert f"The weights of step 12 alone are saved in {tmp_path / 'run'}." in error
    assert f"The checkpoint of step 0 is complete: --resume {tmp_path / 'run'}." in error
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12


def test_an_error_in_the_picture_does_not_lose_a_finished_training(tmp_path, options, capsys, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no fonts here")

    monkeypatch.setattr(gpt.training.run_folder, "plot_losses", broken)
    assert run(options) == 0
    out, err = capsys.readouterr()
    assert "loss.png cannot be drawn: matplotlib ended with RuntimeError: no fonts here" in err
    assert "Weights, tokenizer and metrics are in" in out


@pytest.mark.parametrize("name", ["a$^$b", "_x", os.fsdecode(b"\xff"), "a\tb"], ids=ascii)
def test_a_folder_of_any_name(tmp_path, options, name):
    try:
        (tmp_path / name).mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system has no such name")
    assert run([*options, f"--out={tmp_path / name / 'run'}"]) == 0
    assert run([*options, f"--out={tmp_path / 'in'}", f"--out={tmp_path / name}"]) == 0
    assert (tmp_path / name / "run" / "loss.png").exists()
    assert list(tmp_path.glob("*/loss.png"))


def test_a_picture_needs_no_display(tmp_path, options):
    """A notebook names its own backend to the programs that it starts."""
    done = trained_with(options, env={**os.environ, "MPLBACKEND": "module://a_notebooks.own"}, capture_output=True)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "run" / "loss.png").exists()


# --- what is told -------------------------------------------------------------------------------------


def test_a_sample_is_printed_with_its_step(options, capsys):
    assert run([*options, "--sample-interval=5", "--sample-length=7"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if "the model writes" in line] == [f"step {n:>5}: the model writes" for n in (5, 10)]


def test_the_learning_rate_of_a_step_is_logged_with_it(tmp_path, options):
    assert run([*options, "--log-interval=1", "--warmup-steps=3"]) == 0
    config = from_preset("tiny", steps=12, warmup_steps=3)[1]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {record["step"]: record["learning_rate"] for record in records if "loss" in record}
    assert rates == {step: config.learning_rate * learning_rate_factor(step - 1, config) for step in range(1, 13)}


def test_lines_are_broken_between_words():
    rows = {"ops": "relu: cpu, gelu: cpu, attention: cpu, all others: book", "folder": "runs/a-name-longer-than-the-line", "none": ""}
    assert table(rows, 40) == [
        "ops         relu: cpu, gelu: cpu,", "            attention: cpu, all others:", "            book",
        "folder      runs/a-name-longer-than-the-line", "none        ",
    ]  # fmt: skip
    assert table(rows) == [f"{name:<12}{text}" for name, text in rows.items()]


def test_logged_records_are_not_kept_in_memory(tmp_path):
    folder = RunFolder(tmp_path / "run")

    def log(count):
        for step in range(count):
            folder.log(step=step, loss=1.0, gradient_norms={f"h.{layer}": 0.1 for layer in range(12)})
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = log(100)
        assert log(2000) - before < 100_000
    finally:
        tracemalloc.stop()
    assert folder.logged == len(list(folder.records())) == 2100


def test_a_line_that_a_full_disk_has_cut_is_removed(tmp_path, monkeypatch, capsys):
    """Otherwise the next one, when there is room again, would follow on the half of it."""
    folder = RunFolder(tmp_path / "run")
    folder.log(step=1)
    real = open

    class Nearly:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, content):
            return self.file.write(content[:5])

    monkeypatch.setattr("builtins.open", lambda *args, **options: Nearly(real(*args, **options)))
    folder.log(step=2)
    monkeypatch.undo()
    folder.log(step=3)
    assert [record["step"] for record in folder.records()] == [1, 3]
    assert "no space left on device" in capsys.readouterr().err
