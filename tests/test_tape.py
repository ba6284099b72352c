"""The tape: gradients add up where paths meet, without recursion, memory leaks or outdated values."""

from __future__ import annotations

import gc
import threading
import tracemalloc
import weakref

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.op import REGISTRY, Op
from tensorlite.tape import Node


def leaves(*arrays):
    """Each array as a leaf of ours and as one of torch's."""
    ours = [tl.tensor(np.asarray(a, "float64"), requires_grad=True) for a in arrays]
    theirs = [torch.tensor(np.asarray(a, "float64"), requires_grad=True) for a in arrays]
    return ours, theirs


def assert_same_gradients(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None:
            np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-14, atol=1e-14)


# --- paths that meet ------------------------------------------------------------------------------------

GRAPHS = {
    "used twice by one op": lambda t, x, y: (x * x).sum(),
    "used in two places": lambda t, x, y: (x * y + x.exp()).sum(),
    "diamond": lambda t, x, y: (lambda h: (h.exp() * h.sin()).sum())(x * y),
    "diamond of unequal depth": lambda t, x, y: (lambda h: (h.exp().sin().exp() * h).sum())(x * y),
    "diamond in a diamond": lambda t, x, y: (lambda h: (lambda g: g * h * x)(h.sin() * h.cos()))(x + y).sum(),
    "leaf at both ends": lambda t, x, y: (((x * y).sin() * y) * x).sum(),
    "a leaf that does not matter": lambda t, x, y: (x * 2).sum(),
    "a branch cut off": lambda t, x, y: (x * y.detach() + y).sum(),
    "several outputs": lambda t, x, y: (lambda a, b, c: (a * c * y[0]).sum() + b.sum())(*x.unbind()),
    "several outputs, some unused": lambda t, x, y: (lambda a, b, c: (a * a).sum() + y.sum())(*(x * y).unbind()),
    "several outputs, one used twice": lambda t, x, y: (lambda a, b: (a * a.exp()).sum())(*x.split([1, 2])),
    "views of one leaf": lambda t, x, y: (x[0] * x[1:] * x.T[0].sum()).sum(),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS.keys())
def test_gradients_add_up_where_paths_meet(graph):
    rng = np.random.default_rng(0)
    ours, theirs = leaves(rng.standard_normal((3, 3)), rng.standard_normal((3, 3)))
    for _ in range(2):  # the second backward adds to the first
        graph(tl, *ours).backward()
        graph(torch, *theirs).backward()
    assert_same_gradients(ours, theirs)


def test_random_graphs_agree_with_torch():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        ours, theirs = leaves(*rng.uniform(-1, 1, (3, 4)))
        plan = [(rng.integers(4), rng.random(2)) for _ in range(30)]

        def run(values, plan=plan):
            values = list(values)
            for kind, picks in plan:
                a, b = (values[int(p * len(values))] for p in picks)
                values.append([lambda a, b: a * b, lambda a, b: a + b, lambda a, b: a.sin(), lambda a, b: a - b.cos()][kind](a, b))
            return values[-1] * values[-2] + values[-3]

        cotangent = rng.standard_normal(4)
        run(ours).backward(tl.tensor(cotangent))
        run(theirs).backward(torch.tensor(cotangent))
        assert_same_gradients(ours, theirs)


def test_a_leaf_is_its_own_root():
    ours, theirs = leaves(2.0)
    ours[0].backward()
    theirs[0].backward()
    assert_same_gradients(ours, theirs)


def test_gradients_that_an_op_shares_are_not_written_to():
    x, y = tl.tensor([1.0], requires_grad=True), tl.tensor([1.0], requires_grad=True)
    cotangent = tl.tensor([1.0])
    (x + y).backward(cotangent)  # add hands one and the same array to both
    (x * 5).backward(cotangent)
    assert (x.grad.tolist(), y.grad.tolist(), cotangent.tolist()) == ([6], [1], [1])
    assert not np.shares_memory(x.grad.array, y.grad.array)


def test_an_expanded_gradient_becomes_an_array_that_can_be_written_to():
    x = tl.ones(3, requires_grad=True)
    x.sum().backward()
    x.sum().backward()
    assert x.grad.tolist() == [2, 2, 2]


def test_gradients_go_to_the_flat_buffer():
    flat = np.full(5, 9.0, dtype="float32")
    x, y = tl.ones(2, requires_grad=True), tl.ones(3, requires_grad=True)
    x.grad_buffer, y.grad_buffer = flat[:2], flat[2:]
    for _ in range(2):
        (x.sum() * 3).backward()
    y.sum().backward()
    assert flat.tolist() == [6, 6, 1, 1, 1]
    assert np.shares_memory(x.grad.array, flat)


@pytest.fixture
def scaled_sum():
    """y = a + 2 b, whose backward writes where it is told to; yields the op and what it was told."""
    told = []

    def scaled_sum_forward(a, b):
        return a + 2 * b, None

    def scaled_sum_backward(dy, saved, needs_grad=(True, True), out=(None, None)):
        told.append(out)
        da, db = (np.empty_like(dy) if home is None else home for home in out)
        da[...], db[...] = dy, 2 * dy
        return da, db

    yield Op(scaled_sum_forward, scaled_sum_backward), told
    del REGISTRY["scaled_sum"]


def with_home(*shape):
    x = tl.ones(*shape, requires_grad=True)
    x.grad_buffer = np.full(shape, 9.0, np.float32)
    return x


def test_a_backward_may_write_into_the_gradient_buffer(scaled_sum):
    op, told = scaled_sum
    x, y = with_home(3), tl.ones(3, requires_grad=True)
    for times in (1, 2):
        op(x, y).sum().backward()
        assert x.grad.tolist() == [times] * 3 and y.grad.tolist() == [2 * times] * 3
        assert x.grad.array is x.grad_buffer
    (first, nowhere), second = told
    assert first is x.grad_buffer and nowhere is None
    assert second == (None, None), "something is there already: the next gradient is added to it"


def test_a_tensor_used_twice_gets_the_sum_in_its_gradient_buffer(scaled_sum):
    op, told = scaled_sum
    x = with_home(3)
    op(x, x).sum().backward()
    assert x.grad.tolist() == [3, 3, 3] and x.grad.array is x.grad_buffer
    assert told[0][0] is x.grad_buffer and told[0][1] is None


def test_a_hook_gets_a_gradient_before_it_is_in_its_buffer(scaled_sum):
    op, told = scaled_sum
    x = with_home(3)
    x.register_hook(lambda dx: dx * 10)
    op(x, x).sum().backward()
    assert x.grad.tolist() == [30, 30, 30] and told == [(None, None)]


@pytest.fixture
def adding():
    """y = 2 a + 3 b, whose backward adds what has arrived for a before; yields the op and what it was told."""
    told = []

    def adding_forward(a, b):
        return 2 * a + 3 * b, None

    def adding_backward(dy, saved, accumulated=None):
        told.append(accumulated)
        return 2 * dy if accumulated is None else 2 * dy + accumulated, 3 * dy

    yield Op(adding_forward, adding_backward), told
    del REGISTRY["adding"]


def test_a_backward_may_add_the_gradient_from_other_ops(adding):
    """As along a residual stream: h goes through the op, and past it."""
    op, told = adding
    x = tl.ones(3, requires_grad=True)
    h, other = x * 1, x * 10
    (op(h, other) + h * 7).sum().backward()
    assert x.grad.tolist() == [2 + 7 + 30] * 3
    assert told[0].tolist() == [7] * 3


def test_the_gradient_from_other_ops_for_a_later_argument_is_not_lost(adding):
    op, told = adding
    x = tl.ones(3, requires_grad=True)
    h, other = x * 1, x * 10
    (op(h, other) + other * 7).sum().backward()
    assert x.grad.tolist() == [2 + 30 + 70] * 3 and told == [None]


def test_the_gradient_from_other_ops_is_added_once_for_a_repeated_tensor_or_leaf(adding):
    op, told = adding
    x = tl.ones(3, requires_grad=True)
    h = x * 1
    (op(h, h) + h * 7).sum().backward()
    assert x.grad.tolist() == [2 + 3 + 7] * 3 and told[0].tolist() == [7] * 3
    leaf = tl.ones(3, requires_grad=True)
    (op(leaf, leaf) + leaf * 7).sum().backward()
    assert leaf.grad.tolist() == [12] * 3 and told[1] is None


def test_a_hook_sees_the_sum_once(adding):
    op, _ = adding
    x, seen = tl.ones(3, requires_grad=True), []
    h = x * 1
    h.register_hook(lambda dx: seen.append(dx.tolist()))
    (h * 7 + op(h, x)).sum().backward()
    assert seen == [[9.0] * 3] and x.grad.tolist() == [12] * 3


# --- depth ----------------------------------------------------------------------------------------------


def test_ten_thousand_ops_do_not_recurse():
    x = tl.tensor(1.0, dtype=tl.float64, requires_grad=True)
    y = x
    for _ in range(10_000):
        y = y * 1.0001 + 0.0
    y.backward()
    assert x.grad.item() == pytest.approx(1.0001**10_000, rel=1e-9)


def test_a_deep_graph_without_backward_can_be_freed():
    x = tl.tensor(1.0, requires_grad=True)
    y = x
    for _ in range(30_000):
        y = y + 1.0
    first = weakref.ref(y.source[0])
    del y
    gc.collect()
    assert first() is None


# --- one walk, or several -------------------------------------------------------------------------------


def test_a_second_backward_needs_retain_graph():
    ours, theirs = leaves([1.0, 2.0])
    mine, other = (ours[0] * ours[0]).exp().sum(), (theirs[0] * theirs[0]).exp().sum()
    for loss in (mine, other):
        loss.backward(retain_graph=True)
        loss.backward()
    assert_same_gradients(ours, theirs)
    with pytest.raises(
        RuntimeError, match=r"reached sum a second time, but the first call freed what its forward saved; pass retain_graph=True"
    ):
        mine.backward()


def test_two_losses_through_one_freed_node():
    x = tl.tensor([1.0, 2.0], requires_grad=True)
    h = x.exp()
    h.sum().backward()
    with pytest.raises(RuntimeError, match="reached exp a second time"):
        (h * 2).sum().backward()


def test_create_graph_is_refused_by_name():
    x = tl.tensor(1.0, requires_grad=True)
    with pytest.raises(NotImplementedError, match="create_graph=True"):
        (x * x).backward(create_graph=True)


# --- where to start -------------------------------------------------------------------------------------


def test_backward_without_a_gradient_needs_one_element():
    x = tl.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"on a tensor of shape \(2, 3\) needs a gradient of that shape.*mean\(\) or sum\(\)"):
        (x * 2).backward()
    (x.sum().reshape(1, 1) * 2).backward()
    assert x.grad.tolist() == [[2] * 3] * 2


def test_backward_with_a_gradient_of_another_shape():
    x = tl.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"gradient of shape \(3,\) for a tensor of shape \(2, 3\)"):
        (x * 2).backward(tl.ones(3))


def test_backward_without_history():
    for y in (tl.ones(1), tl.ones(1, requires_grad=True).detach() * 2):
        with pytest.raises(RuntimeError, match="does not require a gradient"):
            y.backward()


def test_a_gradient_of_another_dtype_is_converted():
    x = tl.ones(2, requires_grad=True)
    (x * 2).backward(tl.tensor([0.5, 1.5], dtype=tl.float64))
    assert x.grad.dtype == tl.float32
    assert x.grad.tolist() == [1, 3]


# --- a backward that is wrong ---------------------------------------------------------------------------


@pytest.fixture
def broken_op():
    """Makes ops with a backward of one's choice, and forgets them afterwards."""
    made = []

    def make(backward):
        def broken_forward(x, y):
            return x + y, None

        made.append(Op(broken_forward, backward))
        return made[-1]

    yield make
    for op in made:
        del REGISTRY[op.name]


def test_a_gradient_of_the_wrong_shape_is_refused(broken_op):
    op = broken_op(lambda dy, saved: (dy, dy))  # forgets to sum over the axis along which y was repeated
    y = tl.ones(3, requires_grad=True)
    out = op(tl.ones(2, 3), y)
    message = r"backward of broken returned .* shape \(2, 3\) for argument 1, whose shape is \(3,\): was the sum over a broadcast axis"
    with pytest.raises(RuntimeError, match=message):
        out.backward(tl.ones(2, 3))


def test_a_missing_gradient_is_refused(broken_op):
    x = tl.ones(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="broken has no gradient for its argument 1"):
        broken_op(lambda dy, saved: (dy, None))(tl.ones(3), x).sum().backward()


# --- hooks and retain_grad ------------------------------------------------------------------------------


def hooked(t, x):
    """Hooks of every kind; returns what each of them saw."""
    seen = []

    def note(name, result=None):
        def hook(grad):
            seen.append((name, grad.tolist()))
            return None if result is None else result(grad)

        return hook

    h = x * 3
    h.retain_grad()
    h.retain_grad()  # twice is as once
    h.register_hook(note("middle"))
    h.register_hook(note("middle doubles", lambda g: g * 2))
    removed = h.register_hook(note("removed"))
    removed.remove()
    removed.remove()
    a, b = h.split(1)
    a.register_hook(note("first output"))
    x.register_hook(note("leaf"))
    x.register_hook(note("leaf halves", lambda g: g / 2))
    ((a * b).sum() + (h * x).sum() + x.sum()).backward()
    return seen, h.grad.tolist(), x.grad.tolist()


def test_hooks_see_and_replace_gradients_as_in_torch():
    ours, theirs = leaves([1.0, 2.0])
    assert hooked(tl, ours[0]) == hooked(torch, theirs[0])


def test_a_leaf_hook_is_called_once_with_the_whole_sum():
    x, calls = tl.tensor([1.0], requires_grad=True), []
    x.register_hook(lambda g: calls.append(g.item()))
    y = x * 1
    for _ in range(10):
        y = y + x
    y.backward()
    assert calls == [11]


def test_hooks_and_retain_grad_need_a_gradient():
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        tl.ones(2).register_hook(print)
    with pytest.raises(RuntimeError, match="does not require a gradient"):
        tl.ones(2).retain_grad()


def test_retain_grad_adds_up_over_walks():
    ours, theirs = leaves([1.0, 2.0])
    grads = []
    for x in (ours[0], theirs[0]):
        h = x * 2
        h.retain_grad()
        (h * h).sum().backward(retain_graph=True)
        (h * h).sum().backward()
        grads.append(h.grad.tolist())
    assert grads[0] == grads[1]


def test_without_retain_grad_intermediate_gradients_are_not_kept():
    x = tl.ones(2, requires_grad=True)
    h = x * 2
    h.sum().backward()
    assert h.grad is None


# --- switching the tape off -----------------------------------------------------------------------------


def test_no_grad_and_enable_grad_as_contexts():
    x = tl.ones(2, requires_grad=True)
    with tl.no_grad():
        assert not (x * 2).requires_grad
        with tl.enable_grad():
            assert (x * 2).requires_grad
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), tl.no_grad():
        raise KeyError
    assert tl.is_grad_enabled()


def test_no_grad_as_a_decorator():
    @tl.no_grad()
    def double(x, depth):
        return double(x, depth - 1) if depth else x * 2

    x = tl.ones(2, requires_grad=True)
    assert not double(x, 3).requires_grad
    assert (x * 2).requires_grad


def test_no_grad_holds_for_its_thread_only():
    x, inside, done, seen = tl.ones(2, requires_grad=True), threading.Event(), threading.Event(), []

    def quiet():
        with tl.no_grad():
            inside.set()
            done.wait(10)
            seen.append((x * 2).requires_grad)

    thread = threading.Thread(target=quiet)
    thread.start()
    inside.wait(10)
    seen.append((x * 2).requires_grad)
    done.set()
    thread.join()
    assert seen == [True, False]


def test_threads_walk_their_own_graphs():
    results = {}

    def work(n):
        x = tl.tensor(np.full(50, float(n)), requires_grad=True)
        for _ in range(50):
            (x * x * x).sum().backward()
        results[n] = x.grad.numpy()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, grad in results.items():
        np.testing.assert_allclose(grad, 50 * 3 * n**2)


# --- writing in place -----------------------------------------------------------------------------------


def test_setitem_equals_torchs():
    index_arrays = [[0, 2], ([1, 0], slice(None), [3, 1]), (0, slice(None), [1, 3]), (slice(None), np.array([True, False, True]))]
    for index in [0, (1, -1), (slice(None), slice(1, None), 2), (..., None, 0), *index_arrays]:
        mine, other = tl.zeros(3, 3, 4), torch.zeros(3, 3, 4)
        shape = tuple(other[index].shape)
        values = np.random.default_rng(0).standard_normal(shape).astype("float32")
        mine[index], other[index] = tl.tensor(values), torch.tensor(values)
        np.testing.assert_array_equal(mine.numpy(), other.numpy())
        mine[index] = -1
        other[index] = -1
        np.testing.assert_array_equal(mine.numpy(), other.numpy())


def test_setitem_through_a_mask_tensor():
    x = tl.tensor([1.0, -2.0, 3.0])
    x[x < 0] = 0
    assert x.tolist() == [1, 0, 3]


def test_setitem_on_the_tape_is_refused():
    x = tl.ones(2, requires_grad=True)
    for tensor in (x, x * 2):
        with pytest.raises(RuntimeError, match=r"in place to a tensor that requires a gradient.*where\(\) or masked_fill\(\)"):
            tensor[0] = 5
    with tl.no_grad():
        x[0] = 5
    assert x.tolist() == [5, 1]


def test_setitem_of_a_value_on_the_tape_is_refused():
    x, value = tl.zeros(2), tl.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match="a value that requires a gradient is written into a tensor that would not pass the gradient on"):
        x[:1] = value
    x[:1] = value.detach()
    assert x.tolist() == [1, 0]


STALE = {
    "an input": lambda x, c: (x * c, c),
    "a view of an input": lambda x, c: (x * c, c[1:]),
    "a view of a view": lambda x, c: (x * c, c.view(3, 1)[1:].T),
    "what an input is a view of": lambda x, c: (x[:2] * c[1:], c),
    "an input, detached": lambda x, c: (x * x, x.detach()),
    "a result": lambda x, c: (lambda y: (y, y.detach()))(x.exp()),
    "a view of a result": lambda x, c: (lambda y: (y, y.detach()[0:1]))(x.exp()),
}


@pytest.mark.parametrize("make", STALE.values(), ids=STALE.keys())
def test_values_overwritten_after_the_forward_are_not_used(make):
    ours, theirs = leaves([1.0, 2.0, 3.0])
    for x, t in ((ours[0], tl), (theirs[0], torch)):
        y, written = make(x, t.ones(3, dtype=t.float64))
        written[0] = 7
        with pytest.raises(RuntimeError, match="in place" if t is tl else "inplace"):
            y.sum().backward()


def test_the_message_about_overwritten_memory_names_the_op_and_the_remedy():
    x, c = tl.ones(2, requires_grad=True), tl.ones(2)
    y = (x * c).sum()
    c[0] = c[1] = 2
    with pytest.raises(
        RuntimeError, match=r"mul cannot compute its gradient: .* in place after the forward \(2 time\(s\)\); change a clone\(\) instead"
    ):
        y.backward()


def test_writing_before_the_forward_or_to_other_memory_is_allowed():
    x, c, other = tl.ones(2, requires_grad=True), tl.ones(2), tl.ones(2)
    c[0] = 3
    y = (x * c).sum()
    other[0] = 5
    c.clone()[0] = 7
    y.backward()
    assert x.grad.tolist() == [3, 1]


# --- memory ---------------------------------------------------------------------------------------------


def test_backward_frees_what_the_forward_saved():
    x = tl.ones(1000, requires_grad=True)
    h = x.exp()
    loss = (h * h).sum()
    saved = weakref.ref(h.array)
    del h
    assert saved() is not None
    loss.backward()
    assert saved() is None  # though the loss still lives


def test_dropping_the_loss_frees_the_graph_without_the_garbage_collector():
    x = tl.ones(1000, requires_grad=True)
    gc.collect()
    gc.disable()
    try:
        h = x.exp()
        h.retain_grad()
        h.register_hook(lambda g: None)
        loss = (h * h).sum()
        node, saved = weakref.ref(h), weakref.ref(h.array)
        del h, loss
        assert node() is None
        assert saved() is None
    finally:
        gc.enable()


def test_memory_is_flat_over_many_steps():
    rng = np.random.default_rng(0)
    w = tl.tensor(rng.standard_normal((32, 32)), requires_grad=True)
    x = tl.tensor(rng.standard_normal((8, 32)))

    def step():
        h = x
        for part in (w, w.T, w):
            h = (h @ part).tanh()
        a, _unused = h.split(16, 1)
        (a * a).mean().backward()
        w.grad = None

    def alive():
        gc.collect()
        return sum(issubclass(type(thing), tl.Tensor | Node) for thing in gc.get_objects())

    for _ in range(20):
        step()
    objects = alive()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(200):
            step()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert alive() == objects
    # NumPy's own cache of small blocks fills up to about 30000 bytes; one array of 2048 a step would be 400000.
    assert grown < 50_000, f"{grown} bytes more after 200 steps"
