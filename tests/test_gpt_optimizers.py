"""--optimizer adamw, muon, sgd: what each trains, exact resume, the same bits with every team, and combinations that are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tensorlite as tl
from gpt import finetune, train
from gpt.config import OPTIMIZERS, GPTConfig, TrainConfig, from_preset
from gpt.errors import UserError, run_main
from gpt.finetuning.run import read_pretraining_record, resolve_settings
from gpt.model import build_model
from gpt.training.memory import estimate_memory
from gpt.training.optimizers import make_optimizer
from gpt.training.pretraining import Pretraining
from gpt.training.run_folder import RunFolder
from gpt.training.trainer import Trainer
from tests.test_old_checkpoints import runs  # noqa: F401

SHAPE = GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=4, n_embd=16, bias=True)
LLAMA = GPTConfig(model="llama", vocab_size=20, block_size=8, n_layer=2, n_head=4, n_kv_head=2, n_embd=16, n_inner=24)
TOKENS = np.random.default_rng(0).integers(20, size=300).astype(np.uint16)


def groups(config, **settings):
    """The names in each group, with its options."""
    model = build_model(config)
    names = {id(p): name for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", **settings))
    return [({names[id(p)].removeprefix("h.0.") for p in group["params"]}, group) for group in optimizer.param_groups]


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest():
    found = groups(replace(SHAPE, n_layer=1, tied_head=False), weight_decay=0.3)
    assert [(names, group["use_muon"], group["split"], group["weight_decay"]) for names, group in found] == [
        ({"attn.c_attn.weight"}, True, (16, 16, 16), 0.3),
        ({"attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}, True, None, 0.3),
        ({"wte.weight", "wpe.weight", "lm_head.weight"}, False, None, 0.3),
        (found[3][0], False, None, 0.0),
    ]
    assert {"attn.c_attn.bias", "ln_1.weight", "ln_f.weight"} <= found[3][0]


def test_llamas_keys_values_and_gates_are_matrices_of_their_own():
    found = {name: group["split"] for names, group in groups(replace(LLAMA, n_layer=1)) for name in names if group["use_muon"]}
    assert found == {"attn.c_attn.weight": (16, 8, 8), "attn.c_proj.weight": None, "mlp.c_fc.weight": (24, 24), "mlp.c_proj.weight": None}


def trainer(optimizer, config=SHAPE, **settings):
    tl.manual_seed(3)
    settings = {"steps": 4, "batch_size": 5, "eval_interval": 100, "eval_iters": 1, "warmup_steps": 1, "shards": 2, **settings}
    return Trainer(build_model(config), TrainConfig(optimizer=optimizer, **settings), TOKENS[:200], TOKENS[200:])


def test_the_team_changes_no_bit():
    """Muon's products are made by the calling thread, with one BLAS thread as in every team."""

    def weights(**settings):
        one = trainer("muon", LLAMA, **settings)
        one.train()
        return {name: p.array.copy() for name, p in one.model.named_parameters()}

    alone = weights(workers=1)
    for other in (weights(workers=2), weights(workers=2, team="processes")):
        for name, array in alone.items():
            np.testing.assert_array_equal(other[name], array, err_msg=name)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(optimizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)  # a picture takes seconds
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    shape, config = from_preset(
        "tiny", optimizer=optimizer, data=str(text), batch_size=4, schedule="constant", eval_interval=100, eval_iters=2, sample_length=0,
        shards=1, block_size=8, n_layer=1, n_head=2, n_embd=16, warmup_steps=0,
    )  # fmt: skip
    for steps, name in ((40, "whole"), (20, "parts")):
        assert Pretraining.new(shape, replace(config, steps=steps, out=str(tmp_path / name))).run() == 0
    assert train.main(["--resume", str(tmp_path / "parts"), "--steps", "40"]) == 0
    checkpoints = [tmp_path / name / "checkpoints" / "step-000040" for name in ("whole", "parts")]
    for file in ("model.safetensors", "optimizer.safetensors"):
        whole, parts = (load_file(folder / file) for folder in checkpoints)
        assert whole.keys() == parts.keys() and whole
        for name, array in whole.items():
            np.testing.assert_array_equal(parts[name], array, err_msg=name)
    printed = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert printed[1] < printed[0] - 0.3  # it learns
    capsys.readouterr()
    assert run_main(lambda: train.main(["--resume", str(tmp_path / "parts"), "--optimizer", "adamw"])) == 2
    assert f"--optimizer is {optimizer} in this run, and cannot be changed to adamw" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_had_adamw(runs, capsys):  # noqa: F811
    assert run_main(lambda: train.main(["--resume", "pretrained", "--optimizer", "muon"])) == 2
    assert "--optimizer is adamw in this run, and cannot be changed to muon" in capsys.readouterr().err


def test_muon_keeps_one_array_for_a_matrix_of_the_blocks():
    muon, adamw, sgd = (estimate_memory(trainer(name)).optimizer for name in ("muon", "adamw", "sgd"))
    matrices = sum(int(p.array.nbytes) for name, p in build_model(SHAPE).named_parameters() if p.ndim == 2 and name.startswith("h."))
    assert (adamw - muon, adamw - sgd) == (matrices, adamw // 2)


def test_optimizers_have_learning_rates_of_their_own():
    rates = {(preset, name): from_preset(preset, optimizer=name)[1].learning_rate for preset in ("tiny", "gpt2") for name in OPTIMIZERS}
    assert rates == {
        ("tiny", "adamw"): 2e-3, ("tiny", "muon"): 8e-3, ("tiny", "sgd"): 0.3,
        ("gpt2", "adamw"): 6e-4, ("gpt2", "muon"): 6e-4, ("gpt2", "sgd"): 0.3,
    }  # fmt: skip
    assert from_preset("tiny", optimizer="sgd", learning_rate=0.02)[1].learning_rate == 0.02


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"optimizer": "adam"}, "unknown optimizer 'adam': did you mean 'adamw'?"),
        ({"optimizer": "lion"}, "unknown optimizer 'lion': it is one of adamw, muon, sgd."),
        ({"momentum": 0.9}, "momentum is for --optimizer muon or sgd, and this one is adamw, which has beta1: got 0.9."),
        ({"optimizer": "sgd", "momentum": 1.0}, "momentum must be at least 0 and below 1, got 1.0."),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**settings)
    assert str(caught.value) == sentence


def test_muon_without_a_matrix_to_train_is_refused():
    with pytest.raises(UserError, match="Muon trains the matrices of a model's blocks, and here there is none to train"):
        make_optimizer(build_model(replace(SHAPE, model="bigram", bias=False)), TrainConfig(optimizer="muon"))


def test_finetuning_with_another_optimizer(runs, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(RunFolder, "plot", lambda self: None)
    given = {"checkpoint": "pretrained", "data": "dog.txt"}
    rate = read_pretraining_record("pretrained")["learning_rate"]
    rates = {name: resolve_settings({**given, "optimizer": name})[1].learning_rate for name in ("adamw", "muon", "sgd")}
    assert rates == {"adamw": pytest.approx(rate / 10), "muon": pytest.approx(8e-4), "sgd": pytest.approx(0.03)}
    argv = ["--checkpoint", "pretrained", "--data", "dog.txt", "--steps", "2", "--sample-length", "0", "--out", "tuned"]
    assert run_main(lambda: finetune.main([*argv, "--optimizer", "muon", "--lora-rank", "2"])) == 2
    assert "--optimizer muon moves whole matrices, and a correction of LoRA is the product of two" in capsys.readouterr().err
    assert finetune.main([*argv, "--optimizer", "muon"]) == 0
    assert "exp_avg" in Path("tuned/checkpoints/step-000002/optimizer.safetensors").read_bytes().decode("latin-1")
