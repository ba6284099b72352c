"""Shards and workers: the same gradients as without them, and the same bits for any number of workers."""

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.model import GPT
from tensorlite.parallel import BatchShards, Workers
from tensorlite.random import make_generator

CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8, dropout=0.0)


def make_model(**changes):
    tl.manual_seed(1)
    return GPT(GPTConfig(**{**vars(CONFIG), **changes}))


def batch(rows=8, seed=0):
    ids = np.random.default_rng(seed).integers(0, 11, (2, rows, 6))
    return tl.tensor(ids[0]), tl.tensor(ids[1])


def stream(step=0):
    return lambda shard: make_generator(5, step, shard)


def gradients(model):
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad is not None}


def train(shards, workers, steps=5, **changes):
    model = make_model(**changes)
    optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    with Workers(workers) as team:
        parallel = BatchShards(model, optimizer.flats, shards, team)
        for step in range(steps):
            losses.append(parallel.forward_backward(batch(seed=step), stream(step)).item())
            optimizer.step()
            optimizer.zero_grad()
    return losses, [p.numpy().copy() for p in (q.detach() for q in model.parameters())]


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [8, 7, 2])
def test_gradients_are_those_of_the_whole_batch(shards, rows):
    model = make_model().to(tl.float64)
    x, y = batch(rows)
    _, loss = model(x, y)
    loss.backward()
    expected, value = gradients(model), loss.item()

    model.zero_grad()
    optimizer = tl.optim.AdamW(model.parameters())
    with Workers(2) as team:
        mean = BatchShards(model, optimizer.flats, shards, team).forward_backward((x, y), stream())
    assert mean.item() == pytest.approx(value, rel=1e-12)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, g in expected.items():
        np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-12 * np.abs(g).max(), err_msg=name)


def test_the_number_of_workers_does_not_change_a_bit():
    reference = train(shards=4, workers=1, dropout=0.3)
    for workers in (2, 4):
        losses, weights = train(shards=4, workers=workers, dropout=0.3)
        assert losses == reference[0]
        for ours, theirs in zip(weights, reference[1], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_batch_may_be_a_single_tensor():
    class Mean(tl.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = tl.nn.Parameter(tl.ones(3))

        def forward(self, x):
            y = x * self.weight
            return y, y.mean()

    model = Mean()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
    x = tl.arange(15).reshape(5, 3).float()
    with Workers(2) as team:
        loss = BatchShards(model, optimizer.flats, 2, team).forward_backward((x,), stream())
    np.testing.assert_allclose([loss.item(), *model.weight.grad.tolist()], [7, *(x.mean(0) / 3).tolist()], rtol=1e-6)


def test_gradients_accumulate_over_batches():
    model = make_model().to(tl.float64)
    optimizer = tl.optim.AdamW(model.parameters())
    with Workers(2) as team:
        parallel = BatchShards(model, optimizer.flats, 2, team)
        for seed in (0, 1):
            parallel.forward_backward(batch(4, seed), stream(), scale=0.5)
    found = gradients(model)
    model.zero_grad()
    for seed in (0, 1):
        _, loss = model(*batch(4, seed))
        (loss * 0.5).backward()
    for name, g in gradients(model).items():
        np.testing.assert_allclose(found[name], g, rtol=0, atol=1e-12 * np.abs(g).max(), err_msg=name)


def test_a_frozen_parameter_stays_without_a_gradient():
    model = make_model()
    model.h[0].requires_grad_(False)
    optimizer = tl.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with Workers(2) as team:
        BatchShards(model, optimizer.flats, 2, team).forward_backward(batch(), stream())
    assert all(p.grad is None for p in model.h[0].parameters())
    assert all(p.grad is not None for p in model.h[1].parameters())


def test_shards_draw_different_dropout_masks_and_follow_the_mode():
    model = make_model(dropout=0.5)
    optimizer = tl.optim.AdamW(model.parameters())
    x, y = batch(1)
    twice = tl.cat([x, x]), tl.cat([y, y])
    with Workers(1) as team:
        parallel = BatchShards(model, optimizer.flats, 2, team)
        halves: list[float] = []
        plain = team.map

        def watching(function, items):
            results = plain(function, items)
            halves.extend(result.item() for result in results if result is not None)
            return results

        team.map = watching
        parallel.forward_backward(twice, stream())
        assert halves[0] != halves[1]
        model.eval()
        halves.clear()
        parallel.forward_backward(twice, stream())
        assert halves[0] == halves[1]


def test_memory_of_the_weights_is_shared():
    model = make_model()
    optimizer = tl.optim.AdamW(model.parameters())
    with Workers(2) as team:
        parallel = BatchShards(model, optimizer.flats, 3, team)
        parallel.forward_backward(batch(), stream())
        for replica in parallel.replicas:
            for p, twin in zip(model.parameters(), replica.model.parameters(), strict=True):
                assert twin is not p
                assert twin.array is p.array
                assert not np.shares_memory(twin.grad_buffer, p.grad_buffer)


def test_an_error_in_a_worker_is_raised_by_map_when_all_have_ended():
    ended = []

    def work(i):
        if i == 0:
            raise ValueError("shard 0")
        ended.append(i)

    with Workers(2) as team, pytest.raises(ValueError, match="shard 0"):
        team.map(work, range(4))
    assert sorted(ended) == [1, 2, 3]


def test_workers_run_with_one_blas_thread_and_restore_the_others():
    def blas_threads():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        with Workers(2) as team:
            assert team.map(lambda _: blas_threads(), range(2)) == [{1}, {1}]
        assert blas_threads() == before


def test_workers_are_separate_threads():
    with Workers(2) as team:
        names = team.map(lambda _: threading.current_thread().name, range(2))
    assert all(name.startswith("tensorlite-worker") for name in names)


def test_numpys_error_state_holds_for_the_workers():
    def divide(_):
        return np.float32(1) / np.zeros(1, np.float32)

    with Workers(2) as team:
        with np.errstate(divide="ignore"):
            team.map(divide, range(4))
        with np.errstate(divide="raise"), pytest.raises(FloatingPointError):
            team.map(divide, range(4))


def test_outside_a_with_block_the_calling_thread_does_the_work():
    assert Workers(2).map(lambda _: threading.current_thread(), range(2)) == [threading.current_thread()] * 2


@pytest.mark.parametrize("make", [lambda: Workers(0), lambda: BatchShards(make_model(), [], 0, Workers(1))])
def test_less_than_one_worker_or_shard_is_refused(make):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        make()
