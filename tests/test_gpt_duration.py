"""The time of a run, estimated before it, and what is said of a long one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from gpt import train
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.model import build_model
from gpt.training import report
from gpt.training.duration import estimate_seconds, format_duration
from gpt.training.rows import Row, RowBatches
from gpt.training.trainer import Trainer

CONFIG = TrainConfig(steps=10, batch_size=4, eval_interval=5, eval_iters=1, workers=1)


def trainer(**changes):
    model = build_model(GPTConfig(vocab_size=7, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.5))
    return Trainer(model, dataclasses.replace(CONFIG, **changes), np.arange(200) % 7, np.arange(50) % 7)


@pytest.fixture
def one_second_each(monkeypatch):
    """A clock that says that a forward takes a second for each row, and so does a backward."""
    now = iter(range(0, 10**6, 4))  # four rows
    monkeypatch.setattr("gpt.training.duration.time.perf_counter", lambda: next(now))


@pytest.mark.usefixtures("one_second_each")
@pytest.mark.parametrize(
    ("changes", "seconds"),
    [
        ({}, 10 * 4 * 2 + 3 * 2 * 4),  # forward and backward of ten steps; three evaluations of two texts
        ({"steps": 20}, 20 * 4 * 2 + 5 * 2 * 4),
        ({"accumulation": 3}, 3 * 10 * 4 * 2 + 3 * 2 * 4),
        ({"eval_iters": 5}, 10 * 4 * 2 + 3 * 2 * 5 * 4),
    ],
)
def test_the_estimate_counts_steps_and_evaluations(changes, seconds):
    assert estimate_seconds(trainer(**changes)) == seconds


def test_rows_of_different_lengths_are_estimated_by_their_usual_width(monkeypatch):
    """Three of four rows have two tokens and one has eight, in batches of one: the mean, 3.5, is rounded up."""
    rows = [Row(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in (2, 2, 8, 2)]
    batches = RowBatches(rows, 1, seed=0)
    finetuned, shapes = trainer(batch_size=1), []
    finetuned.batches = batches
    forward = type(finetuned.model).forward
    monkeypatch.setattr(type(finetuned.model), "forward", lambda model, x, y: shapes.append(x.shape) or forward(model, x, y))
    estimate_seconds(finetuned)
    assert shapes == [(1, 4)] * 2 and batches.position == 0


def test_the_estimate_does_not_change_training():
    plain, estimated = trainer(), trainer()
    estimated.model.load_state_dict(plain.model.state_dict())
    estimate_seconds(estimated)
    assert [plain.update().item() for _ in range(3)] == [estimated.update().item() for _ in range(3)]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 second"), (40, "40 seconds"), (150, "2 minutes"), (3 * 3600, "3 hours"), (26280, "7 hours"), (5 * 86400, "5 days")],
)
def test_durations_in_words(seconds, words):
    assert format_duration(seconds) == words


@pytest.mark.parametrize(("seconds", "warns"), [(200, False), (7 * 3600, True)])
def test_a_long_run_on_a_cpu_is_announced_with_hours(seconds, warns, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "estimate_seconds", lambda trainer: seconds)
    (tmp_path / "fox.txt").write_text("the quick brown fox " * 50)
    options = [
        "--block-size=8",
        "--steps=1",
        "--eval-iters=1",
        "--sample-length=0",
        "--n-embd=8",
        "--n-head=1",
        f"--out={tmp_path / 'run'}",
    ]
    assert run_main(lambda: train.main([f"--data={tmp_path / 'fox.txt'}", *options])) == 0
    said = capsys.readouterr().out
    assert f"time        about {format_duration(seconds)}\n" in said
    assert ("on this CPU the run takes about 7 hours" in said) == warns
