"""Training: a hundred steps beside torch, and the pieces of the trainer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from data.errors import DataError
from gpt.config import GPTConfig, RandomStream, TrainConfig, from_preset
from gpt.errors import UserError
from gpt.generation.stream import stream_text
from gpt.model import build_model
from gpt.training.evaluation import counted_bigram_loss
from gpt.training.optimizers import make_optimizer
from gpt.training.pretraining import Pretraining
from gpt.training.trainer import Trainer, learning_rate_factor
from tensorlite.random import make_generator
from tests.torch_gpt import twin_of

MODEL = GPTConfig(vocab_size=17, block_size=16, n_layer=2, n_head=2, n_embd=32)


def language(size: int, length: int, seed: int = 0) -> np.ndarray:
    """A text in which the probabilities of the next token depend on the present one."""
    rng = np.random.default_rng(seed)
    totals = rng.dirichlet(np.full(size, 0.3), size=size).cumsum(axis=1)  # (size, size)
    tokens = [0]
    for u in rng.random(length - 1):
        tokens.append(int((totals[tokens[-1]] < u).sum()))
    return np.minimum(tokens, size - 1)


TOKENS = language(17, 3000)


def trainer(model: GPTConfig = MODEL, dtype=tl.float32, **settings) -> Trainer:
    tl.manual_seed(1)
    config = TrainConfig(**{"steps": 20, "batch_size": 4, "warmup_steps": 3, "eval_interval": 10, "eval_iters": 3, **settings})
    return Trainer(build_model(model).to(dtype=dtype), config, TOKENS[:2700], TOKENS[2700:])


def test_accumulated_batches_equal_one_batch():
    """Loss and gradient are the means over all of them."""
    run, same = trainer(accumulation=3, grad_clip=0.0), trainer(grad_clip=0.0)
    x, y = (np.concatenate(parts) for parts in zip(*(same.batches.next_batch() for _ in range(3)), strict=True))
    loss, norm, _ = same.stepper.gradients([same.stepper.to_device((x, y))], 0, [()])
    assert abs(run.update().item() - loss.item()) < 1e-6
    assert abs(run.gradient_norm.item() - norm.item()) < 1e-5


def test_the_sample_of_a_run_keeps_half_of_a_full_context(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 20)
    config = TrainConfig(data=str(text), tokenizer="char", sample_length=40, batch_size=2)
    run = Pretraining(GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=16), config)
    rng = make_generator(config.seed, RandomStream.SAMPLE, 0)
    expected = "".join(stream_text(run.model.eval(), run.tokenizer, "", 40, generator=rng, context_keep=4))
    run.model.train()
    assert run.sample_text() == expected and run.model.training


def torch_training(twin, config: TrainConfig):
    """Torch's optimizer, clipping and schedule, set up by torch's own documentation."""
    groups = [
        {"params": [p for p in twin.parameters() if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in twin.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2))
    warmup = config.warmup_steps

    def factor(step):
        if step < warmup:
            return (step + 1) / (warmup + 1)
        lowest = config.min_learning_rate / config.learning_rate
        return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (config.steps - warmup)))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


WITH_ALL_BIASES = {"bias": True, "tied_head": False, "head_bias": True}


@pytest.mark.parametrize(
    "changes, dtype",
    [
        ({}, tl.float64),
        ({}, tl.float32),
        ({**WITH_ALL_BIASES, "activation": "gelu_tanh"}, tl.float32),
        # relu in float64 alone: an activation of ±1e-9 on its kink has a gradient in one program and none in the other, and Adam,
        # which divides by the size of the gradient, makes a whole step of the difference. In float32 that happens to torch itself.
        ({**WITH_ALL_BIASES, "activation": "relu"}, tl.float64),
    ],
    ids=["tied, float64", "tied, float32", "untied with biases, float32", "untied with biases and relu, float64"],
)
def test_a_hundred_steps_have_torchs_losses(changes, dtype):
    ours = trainer(dataclasses.replace(MODEL, **changes), dtype=dtype, steps=100, warmup_steps=10, learning_rate=1e-3, grad_clip=0.5)
    twin = twin_of(ours.model)
    optimizer, schedule = torch_training(twin, ours.config)
    batches = ours._make_batches("training text", RandomStream.BATCHES)  # the trainer's own order

    worst, clipped = 0.0, 0
    for _ in range(100):
        loss = ours.update().item()
        x, y = (torch.from_numpy(array) for array in batches.next_batch())
        _, their_loss = twin(x, y)
        optimizer.zero_grad()
        their_loss.backward()
        clipped += torch.nn.utils.clip_grad_norm_(twin.parameters(), ours.config.grad_clip).item() > ours.config.grad_clip
        optimizer.step()
        schedule.step()
        worst = max(worst, abs(loss / their_loss.item() - 1))
    assert clipped > 10  # the clipping was part of the comparison
    assert worst <= (1e-9 if dtype == tl.float64 else 1e-5)
    if dtype == tl.float64:
        for name, parameter in ours.model.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), twin.get_parameter(name).detach().numpy(), atol=1e-9, err_msg=name)


# --- the pieces ---------------------------------------------------------------------------------------


def test_only_matrices_have_weight_decay():
    model = build_model(dataclasses.replace(MODEL, bias=True))
    optimizer = make_optimizer(model, TrainConfig(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert len(decay) == len(named)
    assert all(decay[id(p)] == (0.3 if p.ndim == 2 else 0.0) for p in named.values())


@pytest.mark.parametrize("schedule, middle, end", [("constant", 1, 1), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)])
def test_learning_rates(schedule, middle, end):
    config = TrainConfig(schedule=schedule, steps=110, warmup_steps=10, learning_rate=1e-2, min_learning_rate=1e-3)
    factors = [learning_rate_factor(step, config) for step in range(111)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert factors[60] == pytest.approx(middle)
    assert factors[110] == pytest.approx(end)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_more_warmup_than_steps():
    config = TrainConfig(steps=5, warmup_steps=100)
    assert [learning_rate_factor(step, config) for step in range(5)] == pytest.approx([(step + 1) / 101 for step in range(5)])


def test_an_evaluation_is_repeatable_and_does_not_train():
    run = trainer(dataclasses.replace(MODEL, dropout=0.4))
    before = [parameter.detach().numpy().copy() for parameter in run.model.parameters()]
    first = run.evaluate()
    assert run.evaluate() == first  # the same batches, without dropout
    assert run.model.training
    assert all(parameter.grad is None for parameter in run.model.parameters())
    for parameter, old in zip(run.model.parameters(), before, strict=True):
        np.testing.assert_array_equal(parameter.detach().numpy(), old)


def test_an_evaluation_does_not_change_training():
    losses = []
    for eval_interval in (1, 1000):
        run = trainer(dataclasses.replace(MODEL, dropout=0.4), eval_interval=eval_interval, steps=6)
        run.train()
        losses.append([parameter.detach().numpy() for parameter in run.model.parameters()])
    for often, seldom in zip(*losses, strict=True):
        np.testing.assert_array_equal(often, seldom)


def test_a_seed_fixes_the_run():
    results = [trainer(dataclasses.replace(MODEL, dropout=0.2), seed=seed) for seed in (3, 3, 4)]
    for run in results:
        run.train()
    same, again, other = (run.last.val_loss for run in results)
    assert same == again
    assert same != other


def test_the_loss_is_read_only_where_it_is_logged(monkeypatch):
    read = []
    item = tl.Tensor.item
    monkeypatch.setattr(tl.Tensor, "item", lambda tensor: read.append(tensor.shape) or item(tensor))
    trainer(steps=40, log_interval=20, eval_interval=40, eval_iters=2).train()
    assert len(read) == 2 * 2 + 2 * (2 * 2)  # two log lines with loss and norm, and two evaluations of two batches of two texts


def test_a_text_that_is_too_short_is_reported_before_the_first_step():
    for train, validation in ((TOKENS[:16], TOKENS), (TOKENS, TOKENS[:16])):
        with pytest.raises(DataError, match="16 tokens"):
            Trainer(build_model(MODEL), TrainConfig(), train, validation)


def test_a_nan_loss_ends_the_run_with_advice():
    run = trainer(log_interval=1)
    run.model.wte.weight.array[...] = np.inf
    with np.errstate(all="ignore"), pytest.raises(UserError, match="smaller learning rate"):
        run.train()


# --- what it learns -----------------------------------------------------------------------------------


def test_a_bigram_learns_the_counted_probabilities():
    """Gradient descent on a table of logits has one optimum: the logarithms of the relative frequencies.
    Both are scored on the whole validation text.
    """
    tokens = language(20, 40_000)
    train, validation = tokens[:36_000], tokens[36_000:]

    config, settings = from_preset("bigram", vocab_size=20, steps=400, batch_size=64, eval_interval=400)
    tl.manual_seed(0)
    run = Trainer(build_model(config), settings, train, validation)
    run.train()

    counted = counted_bigram_loss(train, validation, 20)
    _, learnt = run.model(tl.tensor(validation[None, :-1]).reshape(-1, 1), tl.tensor(validation[None, 1:]).reshape(-1, 1))
    assert abs(learnt.item() - counted) < 0.01
    assert learnt.item() < math.log(20) - 0.5


def test_counting_by_hand():
    """After 0: 1 twice and 0 once. After 1: 0 twice, of two. A tenth of a count more for each."""
    train, validation = np.array([0, 1, 0, 0, 1, 0]), np.array([0, 1, 0, 0])
    expected = -np.mean(np.log([2.1 / 3.2, 2.1 / 2.2, 1.1 / 3.2]))
    assert counted_bigram_loss(train, validation, 2) == pytest.approx(expected, rel=1e-12)


def test_a_gpt_reaches_a_lower_loss_than_a_bigram():
    """In 0 1 0 2 0 1 0 2 … what follows a 0 depends on what came before it."""
    tokens = np.tile([0, 1, 0, 2], 300)
    final = {}
    for kind in ("gpt", "bigram"):
        config = dataclasses.replace(MODEL, model=kind, vocab_size=3, block_size=8, n_layer=1)
        tl.manual_seed(0)
        rate = {"gpt": 1e-2, "bigram": 3e-1}[kind]
        settings = TrainConfig(steps=150, batch_size=8, learning_rate=rate, warmup_steps=5)
        run = Trainer(build_model(config), settings, tokens[:900], tokens[900:])
        run.train()
        final[kind] = run.last.val_loss
    assert final["bigram"] == pytest.approx(math.log(2) / 2, abs=0.02)
    assert final["gpt"] < 0.15  # the first token of a window has no past, and costs log(2) in half of the windows
