"""What a training step on a GPU launches and moves, counted by the stand-in: held to what it has reached, and to what docs/gpu.md says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import roofline
from benchmarks.configurations import CONFIGURATIONS
from benchmarks.roofline import DOCUMENT, count, operations_of, outside_products, report, rows_of, updated
from tensorlite.kernels.cuda import padding
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.gemm import gemm
from tests.standin import machine

GPT2 = CONFIGURATIONS["gpt2"]


@pytest.fixture(scope="module")
def step():
    """All that one step of GPT-2 launches in bfloat16."""
    return count(GPT2, "bfloat16")


def test_gpt2s_step_in_bfloat16_takes_few_launches_and_bytes(step):
    assert len(step) <= 370
    assert outside_products(step) <= 16.1e9
    assert sum(work.read + work.written for work in step) <= 28.1e9, "what was saved outside of products is not moved into them"


def test_the_courses_step_in_bfloat16_takes_few_launches_and_bytes():
    work = count(CONFIGURATIONS["course"], "bfloat16")
    assert len(work) <= 241
    assert outside_products(work) <= 7.4e9
    assert sum(one.read + one.written for one in work) <= 11.2e9


def test_a_llamas_step_copies_nothing_around_attention():
    """Thirty blocks: what each op of a block launches, forward and backward. CuPy's copies would be launches of ops around attention."""
    work = count(CONFIGURATIONS["smollm2"], "bfloat16")
    launches = {row.name: row.launches for row in rows_of(work)}
    assert launches["rotary_self_attention forward"] == 30 * 2 and launches["rotary_self_attention backward"] == 30 * 4
    assert launches["swiglu forward"] == launches["swiglu backward"] == 30
    assert launches["rmsnorm forward"] == 61 and launches["rmsnorm backward"] == 61 * 2
    assert len(work) <= 867
    assert outside_products(work) <= 27.8e9


def test_the_table_in_the_documentation_is_the_one_that_is_counted(step):
    document = DOCUMENT.read_text(encoding="utf-8")
    assert document == updated(document, report(GPT2, "bfloat16", step)), "run `python -m benchmarks roofline gpt2 --write`"


def test_launches_by_op(step):
    """Twelve blocks: what each op of a block launches, forward and backward."""
    launches = {row.name: row.launches for row in rows_of(step)}
    assert launches["feedforward forward"] == 12 * 2 and launches["feedforward backward"] == 12 * 6
    assert launches["causal_self_attention forward"] == 12 and launches["causal_self_attention backward"] == 12 * 3
    assert launches["layernorm forward"] == 25 and launches["layernorm backward"] == 25 * 2
    assert launches["AdamW"] == 2 * 2 and launches["clipping"] == 2


def test_the_arithmetic_is_that_of_the_formula(step):
    """6 operations for each weight and token, and attention's: 2 products forward, 7 backward, of which 5 are in the usual count of 6TC."""
    model, tokens = GPT2.model, GPT2.batch_size * GPT2.model.block_size
    weights = model.n_layer * 12 * model.n_embd**2 + model.vocab_size * model.n_embd
    attention = model.n_layer * (2 + 7) * tokens * model.block_size * model.n_embd
    assert sum(map(operations_of, step)) == pytest.approx(6 * tokens * weights + attention, rel=1e-3)  # the padding of the logits


def test_a_cast_for_each_weight_would_be_seen(monkeypatch):
    """A fault planted: nobody finds the weights that AdamW has rounded."""
    monkeypatch.setattr(padding, "rounded_copy", lambda x, rows: None)
    smoke = CONFIGURATIONS["smoke"]
    casts = sum(work.name == "cast" for work in count(smoke, "bfloat16"))
    monkeypatch.undo()
    assert casts == sum(work.name == "cast" for work in count(smoke, "bfloat16")) + 9  # four layers with a bias, and the head


def test_any_model_can_be_asked_for(capsys):
    roofline.main(["smoke", "--n-layer", "2", "--precision", "float32", "--batch-size", "3"])
    out = capsys.readouterr().out
    assert "smoke in float32, 3 · 16 tokens: " in out and "3060: cores, ms" in out
    with pytest.raises(SystemExit):
        roofline.main(["no such model"])


def test_what_is_counted_for_a_launch(standin):
    """A view is none; CuPy's kernels, ours and cuBLAS's products are, with the bytes of the arrays that they read and write."""
    x, y = standin.ones((8, 4), "float32"), standin.ones((4, 6), "float32")
    machine.machine.work.clear()
    z = gemm(x[:4].reshape(4, 4), y)
    x += 1
    sum_rows(x)
    x[standin.asarray(np.array([1, 2]))]
    x[0] = 5
    counted = [(work.name, work.read, work.written, work.operations) for work in machine.machine.work]
    assert z.shape == (4, 6) and counted == [
        ("gemmEx", 4 * (16 + 24), 4 * 24, 2 * 4 * 4 * 6),
        ("add", 4 * 32, 4 * 32, 0),
        ("sum_rows", 4 * 32, 4 * 4, 0),
        ("array", 0, 16, 0),
        ("getitem", 16 + 4 * 8, 4 * 8, 0),
        ("setitem", 0, 4 * 4, 0),
    ]
