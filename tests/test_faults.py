"""Planted faults: the suite must detect each of them.

Each fault is a mistake that people make, written out and put in the place of the right code. The check that is named with it
must pass on the right code, fail on the wrong, and say why in words that fit. The end of the run counts them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tensorlite as tl
from data import loader
from gpt import model as gpt_model
from tensorlite import random, tape
from tensorlite.op import REGISTRY, use_kernels
from tensorlite.ops import (
    activation,
    arithmetic,
    attention,
    broadcasting,
    cross_entropy,
    dropout,
    embedding,
    indexing,
    layernorm,
    linear,
    reduction,
    rmsnorm,
    shape,
)
from tensorlite.optim import adam, clip, schedule, sgd
from tests import (
    test_cases_gradcheck,
    test_cases_layouts,
    test_cases_oracle,
    test_cases_pairs,
    test_cases_twice,
    test_data_loader,
    test_gpt_model,
    test_tape,
)
from tests.cases import all_cases

CASES = {case.name: case for case in all_cases()}
RED = (AssertionError, RuntimeError, ValueError, Warning)  # how a check fails; says which of them it has to be


@dataclasses.dataclass(frozen=True)
class Check:
    """A test of this suite, on one of its arguments."""

    name: str
    run: Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Fault:
    """A mistake, how to make it, the check that must turn red, and a pattern for what that has to say."""

    name: str
    plant: Callable[[pytest.MonkeyPatch], None]
    check: Check
    says: str


# --- the checks -----------------------------------------------------------------------------------------


def ignore(name: str, value: Any) -> None:
    """Stands in for pytest's record_property."""


def differences(name: str) -> Check:
    return Check(f"gradcheck[{name}]", lambda: test_cases_gradcheck.test_gradcheck(CASES[name], ignore))


def oracle(name: str) -> Check:
    return Check(f"torch float64[{name}]", lambda: test_cases_oracle.test_float64_equals_torch(CASES[name], ignore))


def oracle32(name: str) -> Check:
    return Check(f"torch float32[{name}]", lambda: test_cases_oracle.test_float32_loses_no_more_than_torch(CASES[name], ignore))


def layouts(name: str) -> Check:
    return Check(f"layouts[{name}]", lambda: test_cases_layouts.test_layout_changes_nothing(CASES[name]))


def untouched(name: str) -> Check:
    return Check(f"inputs untouched[{name}]", lambda: test_cases_layouts.test_inputs_are_not_written_to(CASES[name]))


def twice(name: str) -> Check:
    return Check(f"used twice[{name}]", lambda: test_cases_twice.test_called_twice_in_one_graph(CASES[name]))


def accumulates(name: str) -> Check:
    return Check(f"two backward calls[{name}]", lambda: test_cases_twice.test_two_backward_calls_accumulate(CASES[name]))


def pairs(name: str) -> Check:
    return Check(f"pairs[{name}]", lambda: test_cases_pairs.check_pairs(CASES[name]))


def gpt_twin(config: str) -> Check:
    changes = test_gpt_model.CONFIGS[config]
    return Check(f"GPT against torch[{config}]", lambda: test_gpt_model.test_the_model_equals_its_torch_twin(changes, tl.float64, 1e-9, 7))


def optimizer(name: str, **options: Any) -> Check:
    """Ten steps next to torch's, with gradients of very different sizes."""

    def run() -> None:
        rng = np.random.default_rng(0)
        ours = [tl.tensor(rng.standard_normal(n), requires_grad=True) for n in (7, (3, 4))]
        theirs = [torch.tensor(p.detach().numpy().copy(), requires_grad=True) for p in ours]
        our_optimizer = getattr(tl.optim, name)(ours, lr=0.1, **options)
        their_optimizer = getattr(torch.optim, name)(theirs, lr=0.1, **options)
        for _ in range(10):
            for p, q in zip(ours, theirs, strict=True):
                g = rng.standard_normal(p.shape) * 10.0 ** rng.integers(-9, 1, p.shape)
                (p * tl.tensor(g)).sum().backward()
                q.grad = torch.tensor(g)
            our_optimizer.step()
            their_optimizer.step()
            our_optimizer.zero_grad()
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-10, atol=1e-12, err_msg="parameters after 10 steps")

    return Check(f"{name} against torch", run)


def clipping(scale: float = 1.0, dtype: str = "float64") -> Check:
    """The gradients of two parameters, clipped together."""

    def run() -> None:
        rng = np.random.default_rng(0)
        gradients = [(scale * rng.standard_normal(n)).astype(dtype) for n in (7, (3, 4))]
        ours = [tl.tensor(np.zeros_like(g), requires_grad=True) for g in gradients]
        theirs = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in gradients]
        for p, q, g in zip(ours, theirs, gradients, strict=True):
            (p * tl.tensor(g)).sum().backward()
            q.grad = torch.tensor(g.astype("float64"))
        norm = tl.optim.clip_grad_norm_(ours, 0.5)
        their_norm = torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        assert math.isclose(norm.item(), their_norm.item(), rel_tol=tolerance), "the norm differs"
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=tolerance, err_msg="clipped gradients")

    return Check(f"clip_grad_norm_ against torch[{scale:g}]", run)


def schedule_against_torch() -> Check:
    def run() -> None:
        ours = schedule.CosineAnnealingLR(tl.optim.SGD([tl.zeros(1, requires_grad=True)], lr=0.3), T_max=10, eta_min=0.1)
        their_optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(their_optimizer, T_max=10, eta_min=0.1)
        for _ in range(10):
            ours.step()
            their_optimizer.step()
            theirs.step()
            np.testing.assert_allclose(ours.get_last_lr(), theirs.get_last_lr(), rtol=1e-12, err_msg="learning rate")

    return Check("CosineAnnealingLR against torch", run)


# --- planting -------------------------------------------------------------------------------------------


def book(name: str, **functions: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Put another forward or backward in the book, and let nothing faster run."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        op = REGISTRY[name]
        monkeypatch.setattr(op, "book", dataclasses.replace(op.book, **functions))
        monkeypatch.setattr(op, "faster", [])

    return plant


def faster(name: str, **functions: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Add a faster pair: the book's but for ``functions``."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        op = REGISTRY[name]
        monkeypatch.setattr(op, "faster", [dataclasses.replace(op.book, name="planted", **functions)])

    return plant


def attribute(target: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda monkeypatch: monkeypatch.setattr(target, name, value)


# --- normalisation --------------------------------------------------------------------------------------


def layernorm_without_mean_term(dy, saved):
    x_hat, inverse_std, weight, _ = saved
    g = dy * weight
    dx = inverse_std * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return (dx, *layernorm.layernorm_backward(dy, saved)[1:])


def layernorm_in_two_terms(dy, saved):
    _, inverse_std, weight, _ = saved
    g = dy * weight
    dx = inverse_std * (g - g.mean(axis=-1, keepdims=True))
    return (dx, *layernorm.layernorm_backward(dy, saved)[1:])


def layernorm_without_sigma(dy, saved):
    return layernorm.layernorm_backward(dy, saved._replace(inverse_std=np.ones_like(saved.inverse_std)))


def layernorm_weight_averaged(dy, saved):
    dx, dweight, dbias = layernorm.layernorm_backward(dy, saved)
    return dx, dweight / len(dy), dbias


def layernorm_of_one_row(dy, saved):
    dx, dweight, _ = layernorm.layernorm_backward(dy, saved)
    return dx, dweight, dy[-1]


def layernorm_in_one_pass(x, weight=None, bias=None, eps=1e-5):
    mean = x.mean(axis=-1, keepdims=True)
    variance = (x * x).mean(axis=-1, keepdims=True) - mean * mean
    inverse_std = 1 / np.sqrt(np.maximum(variance, 0) + eps)
    x_hat = (x - mean) * inverse_std
    return x_hat * weight + bias, layernorm.LayerNormSaved(x_hat, inverse_std, weight, True)


def rmsnorm_in_one_term(dy, saved):
    _, inverse_rms, weight = saved
    return inverse_rms * dy * weight, rmsnorm.rmsnorm_backward(dy, saved)[1]


NORMALISATION = [
    Fault(
        "layernorm without - mean(g)", book("layernorm", backward=layernorm_without_mean_term), differences("layernorm"), "term like a mean"
    ),
    Fault("layernorm in two terms", book("layernorm", backward=layernorm_in_two_terms), differences("layernorm"), "input less its mean"),
    Fault("layernorm without 1/σ", book("layernorm", backward=layernorm_without_sigma), differences("layernorm"), "1/σ"),
    Fault(
        "layernorm's weight gradient averaged",
        book("layernorm", backward=layernorm_weight_averaged),
        differences("layernorm"),
        "a mean where",
    ),
    Fault(
        "layernorm's bias gradient of one row", book("layernorm", backward=layernorm_of_one_row), differences("layernorm"), "missing sum"
    ),
    Fault(
        "variance in one pass", book("layernorm", forward=layernorm_in_one_pass), oracle32("layernorm-around-1000"), "output 0 is off by"
    ),
    Fault(
        "rms_norm without its second term", book("rmsnorm", backward=rmsnorm_in_one_term), differences("rmsnorm"), "multiple of the input"
    ),
]


# --- softmax, cross-entropy, attention ------------------------------------------------------------------


def softmax_without_rank_one_term(dy, saved):
    y, _ = saved
    return y * dy


def softmax_without_max(x, dim=-1):
    exponentials = np.exp(x)
    y = exponentials / exponentials.sum(axis=dim, keepdims=True)
    return y, (y, dim)


def log_softmax_forgets_the_sum(dy, saved):
    y, _ = saved
    return dy - np.exp(y) * dy


def logsumexp_without_max(x, dim, keepdim=False):
    y = np.log(np.exp(x).sum(axis=dim, keepdims=True))
    return (y if keepdim else y.squeeze(dim)), (x, y, (dim % x.ndim,))


def cross_entropy_with(**changes):
    """The backward with another value for something it saved."""

    def backward(dy, saved):
        return cross_entropy.cross_entropy_backward(dy, saved._replace(**{name: change(saved) for name, change in changes.items()}))

    return backward


def ignored_rows_count(op, loss, kept, reduction):
    return np.where(kept, loss, 0).sum() / loss.size, loss.size


def dq_times(factor):
    """The gradient of the queries multiplied by a function of d."""

    def backward(dy, saved):
        dq, *others = attention.attention_backward(dy, saved)
        return (dq * factor(dq.shape[-1]), *others)

    return backward


def plain_attention_forward(q, k, v, mask=None, is_causal=False, scale=None, dropout_p=0.0, generator=None, recompute=False):
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if is_causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -math.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    keep, factor = random.dropout_mask(p.shape, dropout_p, generator)
    return (p * keep * factor) @ v, (q, k, v, p, keep * factor)


def plain_attention(without=""):
    """Attention spelled out, but for one thing that is left out of its backward."""

    def backward(dy, saved):
        q, k, v, p, kept = saved
        if without == "dropout":
            kept = 1
        dp = dy @ v.swapaxes(-1, -2) * kept
        average = 0 if without == "rank one" else (dp * p).sum(axis=-1, keepdims=True)
        ds = p * (dp - average) / math.sqrt(q.shape[-1])
        dk = ds @ q if without == "transpose" else ds.swapaxes(-1, -2) @ q
        return ds @ k, dk, (p * kept).swapaxes(-1, -2) @ dy, None

    return book("attention", forward=plain_attention_forward, backward=backward)


@pytest.mark.parametrize("name", ["attention", "attention-causal", "attention-dropout"])
def test_plain_attention_without_a_fault_is_right(name, monkeypatch):
    plain_attention()(monkeypatch)
    differences(name).run()
    oracle(name).run()


def attention_sees_one_ahead(q, k, v, mask=None, is_causal=False, **options):
    mask = np.tri(q.shape[-2], k.shape[-2], 1, dtype=bool) if is_causal else mask
    return attention.attention_forward(q, k, v, mask, **options)


def attention_scaled_by_d(q, k, v, mask=None, is_causal=False, scale=None, **options):
    return attention.attention_forward(q, k, v, mask, is_causal, 1 / q.shape[-1] if scale is None else scale, **options)


PROBABILITIES = [
    Fault(
        "softmax without its rank-one term",
        book("softmax", backward=softmax_without_rank_one_term),
        differences("softmax"),
        "of the output",
    ),
    Fault("softmax without the maximum", book("softmax", forward=softmax_without_max), oracle("softmax-large"), "overflow"),
    Fault(
        "log_softmax without the sum of dy",
        book("log_softmax", backward=log_softmax_forgets_the_sum),
        differences("log_softmax"),
        "wrong for",
    ),
    Fault("logsumexp without the maximum", book("logsumexp", forward=logsumexp_without_max), oracle("logsumexp-large"), "overflow"),
    Fault(
        "cross-entropy's gradient not divided by N",
        book("cross_entropy", backward=cross_entropy_with(divisor=lambda saved: 1)),
        differences("cross_entropy-mean"),
        "a sum where a mean belongs",
    ),
    Fault(
        "label smoothing forgotten in backward",
        book("cross_entropy", backward=cross_entropy_with(label_smoothing=lambda saved: 0.0)),
        differences("cross_entropy-smoothing-mean"),
        "wrong for input 0",
    ),
    Fault(
        "a gradient for ignored rows",
        book("cross_entropy", backward=cross_entropy_with(kept=lambda saved: np.ones_like(saved.kept))),
        differences("cross_entropy-ignored"),
        "wrong for input 0",
    ),
    Fault(
        "ignored rows counted in the mean",
        attribute(cross_entropy, "_reduced", ignored_rows_count),
        oracle("cross_entropy-ignored"),
        "output 0 is off",
    ),
    Fault("dq without 1/√d", book("attention", backward=dq_times(math.sqrt)), differences("attention"), "a factor of 2 "),
    Fault("1/√d twice in dq", book("attention", backward=dq_times(lambda d: d**-0.5)), differences("attention"), r"a factor of 0\.5"),
    Fault("scores divided by d, not √d", book("attention", forward=attention_scaled_by_d), oracle("attention"), "is off by"),
    Fault("attention without softmax's second term", plain_attention(without="rank one"), differences("attention"), "wrong for input [01]"),
    Fault("dk with dS untransposed", plain_attention(without="transpose"), differences("attention"), "wrong for input 1"),
    Fault("the causal mask off by one", book("attention", forward=attention_sees_one_ahead), oracle("attention-causal"), "is off by"),
    Fault("attention's dropout forgotten in backward", plain_attention(without="dropout"), differences("attention-dropout"), "wrong for"),
]


# --- matrices and embeddings ----------------------------------------------------------------------------


def linear_transposed(dy, saved):
    return linear.linear_backward(dy, saved._replace(weight=saved.weight.T))


def linear_bias_averaged(dy, saved):
    dx, dweight, dbias = linear.linear_backward(dy, saved)
    return dx, dweight, dbias / (dy.size // dy.shape[-1])


def linear_weight_transposed(dy, saved):
    dx, dweight, dbias = linear.linear_backward(dy, saved)
    return dx, dweight.T, dbias


def embedding_loses_repeats(dy, saved):
    ids, shape, _ = saved
    dweight = np.zeros(shape, dy.dtype)
    dweight[ids] = dy
    return None, dweight


def embedding_buffers_repeats(dy, saved):
    ids, shape, _ = saved
    dweight = np.zeros(shape, dy.dtype)
    dweight[ids] += dy
    return None, dweight


def embedding_trains_padding(dy, saved):
    return embedding.embedding_backward(dy, saved._replace(padding_idx=None))


def getitem_buffers_repeats(dy, saved):
    shape, basic, advanced, _ = saved
    return indexing.getitem_backward(dy, (shape, basic, advanced, False))


MATRICES = [
    Fault(
        "linear's weight transposed in dx", book("linear", backward=linear_transposed), differences("linear-square"), r"wrong for input 0"
    ),
    Fault(
        "linear's dweight transposed",
        book("linear", backward=linear_weight_transposed),
        differences("linear-square"),
        "a transpose: axes 0 and 1",
    ),
    Fault(
        "linear's bias gradient averaged",
        book("linear", backward=linear_bias_averaged),
        differences("linear"),
        "a mean where a sum belongs",
    ),
    Fault(
        "repeated tokens lost (=)", book("embedding", backward=embedding_loses_repeats), differences("embedding-repeats"), "lost repeats"
    ),
    Fault(
        "repeated tokens lost (+=)",
        book("embedding", backward=embedding_buffers_repeats),
        oracle("embedding-repeats"),
        "gradient of input 1 is off",
    ),
    Fault(
        "repeated tokens lost by a kernel",
        faster("embedding", backward=embedding_buffers_repeats),
        pairs("embedding-repeats"),
        "planted pair differs",
    ),
    Fault(
        "a gradient for the padding row",
        book("embedding", backward=embedding_trains_padding),
        oracle("embedding-padding"),
        "gradient of input 1 is off",
    ),
    Fault("repeats lost by indexing", book("getitem", backward=getitem_buffers_repeats), differences("getitem-repeats"), "lost repeats"),
]


# --- elementwise, reductions, shapes --------------------------------------------------------------------


def mul_swapped(dy, saved):
    a, b, x_shape, other_shape = saved
    return broadcasting.unbroadcast(dy * a, x_shape), broadcasting.unbroadcast(dy * b, other_shape)


def div_without_sign(dy, saved):
    dx, dother = arithmetic.div_backward(dy, saved)
    return dx, -dother


def mean_over_the_broadcast_axis(dy, wanted):
    return broadcasting.unbroadcast(dy, wanted) * (math.prod(wanted) / dy.size)


def gelu_without_inner_factor(dy, saved):
    x, t, _ = saved
    return dy * 0.5 * (1 + t + x * (1 - t * t))


def gelu_without_second_term(dy, saved):
    _, cdf, _ = saved
    return dy * cdf


def tanh_without_square(dy, y):
    return dy * (1 - y)


def exp_without_itself(dy, y):
    return dy


def dropout_unscaled(x, p=0.5, generator=None):
    _, (keep, _) = dropout.dropout_forward(x, p, generator)
    return x * keep, dropout.DropoutSaved(keep, 1.0)


def dropout_draws_again(dy, saved):
    keep, scale = saved
    return dy * np.roll(keep, 1) * scale


def amax_to_every_tie(dy, saved):
    x, y, _ = saved
    return (x == y) * dy.reshape(y.shape)


def var_of_the_population(x, dim=None, correction=1, keepdim=False):
    return reduction.var_forward(x, dim, 0, keepdim)


def prod_by_division(dy, saved):
    x, over = saved
    y = x.prod(axis=over, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return dy.reshape(y.shape) * y / x


def cumsum_from_the_front(dy, along):
    return dy.cumsum(axis=along)


def cat_swapped(dy, saved):
    d, lengths = saved
    return shape.cat_backward(dy, (d, lengths))[::-1]


def stack_swapped(dy, saved):
    return shape.stack_backward(dy, saved)[::-1]


def permute_again(dy, saved):
    return dy.transpose(saved)


def masked_fill_leaks(dy, saved):
    _, *rest = indexing.masked_fill_backward(dy, saved)
    return (broadcasting.unbroadcast(dy, saved[1]), *rest)


ELEMENTWISE = [
    Fault(
        "no un-broadcast", attribute(arithmetic, "unbroadcast", lambda dy, wanted: dy), differences("add-row"), "sum over a broadcast axis"
    ),
    Fault(
        "a mean in place of un-broadcast's sum",
        attribute(arithmetic, "unbroadcast", mean_over_the_broadcast_axis),
        differences("add-row"),
        "a mean where",
    ),
    Fault("factors swapped in mul", book("mul", backward=mul_swapped), differences("mul"), "wrong for input 0"),
    Fault("the sign of a divisor's gradient", book("div", backward=div_without_sign), differences("div"), "the wrong sign"),
    Fault("gelu (tanh) without du/dx", book("gelu", backward=gelu_without_inner_factor), differences("gelu-tanh"), "wrong for input 0"),
    Fault("gelu without x φ(x)", book("gelu", backward=gelu_without_second_term), differences("gelu"), "wrong for input 0"),
    Fault("tanh' = 1 - y", book("tanh", backward=tanh_without_square), differences("tanh"), "wrong for input 0"),
    Fault("exp' = 1", book("exp", backward=exp_without_itself), differences("exp"), "left out, element by element: the output"),
    Fault("dropout without 1/(1-p)", book("dropout", forward=dropout_unscaled), oracle("dropout-0.5"), "output 0 is off by"),
    Fault(
        "another mask in dropout's backward", book("dropout", backward=dropout_draws_again), differences("dropout-0.5"), "wrong for input 0"
    ),
    Fault(
        "amax: the whole gradient to every tie", book("amax", backward=amax_to_every_tie), oracle("amax-ties"), "gradient of input 0 is off"
    ),
    Fault("var divided by n", book("var", forward=var_of_the_population), oracle("var"), "output 0 is off by"),
    Fault("prod by division", book("prod", backward=prod_by_division), oracle("prod-one-zero"), "gradient of input 0 is off"),
    Fault(
        "cumsum's gradient from the wrong end", book("cumsum", backward=cumsum_from_the_front), differences("cumsum"), "wrong for input 0"
    ),
    Fault("cat's gradients swapped", book("cat", backward=cat_swapped), differences("cat"), "gradient of shape"),
    Fault("stack's gradients swapped", book("stack", backward=stack_swapped), differences("stack"), "wrong for input"),
    Fault(
        "permute by the same permutation again", book("permute", backward=permute_again), differences("permute"), "a transpose, forgotten"
    ),
    Fault(
        "a gradient where masked_fill filled",
        book("masked_fill", backward=masked_fill_leaks),
        differences("masked_fill"),
        "wrong for input 0",
    ),
]


# --- the house rules: dtypes and memory -----------------------------------------------------------------


def mul_into_dy(dy, saved):
    _, b, *_ = saved
    dy *= b
    return dy, arithmetic.mul_backward(dy, saved)[1]


def relu_in_place(x):
    positive = x > 0
    x *= positive
    return x, positive


def softmax_spoils_saved(dy, saved):
    y, dim = saved
    dx = y * (dy - (dy * y).sum(axis=dim, keepdims=True))
    y *= 0
    return dx


def relu_in_float64(dy, saved):
    return dy * saved.astype(np.float64)


def linear_of_contiguous_memory(x, weight, bias=None):
    """Reads the memory under x as if it lay side by side."""
    rows = np.lib.stride_tricks.as_strided(x, x.shape, np.empty(x.shape, x.dtype).strides)
    return linear.linear_forward(rows, weight, bias)


MEMORY = [
    Fault("mul writes into dy", book("mul", backward=mul_into_dy), untouched("mul"), "read-only"),
    Fault("relu in place", book("relu", forward=relu_in_place), untouched("relu"), "read-only"),
    Fault("backward spoils what was saved", book("softmax", backward=softmax_spoils_saved), untouched("softmax"), "runs a second time"),
    Fault("float64 leaks into a float32 result", attribute(activation, "_C", np.sqrt(2 / np.pi)), oracle32("gelu-tanh"), "float64"),
    Fault("float64 leaks into a float32 gradient", book("relu", backward=relu_in_float64), oracle32("relu"), "its gradient float64"),
    Fault(
        "an input read as if it were contiguous",
        book("linear", forward=linear_of_contiguous_memory),
        layouts("linear"),
        "when .* is strided",
    ),
]


# --- the tape, the model, the optimizer, the loader -----------------------------------------------------


def deliver_overwrites(self, target, dx):
    if not isinstance(target, tuple):
        self.accumulate(target, dx)
        return
    node, position = target
    if node not in self.pending:
        self.pending[node] = [None] * len(node.outputs)
        tape.heapq.heappush(self.queue, (-node.number, node))
    self.pending[node][position] = dx


def deliver_in_place(self, target, dx):
    right_deliver(self, target, dx)
    if isinstance(target, tuple):
        return
    dx += 0.5  # somebody else may hold the same array


right_deliver = tape.BackwardPass.deliver


def accumulate_overwrites(self, leaf, dx):
    leaf.grad = tl.Tensor(np.array(dx))


def attention_without_mask(qkv, n_head, **options):
    q, k, v = (part.unflatten(2, (n_head, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return tl.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def gpt_with_post_norm(self, x):
    x = self.ln_1(x + self.attn(x))
    return self.ln_2(x + self.mlp(x))


def adam_eps_inside(p, g, m, v, step, lr, betas, eps, v_max=None):
    m += (1 - betas[0]) * (g - m)
    v += (1 - betas[1]) * (g * g - v)
    p -= lr * (m / (1 - betas[0] ** step)) / np.sqrt(v / (1 - betas[1] ** step) + eps)


def adam_uncorrected(p, g, m, v, step, *rest):
    right_adam(p, g, m, v, 10**9, *rest)


right_adam = adam.adam_update


def sgd_forgets_to_look_ahead(p, g, velocity, step, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    right_sgd(p, g, velocity, step, lr, momentum, dampening, weight_decay, nesterov=False)


def sgd_dampens_the_first_step(p, g, velocity, step, *options):
    right_sgd(p, g, velocity, step + 1, *options)


right_sgd = sgd.sgd_update


def clip_by_value(parameters, max_norm, *options):
    norm = right_clip(parameters, math.inf)
    tl.optim.clip_grad_value_(parameters, max_norm)
    return norm


def clip_each(parameters, max_norm, *options):
    return [right_clip([p], max_norm) for p in parameters][-1]


right_clip = clip.clip_grad_norm_


def norm_that_overflows(g, p):
    with np.errstate(over="ignore"):
        return np.sqrt((g * g).sum())


def cosine_too_long(self, base, group):
    return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * self.last_epoch / (self.T_max + 1))) / 2


def batches_unshifted(self):
    x, _ = right_batch(self)
    return x, x


right_batch = loader.RandomBatches.next_batch


def split_backwards(tokens, val_fraction=0.1):
    cut = int(len(tokens) * val_fraction)
    return tokens[cut:], tokens[:cut]


Y_FOLLOWS_X = Check("y is x one token later", lambda: test_data_loader.test_y_is_x_one_token_later(np.uint16))
NO_FUTURE = Check("no token sees a later one", test_gpt_model.test_no_token_sees_a_later_one)
SHARED = Check("a shared gradient is not written to", test_tape.test_gradients_that_an_op_shares_are_not_written_to)
SPLIT = Check("the split keeps the order", lambda: np.testing.assert_array_equal(loader.split_tokens(np.arange(10), 0.2)[1], [8, 9]))

PROGRAM = [
    Fault(
        "the tape overwrites where paths meet",
        attribute(tape.BackwardPass, "deliver", deliver_overwrites),
        oracle("split-one-used-twice"),
        "is off by",
    ),
    Fault("the tape writes to a shared gradient", attribute(tape.BackwardPass, "deliver", deliver_in_place), SHARED, "assert|read-only"),
    Fault(
        "a leaf's gradient overwritten, not summed",
        attribute(tape.BackwardPass, "accumulate", accumulate_overwrites),
        accumulates("linear"),
        "is off by",
    ),
    Fault(
        "a tied weight overwritten, not summed",
        attribute(tape.BackwardPass, "accumulate", accumulate_overwrites),
        gpt_twin("bias, tied, gelu_tanh"),
        "wte.weight",
    ),
    Fault(
        "the GPT without a causal mask",
        attribute(gpt_model.F, "causal_self_attention", attention_without_mask),
        NO_FUTURE,
        "Mismatched|not equal",
    ),
    Fault(
        "normalisation after the residual sum",
        attribute(gpt_model.Block, "forward", gpt_with_post_norm),
        gpt_twin("bias, tied, gelu_tanh"),
        "assert",
    ),
    Fault("AdamW with eps inside the root", attribute(adam, "adam_update", adam_eps_inside), optimizer("AdamW"), "after 10 steps"),
    Fault("AdamW without bias correction", attribute(adam, "adam_update", adam_uncorrected), optimizer("AdamW"), "after 10 steps"),
    Fault(
        "weight decay coupled", attribute(adam.AdamW, "update", adam.Adam.update), optimizer("AdamW", weight_decay=0.1), "after 10 steps"
    ),
    Fault(
        "Nesterov that does not look ahead",
        attribute(sgd, "sgd_update", sgd_forgets_to_look_ahead),
        optimizer("SGD", momentum=0.9, nesterov=True),
        "after 10",
    ),
    Fault(
        "a dampened first step",
        attribute(sgd, "sgd_update", sgd_dampens_the_first_step),
        optimizer("SGD", momentum=0.9, dampening=0.5),
        "after 10 steps",
    ),
    Fault("clipping by value", attribute(tl.optim, "clip_grad_norm_", clip_by_value), clipping(), "clipped gradients"),
    Fault("clipping each parameter by itself", attribute(tl.optim, "clip_grad_norm_", clip_each), clipping(), "the norm differs"),
    Fault("a norm that overflows", attribute(clip, "_norm", norm_that_overflows), clipping(1e30, "float32"), "the norm differs"),
    Fault(
        "a cosine one step too long",
        attribute(schedule.CosineAnnealingLR, "learning_rate", cosine_too_long),
        schedule_against_torch(),
        "learning rate",
    ),
    Fault("targets not shifted", attribute(loader.RandomBatches, "next_batch", batches_unshifted), Y_FOLLOWS_X, "not equal"),
    Fault("the first tokens validate", attribute(loader, "split_tokens", split_backwards), SPLIT, "not equal"),
]

FAULTS = [*NORMALISATION, *PROBABILITIES, *MATRICES, *ELEMENTWISE, *MEMORY, *PROGRAM]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_caught(fault, monkeypatch, record_property):
    with use_kernels("book"):  # where the faults are planted
        fault.check.run()  # green on the right code
        fault.plant(monkeypatch)
        with pytest.raises(RED) as failure:
            fault.check.run()
        assert re.search(fault.says, str(failure.value)), f"red, but for another reason: {failure.value}"
        monkeypatch.undo()
        fault.check.run()  # and green again
    record_property("caught", [fault.name, fault.check.name])


def test_there_are_enough_faults_and_all_differ():
    assert len(FAULTS) >= 30
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
