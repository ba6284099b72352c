"""The whole model on a GPU, or on the stand-in for CuPy, against its torch twin on the CPU, in every precision; and what can go wrong."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.model import build_model
from gpt.train import main
from gpt.training.trainer import Trainer
from tensorlite.precision import PRECISIONS, use_precision
from tests.standin import machine
from tests.torch_gpt import twin_of

SMALL = GPTConfig(vocab_size=61, block_size=40, n_layer=2, n_head=3, n_embd=48)
CONFIGS = {
    "no bias, tied, gelu": {},
    "bias, untied, relu": {"bias": True, "tied_head": False, "head_bias": True, "activation": "relu", "scaled_init": False},
    "bias, tied, gelu_tanh": {"bias": True, "activation": "gelu_tanh"},
    "sinusoidal": {"positions": "sinusoidal"},
}
ERRORS = {"float32": 3e-6, "tf32": 3e-3, "bfloat16": 2e-2, "float16": 3e-3}  # some roundings of 2⁻²⁴, 2⁻¹¹, 2⁻⁸ and 2⁻¹¹
LOSS_SCALE = {"float16": 2.0**12}


def error(ours: np.ndarray, theirs: torch.Tensor) -> float:
    """The length of the difference, relative to that of what is right."""
    right = theirs.detach().numpy()
    return float(np.linalg.norm(np.asarray(ours, np.float64) - right) / np.linalg.norm(right))


@pytest.mark.parametrize("T", [40, 7])
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_loss_and_gradients_are_those_of_its_torch_twin(precision, changes, T, any_cupy):
    config = dataclasses.replace(SMALL, **changes)
    rng = tl.manual_seed(0)
    model = build_model(config)
    for parameter in model.parameters():
        parameter.array[...] += 0.1 * rng.standard_normal(parameter.shape)
    twin = twin_of(model).double()
    x, y = rng.integers(config.vocab_size, size=(2, 12, T))
    their_logits, their_loss = twin(torch.from_numpy(x), torch.from_numpy(y))
    their_loss.backward()

    allowed = ERRORS[precision]
    if config.activation == "relu" and precision != "float32":
        # Rounding by e turns units on or off that are as near to 0: of numbers with a normal distribution a share of 0.4 e. Half of all
        # units are on, so in the square of the length that is 0.8 e a layer, 1.6 e for two. Sums of few tokens scatter around that: 4 e.
        allowed = (4 * allowed) ** 0.5
    model.to("cupy")
    scale = LOSS_SCALE.get(precision, 1.0)
    with use_precision(precision):
        logits, loss = model(tl.tensor(x, device="cupy"), tl.tensor(y, device="cupy"))
        loss.backward(tl.tensor(scale, dtype=tl.float32, device="cupy"))
    assert loss.dtype == tl.float32
    assert error(logits.detach().numpy(), their_logits) <= ERRORS[precision]
    assert abs(loss.item() - their_loss.item()) <= ERRORS[precision] * their_loss.item()
    theirs = dict(twin.named_parameters())
    errors = {name: error(p.grad.numpy() / scale, theirs[name].grad) for name, p in model.named_parameters()}
    assert max(errors.values()) <= allowed, max(errors.items(), key=lambda item: item[1])
    assert {p.grad.dtype for p in model.parameters()} == {tl.float32}


def test_a_single_step_is_made_in_the_precision_of_the_settings(any_cupy):
    """Not only those of a whole run: profiles and benchmarks make steps one by one."""
    tokens = np.random.default_rng(0).integers(SMALL.vocab_size, size=500).astype(np.uint16)

    def loss_in(precision):
        tl.manual_seed(0)
        config = TrainConfig(backend="cupy", precision=precision, batch_size=4, cuda_graph=False)
        return Trainer(build_model(SMALL).to("cupy"), config, tokens, tokens).update().item()

    assert len({loss_in(precision) for precision in PRECISIONS}) == len(PRECISIONS)


# --- what goes wrong on the command line -------------------------------------------------------------------


@pytest.fixture
def train(standin, tmp_path, monkeypatch, capsys):
    """Trains for two steps with more options; returns the exit code and what was said on stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    small = ["--data=text.txt", "--tokenizer=char", "--n-layer=1", "--n-head=1", "--n-embd=32", "--block-size=16", "--batch-size=8"]
    short = ["--steps=2", "--eval-iters=1", "--sample-length=0", "--log-interval=1", "--out=run"]

    def call(*options):
        code = run_main(lambda: main([*small, *short, "--backend=cupy", *options]))
        return code, capsys.readouterr().err.strip().splitlines()

    return call


@pytest.mark.parametrize(
    "trouble, options, words",
    [
        ({"present": False}, [], "needs an NVIDIA GPU and its driver"),
        ({"driver": 11040}, [], "driver"),
        ({}, ["--backend=cupy:3"], "cupy:3"),
        (
            {"compute_capability": (7, 5)},
            ["--precision=bfloat16"],
            "needs a GPU of compute capability 8.0 or above (Ampere), this one has",
        ),
        ({"compute_capability": (7, 0)}, ["--precision=tf32"], "this one has 7.0"),
        ({}, ["--precision=bfloat16", "--backend=numpy"], "precision bfloat16 needs a GPU: add --backend cupy"),
        ({}, ["--precision=half"], "unknown precision 'half'"),
        ({}, ["--memory-limit=0"], "memory_limit must be"),
        ({}, ["--memory-limit=0.0001"], "out of memory on the GPU"),
        ({}, ["--cuda-graph=true", "--backend=numpy"], "a CUDA graph needs a GPU"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_gpu_errors_give_one_sentence_and_exit_code_2(trouble, options, words, train):
    for name, value in trouble.items():
        setattr(machine.machine, name, value)
    code, said = train(*options)
    assert code == 2 and words in said[-1] and not any("Traceback" in line for line in said)


def test_out_of_memory_reports_requested_and_used_bytes_and_advice(train):
    code, said = train("--memory-limit=0.002", "--batch-size=512")
    assert code == 2
    assert re.search(
        r"out of memory on the GPU: [\d.,]+ [KM]iB were asked for, [\d.,]+ [KM]iB are taken already, and --memory-limit allows", said[-1]
    )
    assert "--batch-size 256 --accumulation 2" in said[-1] and "--precision bfloat16" in said[-1] and "a larger --memory-limit" in said[-1]


def test_an_older_gpu_trains_in_float32(train):
    machine.machine.compute_capability = (7, 0)
    assert train()[0] == 0
