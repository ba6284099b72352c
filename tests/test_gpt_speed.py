"""The speed of training in metrics.jsonl: the work is counted as the formula says, and the share of the peak is its quotient."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.finetuning.classifier import Classifier
from gpt.finetuning.freezing import freeze_blocks
from gpt.finetuning.lora import add_lora
from gpt.model import build_model
from gpt.train import main
from gpt.training.speed import Speed, Work, count_work, measure_peak
from gpt.training.trainer import Trainer
from tensorlite.parallel import Workers
from tensorlite.precision import use_precision
from tests.standin import cublas, machine

MODEL = GPTConfig(vocab_size=17, block_size=16, n_layer=2, n_head=2, n_embd=32)
C, V, T, L = MODEL.n_embd, MODEL.vocab_size, MODEL.block_size, MODEL.n_layer
BLOCK = 12 * C * C  # weights in the linear layers of a block


def model(**changes):
    tl.manual_seed(0)
    return build_model(dataclasses.replace(MODEL, **changes))


@pytest.mark.parametrize("changes", [{}, {"tied_head": False, "bias": True, "dropout": 0.1}])
def test_the_counted_operations_agree_with_the_formula(changes):
    """6 N + 12 L C T, with N the weights of the linear layers; embeddings are looked up, not multiplied."""
    work = count_work(model(**changes), "numpy")
    assert work.per_token == 6 * (L * BLOCK + V * C)
    assert work.per_pair == 12 * L * C
    assert work.operations(5, 8) == 5 * 8 * (6 * (L * BLOCK + V * C) + 12 * L * C * 8)


def test_frozen_layers_need_fewer_operations():
    frozen, corrected = model(tied_head=False), model()
    freeze_blocks(frozen, 1)
    work = count_work(frozen, "numpy")
    assert work.per_token == 2 * BLOCK + 6 * BLOCK + 6 * V * C  # the first block goes forward only
    assert work.per_pair == 4 * C + 12 * C
    add_lora(corrected, ["c_attn"], rank=2, alpha=4.0)
    whole = 6 * (L * BLOCK + V * C)
    assert 0.6 * whole < count_work(corrected, "numpy").per_token < 0.75 * whole  # no gradients of the weights


def test_a_classifier_does_not_use_the_old_head():
    work = count_work(Classifier(model(), ["a", "b"]), "numpy")
    assert work.per_token == 6 * (L * BLOCK + 2 * C)


def test_counting_does_not_change_the_model():
    one = model(dropout=0.5)
    expected = tl.rand(3).numpy()
    one = model(dropout=0.5)
    count_work(one, "numpy")
    assert all(parameter.grad is None for parameter in one.parameters())
    np.testing.assert_array_equal(tl.rand(3).numpy(), expected)  # the thread's stream has not moved


def test_the_share_is_work_over_time_over_peak(monkeypatch):
    clock = iter([10.0, 12.0, 12.0, 12.5, 12.5])
    monkeypatch.setattr("gpt.training.speed.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    speed = Speed()
    speed.work, speed.peak = Work(per_token=100.0, per_pair=10.0), 1e4
    speed.add(np.zeros((3, 8)))
    assert speed.measure() == (24 / 2, 3 * 8 * (100 + 80) / 2, 3 * 8 * (100 + 80) / 2 / 1e4)
    assert speed.measure() == (0, None, None)  # nothing since then


def test_no_share_is_above_one(monkeypatch):
    """A machine that was busy while its peak was measured is faster in training: then that is the peak."""
    clock = iter([10.0, 12.0, 12.0, 16.0, 16.0])
    monkeypatch.setattr("gpt.training.speed.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    speed = Speed()
    speed.work, speed.peak = Work(per_token=100.0, per_pair=10.0), 1e3
    for share in (1, 0.5):  # the second time takes twice as long
        speed.add(np.zeros((3, 8)))
        assert speed.measure().share_of_peak == share
    assert speed.peak == 3 * 8 * (100 + 80) / 2


def test_the_measured_peak_is_a_plausible_speed():
    with Workers(2) as workers:
        assert 1e8 < measure_peak(model(), "numpy", workers) < 1e14


def test_the_peak_of_a_half_precision_is_measured_on_its_products(standin):
    """To round two float32 matrices takes about as long as a product in half precision: it is done before."""
    with Workers(1) as workers, use_precision("bfloat16"):
        assert measure_peak(model().to("cupy"), "cupy", workers) > 0
    assert {call["Atype"] for call in machine.machine.products} == {cublas.R_16BF}
    assert "cast" not in machine.machine.launches


def test_a_bigram_has_no_products_and_no_share():
    speed = Speed()
    with Workers(1) as workers:
        speed.calibrate(model(model="bigram"), "numpy", workers)
    speed.add(np.zeros((3, 8)))
    assert speed.measure().share_of_peak is None


def test_without_memory_for_it_there_is_no_share(monkeypatch):
    def too_much(*_):
        raise MemoryError

    monkeypatch.setattr("gpt.training.speed.measure_peak", too_much)
    speed = Speed()
    with Workers(1) as workers:
        speed.calibrate(model(), "numpy", workers)
    speed.add(np.zeros((3, 8)))
    assert speed.measure().share_of_peak is None


def test_the_share_is_in_the_metrics_and_in_the_line(tmp_path, capsys):
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    shape = ["--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--sample-length=0"]
    steps = ["--steps=12", "--eval-interval=5", "--eval-iters=1", "--log-interval=4"]
    assert run_main(lambda: main([*shape, *steps, f"--data={tmp_path / 'fox.txt'}", f"--out={tmp_path / 'run'}"])) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    shares = [record["share_of_peak"] for record in records if "loss" in record]
    assert len(shares) == 3
    assert all(0 < share < 1 for share in shares)
    assert "% of peak" in capsys.readouterr().err


def test_the_calibration_does_not_change_training():
    def weights(calibrate):
        tl.manual_seed(0)
        tokens = np.arange(600) % 17
        run = Trainer(build_model(dataclasses.replace(MODEL, dropout=0.3)), TrainConfig(batch_size=4, steps=9, workers=1), tokens, tokens)
        with run.workers:
            if calibrate:
                run.speed.calibrate(run.model, "numpy", run.workers)
            for _ in range(3):
                run.update()
        return [parameter.numpy() for parameter in (p.detach() for p in run.model.parameters())]

    for calibrated, plain in zip(weights(True), weights(False), strict=True):
        np.testing.assert_array_equal(calibrated, plain)
