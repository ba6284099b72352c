"""Runs that an earlier version wrote are resumed, loaded and generated from.

`tests/old_checkpoints` holds two runs of 0.1.0, from before gpt was divided into rooms (commit efee1bc): one of gpt.train after 200 steps,
and one of gpt.finetune with LoRA after 4. The losses below are those with which that version went on.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gpt import finetune, train
from gpt.checkpoints.loading import load_model
from gpt.errors import run_main
from gpt.generation.stream import generate_text

OLD = Path(__file__).with_name("old_checkpoints")
NEXT_LOSSES = {
    "pretrained": {201: 1.0595658, 202: 0.7188151, 203: 1.2032260, 204: 0.6469864, 205: 0.8181128, 206: 1.0274808},
    "finetuned": {5: 2.1413081, 6: 0.8628131, 7: 1.1551253, 8: 1.5417356},
}
VAL_LOSS = {"pretrained": 0.5956440, "finetuned": 0.8514463}
PROGRAM = {"pretrained": train.main, "finetuned": finetune.main}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """The two runs, and the texts that they were trained on."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    Path("fox.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    Path("dog.txt").write_text("the lazy dog jumps over the quick brown fox.\n" * 40)


@pytest.mark.parametrize("name", NEXT_LOSSES)
def test_an_old_run_resumes_with_the_expected_losses(runs, name):
    """To 1 in 10,000: another BLAS adds in another order. Without the optimizer's state the second loss is off by more than 1 in 100."""
    steps = max(NEXT_LOSSES[name])
    assert run_main(lambda: PROGRAM[name]([f"--resume={name}", f"--steps={steps}", "--log-interval=1"])) == 0
    records = [json.loads(line) for line in (Path(name) / "metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: record["loss"] for record in records if "loss" in record}
    assert {step: losses[step] for step in NEXT_LOSSES[name]} == pytest.approx(NEXT_LOSSES[name], rel=1e-4)
    assert records[-1]["step"] == steps and records[-1]["val_loss"] == pytest.approx(VAL_LOSS[name], rel=1e-4)


@pytest.mark.parametrize("folder", ["pretrained", "finetuned", "alone", "pretrained/checkpoints/step-000200"])
def test_an_old_model_generates_the_same_text(runs, folder):
    """The adapter alone is merged into the model that it belongs to."""
    Path("alone").mkdir()
    for file in Path("finetuned").glob("adapter.*"):
        shutil.copy(file, "alone")
    model, tokenizer, _ = load_model(folder)
    assert generate_text(model, tokenizer, "the ", 20, temperature=0) == "the lazy brog.\nthe lazy "
