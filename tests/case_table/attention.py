import numpy as np
import torch

from tests.cases import Case, fixed, mask, normal

QKV = [normal(2, 3, 5, 4), normal(2, 3, 5, 4), normal(2, 3, 5, 4)]
SOME = fixed(np.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 0], [1, 0, 1, 0, 1]], bool))


def sdpa(t, q, k, v, mask=None, **options):
    return t.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def with_dropout(t, q, k, v):
    return t.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.3, is_causal=True, generator=t.random.make_generator(5))


def with_dropout_twin(t, q, k, v):  # torch draws other bits: the same attention with ours, step by step
    from tensorlite.random import dropout_mask, make_generator

    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
    keep, scale = dropout_mask(tuple(scores.shape), 0.3, make_generator(5))
    return (scores.softmax(-1) * torch.from_numpy(keep) * scale) @ v


def recomputed(t, q, k, v):
    from tensorlite.ops.attention import attention

    return attention(q, k, v, is_causal=True, recompute=True)


CASES = [
    Case("attention", sdpa, QKV),
    Case("attention-causal", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), QKV),
    Case("attention-scale", lambda t, *qkv: sdpa(t, *qkv, scale=0.3), QKV),
    Case("attention-one-position", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), [normal(2, 1, 1, 4)] * 3),
    Case("attention-two-axes", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), [normal(5, 4)] * 3),
    Case("attention-cross", sdpa, [normal(2, 3, 4), normal(2, 6, 4), normal(2, 6, 5)]),
    Case("attention-causal-not-square", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), [normal(2, 3, 4), normal(2, 6, 4), normal(2, 6, 4)]),
    Case("attention-bool-mask", sdpa, [*QKV, SOME]),
    Case("attention-bool-mask-per-head", sdpa, [*QKV, mask(3, 5, 5, keep=0.7)]),
    Case("attention-row-that-sees-nothing", sdpa, [*QKV, fixed(np.arange(5)[:, None] > np.zeros(5))]),
    Case("attention-float-mask", sdpa, [*QKV, normal(5, 5)]),
    Case("attention-float-mask-per-head", sdpa, [*QKV, normal(3, 1, 5)]),
    Case("attention-recompute", recomputed, QKV, torch_call=lambda t, *qkv: sdpa(t, *qkv, is_causal=True)),
    Case("attention-dropout", with_dropout, QKV, torch_call=with_dropout_twin),
    Case("attention-no-head-size", sdpa, [normal(2, 3, 0), normal(2, 6, 0), normal(2, 6, 5)]),
    Case("attention-no-queries", sdpa, [normal(2, 0, 4), normal(2, 6, 4), normal(2, 6, 5)]),
    Case("attention-no-keys", sdpa, [normal(2, 3, 4), normal(2, 0, 4), normal(2, 0, 5)]),
    Case("attention-heads-of-eight", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), [normal(2, 2, 9, 8)] * 3),
    Case("attention-heads-of-eight-cross", sdpa, [normal(2, 3, 8), normal(2, 6, 8), normal(2, 6, 8)]),
    Case("attention-large-scores", lambda t, *qkv: sdpa(t, *qkv, is_causal=True), [normal(1, 5, 4, std=5)] * 3, float32=1e-5),
]
