"""A run that was stopped, killed or ended by the time limit resumes and ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from gpt.checkpoints.retention import Checkpoints
from gpt.errors import run_main
from gpt.train import main
from gpt.training.fingerprint import fingerprint, is_same_data
from tensorlite.op import use_kernels
from tests.evaluations import told
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60
SETTINGS = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--warmup-steps=2", "--dropout=0.2", "--shards=2",
    "--steps=40", "--eval-interval=10", "--eval-iters=2", "--log-interval=4", "--checkpoint-interval=3", "--sample-length=0",
]  # fmt: skip


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "fox.txt"
    file.write_text(TEXT)
    return file


def run(*argv):
    """As ``__main__`` does it."""
    return run_main(lambda: main([str(argument) for argument in argv]))


def hashes(folder: Path, step: int = 40) -> dict[str, str]:
    """SHA-256 of weights and optimizer at ``step``, and of all that was logged, without what depends on the time of day."""
    checkpoint = folder / "checkpoints" / f"step-{step:06}"
    found = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in ("model.safetensors", "optimizer.safetensors")}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("tokens_per_second", None)
        record.pop("operations_per_second", None)
        record.pop("share_of_peak", None)
        record.pop("peak_memory", None)
    return found | {"metrics": hashlib.sha256(json.dumps(records).encode()).hexdigest(), "lines": str(len(records))}


@pytest.fixture(params=[1, 4], ids=["one batch a step", "four accumulated"])
def undisturbed(request, tmp_path, corpus):
    """The settings of a run, and what it comes to in one go."""
    settings = [*SETTINGS, f"--data={corpus}", f"--accumulation={request.param}"]
    assert run(*settings, f"--out={tmp_path / 'whole'}") == 0
    return settings, hashes(tmp_path / "whole")


def start(*argv) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "gpt.train", *map(str, argv)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def disturb(process: subprocess.Popen, folder: Path, rng: random.Random, how: int = signal.SIGKILL) -> None:
    """Wait until the run has done something new, and a little more; then end it."""
    metrics = folder / "metrics.jsonl"
    before = metrics.read_text() if metrics.exists() else ""
    patience = time.monotonic() + PATIENCE
    while process.poll() is None and (metrics.read_text() if metrics.exists() else "") == before:
        assert time.monotonic() < patience
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    process.send_signal(how)
    process.communicate()


def test_a_run_killed_repeatedly_ends_with_the_same_bits(tmp_path, undisturbed):
    settings, expected = undisturbed
    rng, folder = random.Random(int(os.environ.get("KILL_SEED", "0"))), tmp_path / "killed"
    process = start(*settings, f"--out={folder}")
    kills = int(os.environ.get("KILLS", "2"))  # for each of the two settings; many more were made by hand
    for _ in range(kills):
        disturb(process, folder, rng)
        assert Checkpoints(folder).load_latest().step <= 40
        process = start("--resume", folder)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert hashes(folder) == expected


def test_stopped_and_resumed_within_one_process(tmp_path, undisturbed, monkeypatch):
    """At every step there is, in turn: the state is whole between any two."""
    settings, expected = undisturbed
    folder = tmp_path / "stopped"
    from gpt.training.stopping import Stopped, StopRequest

    checks = []

    def check(self):
        checks.append(None)
        if len(checks) % 9 == 0:
            raise Stopped

    monkeypatch.setattr(StopRequest, "check", check)
    codes = [run(*settings, f"--out={folder}")]
    while codes[-1] == 130:
        codes.append(run("--resume", folder))
    assert codes[-1] == 0
    assert len(codes) > 6
    assert hashes(folder) == expected


def test_the_time_limit_stops_and_prints_how_to_resume(tmp_path, corpus, capsys):
    settings = [*SETTINGS, f"--data={corpus}"]
    assert run(*settings, f"--out={tmp_path / 'whole'}") == 0
    folder = tmp_path / "short"
    assert run(*settings, f"--out={folder}", "--time-limit=1e-6") == 0
    assert f"python -m gpt.train --resume {folder}" in capsys.readouterr().out
    assert run("--resume", "--out", folder, "--time-limit=60") == 0
    assert hashes(folder) == hashes(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_run_stopped_by_a_signal_ends_with_the_same_bits(tmp_path, corpus, number):
    settings = [*SETTINGS, f"--data={corpus}"]
    assert run(*settings, f"--out={tmp_path / 'whole'}") == 0
    folder = tmp_path / "stopped"
    disturb(start(*settings, f"--out={folder}"), folder, random.Random(1), number)
    assert run("--resume", folder) == 0
    assert hashes(folder) == hashes(tmp_path / "whole")


def test_a_finished_run_can_be_given_more_steps(tmp_path, corpus):
    settings = [*SETTINGS, f"--data={corpus}", "--schedule=constant"]
    assert run(*settings, f"--out={tmp_path / 'whole'}") == 0
    assert run(*settings, "--steps=20", f"--out={tmp_path / 'more'}") == 0
    assert run("--resume", tmp_path / "more", "--steps=40") == 0
    assert hashes(tmp_path / "more") == hashes(tmp_path / "whole")


def test_a_changed_end_of_the_schedule_prints_its_effect_on_the_learning_rate(finished, capsys):
    assert run("--resume", finished, "--steps=80") == 0
    assert (
        "note: the learning rate now falls (schedule cosine) until step 80 instead of 40: it goes on at 0.00109 instead of 0.0001."
        in capsys.readouterr().err
    )
    rates = [
        record["learning_rate"]
        for record in map(json.loads, (finished / "metrics.jsonl").read_text().splitlines())
        if "learning_rate" in record
    ]
    assert rates[9] < 1.1e-4 < 9e-4 < rates[10], "steps 40 and 44"


def test_fewer_steps_than_already_made_are_refused(finished, capsys):
    before = sorted(finished.rglob("*"))
    assert run("--resume", finished, "--steps=20") == 2
    assert "--steps is 20, but this run has made 40 steps already" in capsys.readouterr().err
    assert sorted(finished.rglob("*")) == before


# --- what is kept --------------------------------------------------------------------------------------


def test_the_last_few_and_the_best_are_kept(tmp_path, corpus, monkeypatch):
    folder = tmp_path / "run"
    told(monkeypatch, 3.0, 2.0, 2.5, 2.25, 2.125)  # at the steps 0, 10, 20, 30 and 40
    assert run(*SETTINGS, f"--data={corpus}", f"--out={folder}", "--keep-last=3") == 0
    assert Checkpoints(folder).steps() == [10, 36, 39, 40]


def test_a_checkpoint_alone_is_enough_to_generate(tmp_path, corpus):
    assert run(*SETTINGS, f"--data={corpus}", f"--out={tmp_path / 'run'}") == 0
    from gpt.checkpoints.model_folder import load_model_folder

    model, _, _ = load_model_folder(tmp_path / "run" / "checkpoints" / "step-000040")
    weights = safetensors.numpy.load_file(tmp_path / "run" / "model.safetensors")
    assert all((model.state_dict()[name].numpy() == array).all() for name, array in weights.items())


def test_patience_ends_a_run_without_improvement(tmp_path, corpus, capsys, monkeypatch):
    folder = tmp_path / "run"
    told(monkeypatch, 3.0, 2.0, 2.5, 1.5, 2.0, 1.75)  # the first 2.5 is one too few: patience begins again at 1.5
    assert run(*SETTINGS, f"--data={corpus}", f"--out={folder}", "--steps=400", "--patience=2") == 0
    assert "2 evaluations without a better validation loss" in capsys.readouterr().out
    steps = Checkpoints(folder).steps()
    assert steps[-1] == 50
    assert run("--resume", folder) == 0  # nothing is left to do
    assert Checkpoints(folder).steps() == steps


# --- falling back --------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path, corpus):
    assert run(*SETTINGS, f"--data={corpus}", f"--out={tmp_path / 'run'}") == 0
    return tmp_path / "run"


def test_a_damaged_checkpoint_costs_a_warning_and_a_few_steps(finished, capsys):
    expected = hashes(finished)
    file = finished / "checkpoints" / "step-000040" / "optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert run("--resume", finished) == 0
    out, err = capsys.readouterr()
    assert f"warning: {file} is damaged: its bytes are not those that were written. Trying the one before." in err
    assert "resumed     after step 39" in out
    assert hashes(finished) == expected
    assert Checkpoints(finished).steps() == [39, 40]


def test_a_run_without_a_complete_checkpoint_is_an_error(finished, capsys):
    for step in Checkpoints(finished).steps():
        (finished / "checkpoints" / f"step-{step:06}" / "manifest.json").unlink()
    before = sorted(finished.rglob("*"))
    assert run("--resume", finished) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")
    assert sorted(finished.rglob("*")) == before


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--n-layer=2"], "--n-layer is 1 in this run, and cannot be changed to 2"),
        (["--learning-rate=1"], "--learning-rate is 0.002 in this run"),
        (["--steps=0"], "steps must be at least 1"),
        (["--data=/nowhere"], "/nowhere"),
        (["--out=elsewhere"], "a run goes on in its own folder, "),
    ],
)
def test_settings_that_cannot_change_on_resume_are_refused(finished, capsys, options, sentence):
    assert run("--resume", finished, *options) == 2
    assert sentence in capsys.readouterr().err


def test_another_text_is_refused(finished, corpus, capsys):
    corpus.write_text(TEXT.replace("lazy dog", "dog lazy"))
    assert run("--resume", finished) == 2
    assert "was trained on another text" in capsys.readouterr().err
    corpus.write_text(TEXT + "ß")
    assert run("--resume", finished) == 2
    assert "was trained with another tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize("place", [1_500, 1_001_500, 2_099_999])
def test_one_changed_character_in_a_long_text_is_detected(tmp_path, capsys, place):
    (tmp_path / "long.txt").write_text("abcdefg" * 300_000)
    assert run(*SETTINGS, f"--data={tmp_path / 'long.txt'}", "--steps=1", f"--out={tmp_path / 'run'}") == 0
    text = bytearray((tmp_path / "long.txt").read_bytes())
    text[place] = ord("a") if text[place] != ord("a") else ord("b")
    (tmp_path / "long.txt").write_bytes(text)
    assert run("--resume", tmp_path / "run", "--steps=2") == 2
    assert "was trained on another text than" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_version_compares_the_length_of_the_text():
    found = fingerprint({"training text": np.arange(300), "validation text": np.arange(20)})
    assert is_same_data(found, found)
    assert is_same_data({"training text": [300, "ab12"], "validation text": [20, "cd34"]}, found)
    for recorded in (
        {"training text": [301, "ab12"], "validation text": [20, "cd34"]},
        {"training text": [300, "sha256:ab12"], "validation text": found["validation text"]},
        {"training text": 300, "validation text": "x"},
        {},
    ):
        assert not is_same_data(recorded, found)


def test_a_change_of_the_arithmetic_gets_a_warning(tmp_path, corpus, capsys, monkeypatch):
    """Another kernel of the BLAS, or the book instead of the fast pairs: the same run, but not to the last bit."""
    settings = [*SETTINGS, f"--data={corpus}", "--schedule=constant", "--steps=4"]
    with use_kernels("fast"):
        assert run(*settings, f"--out={tmp_path / 'run'}") == 0
        assert run("--resume", tmp_path / "run", "--steps=5") == 0
    assert "was written with" not in capsys.readouterr().err
    monkeypatch.setattr("gpt.checkpoints.model_folder._blas", lambda: "a BLAS of another kind")
    with use_kernels("book"):
        assert run("--resume", tmp_path / "run", "--steps=6") == 0
    err = capsys.readouterr().err
    assert "(now a BLAS of another kind), TENSORLITE_KERNELS fast (now book): the last bits of what follows may differ." in err


def test_a_folder_that_is_not_a_run_is_refused(tmp_path, finished, capsys):
    pickled = tmp_path / "weights.pt"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    for path, sentence in {
        pickled: "is a pickle or a torch file, which can run code when it is opened and is therefore not read",
        finished / "config.json": "is a file",
        finished / "checkpoints" / "step-000040": f"give the folder of the run, {finished}",
        tmp_path / "rum": f"did you mean {finished}?",
        tmp_path: "no complete checkpoint",
    }.items():
        assert run("--resume", path) == 2
        assert sentence in capsys.readouterr().err
    assert run("--resume") == 2
    assert "which run is to go on?" in capsys.readouterr().err


def test_two_runs_cannot_share_a_folder(tmp_path, corpus, capsys):
    folder = tmp_path / "run"
    process = start(*SETTINGS, f"--data={corpus}", f"--out={folder}", "--steps=1000000")
    try:
        patience = time.monotonic() + PATIENCE
        while not (folder / "checkpoints" / "step-000000").exists():
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.02)
        assert run("--resume", folder) == 2
        assert f"is in use by process {process.pid}" in capsys.readouterr().err
    finally:
        process.kill()
        process.communicate()
    shutil.rmtree(folder / "checkpoints")
    assert run("--resume", folder) == 2
    assert "no complete checkpoint" in capsys.readouterr().err  # the lock went with the process
