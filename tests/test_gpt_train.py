"""`python -m gpt.train` as a user meets it: what it prints, what it leaves behind, and how it ends."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import gpt.checkpoint
import gpt.training.run_folder
import tensorlite as tl
from gpt.checkpoint import load_model
from gpt.errors import UserError, run_main
from gpt.inference import generate_text
from gpt.train import main
from gpt.training.run_folder import RunFolder
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


def test_a_run_prints_what_it_does_and_leaves_what_it_learnt(tmp_path, options, capsys):
    assert run(options) == 0
    out, err = capsys.readouterr()
    assert f"{len(TEXT):,} characters, {len(set(TEXT))} different ones" in out
    assert "The quick brown fox" in out
    assert f"{30 * 16 + 8 * 16 + 12 * 16**2 + 3 * 16:,} parameters" in out
    assert [line.split(":")[0] for line in out.splitlines() if "validation loss" in line] == [f"step {n:>5}" for n in (0, 5, 10, 12)]
    assert "12/12" in err
    assert "tokens/s" in err

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

    model, tokenizer, _ = load_model(folder)
    assert generate_text(model, tokenizer, "The quick", 20, generator=np.random.default_rng(0)).startswith("The quick")
    assert len(out.rstrip("\n").partition("--checkpoint")[2].partition("\n\n")[2]) >= 29  # the sample


def test_the_weights_that_are_left_have_the_loss_that_was_printed(tmp_path, options):
    assert run(options) == 0
    from data.loader import RandomBatches, split_tokens
    from gpt.training.trainer import EVALUATION
    from tensorlite.random import make_generator

    model, tokenizer, _ = load_model(tmp_path / "run")
    _, validation = split_tokens(tokenizer.encode(TEXT), 0.1)
    batches = RandomBatches(validation, 4, 8, make_generator(1337, EVALUATION))
    losses = [model(*(tl.tensor(array) for array in batches.next_batch()))[1].item() for _ in range(2)]
    assert np.mean(losses) == pytest.approx(json.loads((tmp_path / "run" / "config.json").read_text())["val_loss"], rel=1e-6)


def test_bigram_from_the_command_line(options, capsys):
    assert run([*options, "--preset=bigram"]) == 0
    out = capsys.readouterr().out
    assert f"bigram table: {30 * 30:,} parameters" in out
    assert "Counting pairs in the training text gives validation loss" in out


def test_nothing_is_overwritten(tmp_path, options):
    for _ in range(3):
        assert run([*options, "--steps=1", "--sample-length=0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["run", "run-2", "run-3"]


def test_an_empty_folder_is_taken_as_it_is(tmp_path):
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
def test_a_mistake_gets_one_sentence_and_no_folder(tmp_path, options, capsys, wrong, sentence):
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


def test_a_run_folder_that_cannot_be_made_is_told_before_the_work(tmp_path, options, capsys):
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


def test_a_full_disk_shows_before_the_first_step(options, capsys, monkeypatch):
    monkeypatch.setattr("gpt.checkpoint.write_atomically", full_disk)
    assert run(options) == 2
    out, err = capsys.readouterr()
    assert "no space left on device" in err
    assert "step" not in out


def test_a_disk_that_fills_up_later_costs_a_warning_and_then_the_newest_weights_alone(tmp_path, options, capsys, monkeypatch):
    real, calls = gpt.checkpoint.write_atomically, []

    def filling(path, content):
        calls.append(path)
        (real if len(calls) <= 3 else full_disk)(path, content)

    monkeypatch.setattr("gpt.checkpoint.write_atomically", filling)
    assert run(options) == 2
    err = capsys.readouterr().err
    assert err.count("Training goes on.") == 4  # after each evaluation
    assert err.splitlines()[-1].startswith("error: the checkpoint cannot be saved")
    load_model(tmp_path / "run")  # those from the start are still whole


def test_metrics_that_cannot_be_written_do_not_cost_the_weights(tmp_path, options, capsys, monkeypatch):
    class Full(RunFolder):
        def __init__(self, wanted):
            super().__init__(wanted)
            (self.path / "metrics.jsonl").unlink()
            (self.path / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr("gpt.training.pretraining.RunFolder", Full)
    assert run(options) == 0
    assert capsys.readouterr().err.count("the metrics are not being written") == 1
    assert json.loads((tmp_path / "run" / "config.json").read_text())["step"] == 12
    load_model(tmp_path / "run")


# --- stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
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
    assert "Traceback" not in err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["step"] > 5
    assert f"Stopped after step {config['step']} of 1000000" in out
    model, _, _ = load_model(tmp_path / "run")
    assert math.isfinite(float(np.abs(model.wte.weight.detach().numpy()).max()))


def test_generate_works_from_what_is_left(tmp_path, options):
    assert run([*options, "--sample-length=0"]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "gpt.generate", f"--checkpoint={tmp_path / 'run'}", "--prompt=The lazy", "--max-new-tokens=15", "--seed=1"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The lazy")


def test_a_broken_metric_is_a_user_error_only_at_the_start(tmp_path):
    folder = RunFolder(tmp_path / "run")
    (folder.path / "metrics.jsonl").unlink()
    (folder.path / "metrics.jsonl").mkdir()
    folder.log(step=1)
    folder.log(step=2)
    assert [record["step"] for record in folder.records] == [1, 2]
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        RunFolder(tmp_path / "file")
