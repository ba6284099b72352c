"""A finetuning that was stopped and resumed ends with the same bits as an uninterrupted one, for every task."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import load_model_folder, save_model
from gpt.checkpoints.retention import Checkpoints
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.finetune import main
from gpt.finetuning.classifier import load_classifier
from gpt.model import build_model
from gpt.training.stopping import Stopped, StopRequest
from tests.evaluations import told
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
OLD = "the quick brown fox jumps over the lazy dog.\n" * 40
NEW = "god yzal eht revo spmuj xof nworb kciuq eht.\n" * 40
WORDS = sorted(set(OLD.replace(".", "").split()))
TOKENIZER = CharTokenizer.train(OLD + "#:USERASSISTANTuserassistant\n ")
CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=48, n_layer=2, n_head=2, n_embd=16)
SETTINGS = [
    "--steps=16", "--batch-size=4", "--warmup-steps=2", "--eval-interval=5", "--eval-iters=2", "--log-interval=3", "--shards=2",
    "--checkpoint-interval=3", "--dropout=0.2", "--sample-length=5", "--learning-rate=0.01",
]  # fmt: skip
TASKS = {
    "a text, four accumulated": ["--data=new.txt", "--accumulation=4"],
    "a text with LoRA": ["--data=new.txt", "--lora-rank=2"],
    "answers": ["--data=answers.jsonl"],
    "answers, packed": ["--data=answers.jsonl", "--packing=true", "--freeze-blocks=1"],
    "labels": ["--data=labels.csv", "--task=classify"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint to begin with, and something to learn."""
    monkeypatch.chdir(tmp_path)
    Path("old.txt").write_text(OLD)
    Path("new.txt").write_text(NEW)
    Path("answers.jsonl").write_text("".join(json.dumps({"prompt": word, "response": word[::-1]}) + "\n" for word in WORDS * 3))
    Path("labels.csv").write_text("text,label\n" + "".join(f"{word},{'long' if len(word) > 4 else 'short'}\n" for word in WORDS * 4))
    tl.manual_seed(0)
    save_model("base", build_model(CONFIG), TOKENIZER, TrainConfig(data="old.txt", learning_rate=0.02))
    return tmp_path


def run(*argv):
    """As ``__main__`` does it."""
    return run_main(lambda: main([str(argument) for argument in argv]))


def hashes(folder) -> dict[str, str]:
    """SHA-256 of weights and optimizer at the end, and of all that was logged, without what depends on the time of day."""
    checkpoint = Path(folder) / "checkpoints" / "step-000016"
    found = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in ("model.safetensors", "optimizer.safetensors")}
    records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        for name in ("tokens_per_second", "operations_per_second", "share_of_peak", "peak_memory"):
            record.pop(name, None)
    losses = json.loads((Path(folder) / "config.json").read_text())["losses"]
    return found | {"metrics": json.dumps(records), "losses": json.dumps(losses)}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_run_stopped_at_any_point_resumes_exactly(folder, task, monkeypatch):
    options = ["--checkpoint=base", *task, *SETTINGS]
    assert run(*options, "--out=whole") == 0
    checks, patience = 0, 7  # the second is half as long again after each stop: an evaluation asks often, and begins afresh when resumed

    def check(self):
        nonlocal checks, patience
        checks += 1
        if checks == patience:
            checks, patience = 0, patience * 3 // 2
            raise Stopped

    monkeypatch.setattr(StopRequest, "check", check)
    codes = [run(*options, "--out=stopped")]
    while codes[-1] == 130:
        codes.append(run("--resume", "stopped"))
    assert codes[-1] == 0
    assert len(codes) > 3
    assert hashes("stopped") == hashes("whole")
    for file in sorted(path.relative_to("whole") for path in Path("whole").rglob("*.safetensors")):
        assert Path("stopped", file).read_bytes() == Path("whole", file).read_bytes(), file


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "SIGTERM"])
def test_a_killed_process_resumes_exactly(folder, number):
    options = ["--checkpoint=base", "--data=new.txt", "--lora-rank=2", *SETTINGS]
    assert run(*options, "--out=whole") == 0
    command = [sys.executable, "-m", "gpt.finetune", *options, "--out=ended"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_with_path())
    patience = time.monotonic() + PATIENCE
    while process.poll() is None and not list(Path("ended/checkpoints").glob("step-000003")):
        assert time.monotonic() < patience
        time.sleep(0.002)
    time.sleep(random.Random(3).random() * 0.05)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode in (0, 130, -number), errors
    assert Checkpoints(Path("ended")).load_latest().step <= 16
    assert run("--resume", "ended") == 0
    assert hashes("ended") == hashes("whole")


def _with_path():
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_resuming_does_not_need_the_base_model(folder):
    options = ["--checkpoint=base", "--data=answers.jsonl", *SETTINGS]
    assert run(*options, "--out=whole") == 0
    assert run(*options, "--out=short", "--time-limit=1e-6") == 0
    shutil.rmtree("base")
    assert run("--resume", "--out=short", "--time-limit=60") == 0
    assert hashes("short") == hashes("whole")


def test_the_time_limit_prints_how_to_resume(folder, capsys):
    assert run("--checkpoint=base", "--data=new.txt", *SETTINGS, "--out=short", "--time-limit=1e-6") == 0
    assert "The time is up: stopped after step 0 of 16." in (out := capsys.readouterr().out)
    assert "python -m gpt.finetune --resume short" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lora-rank=3"], "--lora-rank is 2 in this run, and cannot be changed to 3"),
        (["--dropout=0.5"], "--dropout is 0.2 in this run"),
        (["--task=classify"], "--task is text in this run"),
        (["--data=old.txt"], "was trained on another text than old.txt now holds"),
    ],
)
def test_settings_that_cannot_change_on_resume_are_refused(folder, capsys, options, message):
    assert run("--checkpoint=base", "--data=new.txt", "--lora-rank=2", *SETTINGS, "--out=run") == 0
    assert run("--resume", "run", *options) == 2
    assert message in capsys.readouterr().err


def test_other_examples_are_refused(folder, capsys):
    assert run("--checkpoint=base", "--data=labels.csv", *SETTINGS, "--out=run") == 0
    Path("labels.csv").write_text(Path("labels.csv").read_text().replace("dog,short", "dog,long", 1))
    assert run("--resume", "run") == 2
    assert "was trained on another text" in capsys.readouterr().err


def test_each_program_resumes_only_its_own_runs(folder, capsys):
    from gpt.train import main as train

    assert run("--checkpoint=base", "--data=new.txt", *SETTINGS, "--out=run") == 0
    assert run_main(lambda: train(["--resume", "run"])) == 2
    assert "run is a run of another program: python -m gpt.finetune --resume run" in capsys.readouterr().err
    shape = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8"]
    short = ["--steps=2", "--sample-length=0", "--eval-iters=1", "--batch-size=2", "--data=old.txt", "--out=first"]
    assert run_main(lambda: train([*shape, *short])) == 0
    assert run("--resume", "first") == 2
    assert "python -m gpt.train --resume first" in capsys.readouterr().err


# --- the best weights, and an early end ----------------------------------------------------------------


@pytest.mark.parametrize("task", [["--data=new.txt"], ["--data=new.txt", "--lora-rank=2"], ["--data=labels.csv"]], ids=str)
def test_the_best_weights_are_kept_beside_the_last(folder, task, capsys, monkeypatch):
    told(monkeypatch, 3.0, 2.5, 2.0, 1.25, 1.5, 1.75)  # at the steps 0, 3, 6, 9, 12 and 15
    assert run("--checkpoint=base", *task, *SETTINGS, "--eval-interval=3", "--steps=15", "--out=run") == 0
    record = json.loads(Path("run/best/config.json").read_text())
    assert (record["step"], record["val_loss"]) == (9, 1.25)
    assert json.loads(Path("run/config.json").read_text())["step"] == 15
    assert "best        validation 1.2500 after step 9: run/best" in capsys.readouterr().out
    best, last = ([p.numpy() for p in load_model_folder(path)[0].state_dict().values()] for path in ("run/best", "run"))
    assert any(not np.array_equal(a, b) for a, b in zip(best, last, strict=True))
    if "labels.csv" in task[0]:
        assert load_classifier("run/best")[0].labels == ["long", "short"]
    if len(task) > 1:
        assert Path("run/best/adapter.safetensors").read_bytes() != Path("run/adapter.safetensors").read_bytes()


def test_patience_ends_a_finetuning_without_improvement(folder, capsys, monkeypatch):
    told(monkeypatch, 3.0, 2.0, 2.5, 2.25)
    assert run("--checkpoint=base", "--data=new.txt", *SETTINGS, "--patience=2", "--steps=400", "--out=run") == 0
    assert "2 evaluations without a better validation loss" in capsys.readouterr().out
    assert json.loads(Path("run/config.json").read_text())["step"] == 15


def test_dropout_is_the_requested_one(folder):
    short = [*SETTINGS, "--steps=1"]
    assert run("--checkpoint=base", "--data=new.txt", *short, "--dropout=0.5", "--out=dropped") == 0
    assert run("--checkpoint=base", "--data=new.txt", *short, "--dropout=0", "--out=none") == 0
    assert load_model_folder("dropped")[2].dropout == 0.5
    one, other = (load_model_folder(path)[0].state_dict() for path in ("dropped", "none"))
    assert any(not np.array_equal(one[name].numpy(), other[name].numpy()) for name in one)
    assert run("--checkpoint=dropped", "--data=new.txt", *[s for s in short if "dropout" not in s], "--out=again") == 0
    assert load_model_folder("again")[2].dropout == 0.5
    assert run("--checkpoint=base", "--data=new.txt", "--dropout=1", "--out=never") == 2


# --- trouble ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_is_named_with_its_layer(folder, capsys):
    model, tokenizer, _ = load_model_folder("base")
    model.h[1].mlp.c_fc.weight.array[0, 0] = np.nan
    save_model("broken", model, tokenizer, TrainConfig(data="old.txt"))
    assert run("--checkpoint=broken", "--data=new.txt", "--lora-rank=2", *SETTINGS, "--out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the first op whose output is not finite is linear in h.1.mlp.c_fc" in error
    assert "the parameter h.1.mlp.c_fc.weight has 1 of" in error


def test_too_little_memory_gets_advice(folder, capsys, monkeypatch):
    from gpt.training.trainer import Trainer

    def update(self):
        np.empty(2**60, np.uint8)

    monkeypatch.setattr(Trainer, "update", update)
    assert run("--checkpoint=base", "--data=answers.jsonl", *SETTINGS, "--out=run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (Unable to allocate 1.00 EiB" in error
    assert "--batch-size 2 --accumulation 2" in error
    assert "--block-size" not in error, "that is the checkpoint's to decide"
    assert "The checkpoint of step 0 is complete: --resume run." in error
