"""`tl.parallel.shared`: three lines share the batches of anybody's model and loop."""

import gc

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.nn import functional as F
from tests.test_parallel_processes import Net, digest, extended


def rows(seed=0, n=8):
    generator = np.random.default_rng(seed)
    return generator.standard_normal((n, 3)).astype(np.float32), generator.integers(0, 2, n)


def by_hand(steps=3):
    """The loop without the three lines."""
    tl.manual_seed(1)
    model = Net()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for seed in range(steps):
        x, y = map(tl.tensor, rows(seed))
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        tl.optim.clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, digest(model, optimizer)


def shared(steps=3, **options):
    tl.manual_seed(1)
    model = Net()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.5)
    with tl.parallel.shared(model, optimizer, F.cross_entropy, max_norm=0.3, **options) as step:
        return [step(*rows(seed)).item() for seed in range(steps)], digest(model, optimizer)


def test_one_shard_is_the_loop_by_hand():
    assert shared(workers=1) == by_hand()
    assert shared(workers=2, shards=1) == by_hand()


@pytest.mark.parametrize("team", ["threads", "processes"])
def test_several_shards_are_the_same_but_for_rounding_and_the_same_bits_with_any_team(team):
    losses, weights = shared(team=team, workers=2)
    np.testing.assert_allclose(losses, by_hand()[0], rtol=1e-5)
    assert (losses, weights) == shared(workers=1, shards=2)


@pytest.mark.parametrize("team", ["threads", "processes"])
def test_a_model_that_returns_its_loss_needs_no_loss_function_and_dropout_follows_the_seed(team):
    def run(**options):
        model, optimizer = extended()
        with tl.parallel.shared(model, optimizer, shards=2, **options) as step:
            ids = np.random.default_rng(0).integers(0, 11, (2, 8, 6))
            losses = [step(*ids).item() for _ in range(2)]
        return losses, digest(model, optimizer)

    assert run(team=team, workers=2) == run(workers=1)


def test_gradients_alone_are_left_for_a_step_of_ones_own():
    model = Net()
    optimizer = tl.optim.SGD(model.parameters(), lr=0.5)
    step = tl.parallel.shared(model, optimizer, F.cross_entropy, workers=2)
    x, y = rows()
    with step:
        for _ in range(2):  # they do not add up
            step.gradients(x, y)
    found = model.layer.weight.grad.numpy().copy()
    optimizer.zero_grad()
    F.cross_entropy(model(tl.tensor(x)), tl.tensor(y)).backward()
    np.testing.assert_allclose(found, model.layer.weight.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_a_group_that_is_added_later_is_trained():
    model, optimizer = extended()
    added = model.gpt.h[0].mlp
    with tl.parallel.shared(model, optimizer, workers=2) as step:
        ids = np.random.default_rng(0).integers(0, 11, (2, 8, 6))
        step(*ids)
        added.requires_grad_(True)
        optimizer.add_param_group({"params": list(added.parameters())})
        before = [p.numpy().copy() for p in (q.detach() for q in added.parameters())]
        step(*ids)
    assert all((p.array != old).any() for p, old in zip(added.parameters(), before, strict=True))


def test_a_step_that_is_given_up_leaves_no_gradient_to_the_next():
    def run(interrupted):
        model = Net(activation := Activation())
        optimizer = tl.optim.SGD(model.parameters(), lr=0.5)
        with tl.parallel.shared(model, optimizer, F.cross_entropy, workers=2, shards=3) as step:
            if interrupted:
                activation.fails_after = 2
                with pytest.raises(KeyboardInterrupt):
                    step(*rows(5))
            step(*rows())
        return digest(model, optimizer)

    tl.manual_seed(1)
    expected = run(False)
    tl.manual_seed(1)
    assert run(True) == expected


class Activation:
    """relu, until it is interrupted once; the replicas of a model share it."""

    fails_after = 0

    def __call__(self, x):
        if self.fails_after:
            self.fails_after -= 1
            if not self.fails_after:
                raise KeyboardInterrupt
        return F.relu(x)

    def __deepcopy__(self, memo):
        return self


def test_what_cannot_be_shared_is_one_sentence():
    model = Net()
    x, y = rows()
    with pytest.raises(ValueError, match=r"the parameter layer.bias requires a gradient and no optimizer has it: freeze it"):
        tl.parallel.shared(model, tl.optim.SGD([model.layer.weight], lr=0.1))
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the number of workers must be at least 1, got -1"):
        tl.parallel.shared(model, optimizer, workers=-1)
    with pytest.raises(ValueError, match="the number of shards must be at least 1, got 0"):
        tl.parallel.shared(model, optimizer, shards=0)
    step = tl.parallel.shared(model, optimizer, F.cross_entropy, workers=2)
    for wrong in ((), (x[:0], y[:0]), (x, y[:3]), (np.float32(3), y)):
        with pytest.raises(ValueError, match="a batch is one or more tensors with the same number of rows, at least 1; got"):
            step(*wrong)


def test_a_step_that_is_forgotten_ends_its_team():
    from threadpoolctl import threadpool_info, threadpool_limits

    def blas_threads():
        return {info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        model = Net()
        step = tl.parallel.shared(model, tl.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, workers=2)
        step(*rows())
        assert blas_threads() == {1}
        del step
        gc.collect()
        assert blas_threads() == before
