"""Writing in place, beside torch: the same values and gradients, or the same refusal. Where ours does more, or less, a test says so."""

from __future__ import annotations

import operator

import numpy as np
import pytest
import torch

import tensorlite as tl

# --- a loop written by hand trains ----------------------------------------------------------------------

LR = 0.1


def under_no_grad(t, p):
    with t.no_grad():
        p -= LR * p.grad
    p.grad = None


def step_by_step(t, p):
    with t.no_grad():
        p.grad *= 0.5
        p.grad.mul_(2)
        p.add_(p.grad, alpha=-LR)
        p.grad.zero_()


def data_minus(t, p):
    p.data -= LR * p.grad
    p.grad.zero_()


def data_minus_data(t, p):
    p.data -= LR * p.grad.data
    p.grad.data.zero_()


def data_plus(t, p):  # makemore's
    p.data += -LR * p.grad
    p.grad = None


def data_assigned(t, p):
    p.data = p.data - LR * p.grad
    p.grad = None


def data_copied(t, p):
    p.data.copy_(p.data - LR * p.grad)
    p.grad = None


def data_sub_(t, p):
    p.data.sub_(p.grad, alpha=LR)
    p.grad.fill_(0)


def copied(t, p):
    with t.no_grad():
        p.copy_(p - LR * p.grad)
    p.grad = None


def by_index(t, p):
    with t.no_grad():
        for i in range(len(p)):
            p[i] -= LR * p.grad[i]
    p.grad = None


def decayed(t, p):
    with t.no_grad():
        p.mul_(1 - LR * 0.01).sub_(LR * p.grad)
        p /= 1.001
        p.clamp_(-0.5, 0.5)
    p.grad = None


IDIOMS = [
    under_no_grad,
    step_by_step,
    data_minus,
    data_minus_data,
    data_plus,
    data_assigned,
    data_copied,
    data_sub_,
    copied,
    by_index,
    decayed,
]


def small_model(t, arrays):
    model = t.nn.Sequential(t.nn.Linear(3, 5), t.nn.Tanh(), t.nn.Linear(5, 2))
    with t.no_grad():
        for p, array in zip(model.parameters(), arrays, strict=True):
            p.copy_(t.tensor(array))
    return model


@pytest.mark.parametrize("flat", [False, True], ids=["plain", "in a flat buffer"])
@pytest.mark.parametrize("update", IDIOMS, ids=lambda update: update.__name__)
def test_a_loop_written_by_hand_trains_as_in_torch(update, flat):
    rng = np.random.default_rng(0)
    arrays = [0.3 * rng.standard_normal(shape).astype("float32") for shape in [(5, 3), (5,), (2, 5), (2,)]]
    x, y = rng.standard_normal((8, 3)).astype("float32"), rng.standard_normal((8, 2)).astype("float32")
    trained = []
    for t in (tl, torch):
        model = small_model(t, arrays)
        optimizer = t.optim.SGD(model.parameters(), lr=LR) if flat else None  # ours lays the parameters in one buffer
        average = [t.zeros(*p.shape) for p in model.parameters()]
        for step in range(6):
            loss = (model(t.tensor(x)) - t.tensor(y)).square().mean()
            loss.backward()
            if optimizer and step % 3 == 2:
                optimizer.step()  # finds what the loop has made of the parameters
                optimizer.zero_grad()
                continue
            for p, mean in zip(model.parameters(), average, strict=True):
                update(t, p)
                with t.no_grad():
                    mean *= 0.9
                    mean += 0.1 * p
        trained.append([p.detach().numpy() for p in model.parameters()] + [mean.numpy() for mean in average])
    for ours, theirs, before in zip(*trained, [*arrays, *arrays], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
        assert np.abs(ours - before).max() > 1e-3


def test_an_update_by_hand_writes_to_the_flat_buffer_itself():
    model = tl.nn.Linear(3, 2)
    (flat,) = tl.optim.SGD(model.parameters(), lr=1.0).flats
    model(tl.ones(4, 3)).sum().backward()
    before = flat.data.copy()
    with tl.no_grad():
        for p in model.parameters():
            p.grad *= 0.5
            p -= p.grad
            assert p.array.base is flat.data
            assert p.grad.array.base is flat.grad
    np.testing.assert_array_equal(flat.data, before - flat.grad)
    assert flat.grad[flat.slice_of(1)].tolist() == [2, 2]


def test_a_tied_weight_is_written_once_for_both():
    for t in (tl, torch):
        one, two = t.nn.Linear(2, 2, bias=False), t.nn.Linear(2, 2, bias=False)
        two.weight = one.weight
        with t.no_grad():
            one.weight.fill_(1)
            two.weight *= 3
        assert one.weight.tolist() == [[3, 3], [3, 3]]


# --- values and dtypes ----------------------------------------------------------------------------------

A = np.array([[1.5, -2.0, 3.0], [0.5, 4.0, -6.0]])


def inplace(sign):
    """A function that makes ``x sign= y``."""
    scope = {}
    exec(f"def write(x, y):\n    x {sign}= y\n    return x", scope)
    return scope["write"]


SIGNS = ["+", "-", "*", "/", "//", "**"]
DTYPES = ["bool", "uint8", "int32", "int64", "float16", "float32", "float64"]
PAIRS = [(sign, dtype) for sign in SIGNS for dtype in DTYPES if (sign, dtype) != ("**", "bool")]  # a power of truth values is an int8 here


@pytest.mark.parametrize(("sign", "dtype"), PAIRS)
def test_every_operator_on_every_dtype_writes_or_refuses_as_torch(sign, dtype):
    write = inplace(sign)
    kinds = ["uint8", "int64", "float32", "float64"]
    if sign != "-":  # torch subtracts no truth values; here they count as 0 and 1
        kinds.append("bool")
    others = [2, 0.5, *(np.array([1, 2, 3], kind) for kind in kinds), np.array(2), np.array(2.5)]
    for other in others:
        seen = []
        for t in (tl, torch):
            x = t.tensor(np.abs(A).astype(dtype))
            y = t.tensor(other) if isinstance(other, np.ndarray) else other
            try:
                result = write(x, y)
                assert result is x
                seen.append((str(x.dtype).removeprefix("torch."), x.tolist()))
            except (RuntimeError, TypeError) as error:
                seen.append(error)
        ours, theirs = seen
        assert isinstance(ours, Exception) == isinstance(theirs, Exception), (other, seen)
        if not isinstance(ours, Exception):
            assert ours[0] == theirs[0], (other, seen)
            np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-3 if dtype == "float16" else 1e-6, err_msg=repr(other))


WRITES = {
    "add_": lambda t, x, y: x.add_(y),
    "add_ alpha": lambda t, x, y: x.add_(y, alpha=-0.5),
    "sub_ alpha": lambda t, x, y: x.sub_(y, alpha=2),
    "mul_": lambda t, x, y: x.mul_(y),
    "div_": lambda t, x, y: x.div_(y),
    "div_ trunc": lambda t, x, y: x.div_(y, rounding_mode="trunc"),
    "pow_": lambda t, x, y: x.pow_(2),
    "clamp_": lambda t, x, y: x.clamp_(-1, 2),
    "clamp_ one side": lambda t, x, y: x.clamp_(max=0.5),
    "masked_fill_": lambda t, x, y: x.masked_fill_(x > 1, 0.0),
    "fill_": lambda t, x, y: x.fill_(3),
    "fill_ of a tensor": lambda t, x, y: x.fill_(y[0]),
    "zero_": lambda t, x, y: x.zero_(),
    "copy_": lambda t, x, y: x.copy_(y),
    "copy_ of integers": lambda t, x, y: x.copy_(t.arange(3)),
    "a chain": lambda t, x, y: x.mul_(2).add_(1).div_(3),
    "with itself": lambda t, x, y: x.mul_(x),
    "a row of itself": lambda t, x, y: x.sub_(x[0].clone()),
}


LAYOUTS = {
    "a corner": lambda x: x[:2, :3],
    "transposed": lambda x: x.T[:2, :3],
    "strided": lambda x: x[1::3, ::2],
    "a row": lambda x: x[4:5, 1:4],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_write_is_visible_in_views(write, layout):
    for wanted in (False, True):
        seen = []
        for t in (tl, torch):
            big = t.tensor(np.arange(36.0).reshape(6, 6) - 17, requires_grad=wanted)
            with t.no_grad():
                part = LAYOUTS[layout](big)
                result = write(t, part, t.tensor(np.array([1.5, -2.0, 3.0])))
            assert result is part
            seen.append(big.detach().numpy())
        np.testing.assert_allclose(*seen, rtol=1e-12)


def test_memory_with_negative_strides_is_written_to():
    x = tl.arange(4.0)
    x[::-1].mul_(tl.tensor([1.0, 10.0, 100.0, 1000.0]))
    assert x.tolist() == [0, 100, 20, 3]


def test_overlapping_memory_is_read_before_it_is_written():
    x = tl.tensor([1.0, 2.0, 3.0, 4.0])
    x[1:] += x[:-1]  # torch refuses
    assert x.tolist() == [1, 3, 5, 7]


# --- on the tape ----------------------------------------------------------------------------------------


def three(x, t):
    """Three in-place writes in a row."""
    x += 1
    x *= 2
    x -= t.ones(3, dtype=t.float64) * 0.5
    return x


RIGHT = {
    "x += number": lambda t, w, c: (w * 2).add_(1),
    "x *= number": lambda t, w, c: (w * 2).mul_(3),
    "x *= a tensor that wants a gradient": lambda t, w, c: (w * 2).mul_(w),
    "x /= a tensor that wants a gradient": lambda t, w, c: (w * 2).div_(w + 1),
    "x **= number": lambda t, w, c: (w * 2).pow_(3),
    "x **= a tensor that wants a gradient": lambda t, w, c: (w * 2).pow_(w),
    "with alpha": lambda t, w, c: (w * 2).add_(w, alpha=3).sub_(w.exp(), alpha=0.5),
    "three in a row": lambda t, w, c: three(w * 2, t),
    "clamp_": lambda t, w, c: (w * 2).clamp_(3, 5),
    "masked_fill_": lambda t, w, c: (w * 2).masked_fill_(c > 0, 7.0),
    "zero_": lambda t, w, c: (w * 2).zero_() + w,
    "fill_": lambda t, w, c: (w * 2).fill_(3) * w,
    "fill_ with a value on the tape": lambda t, w, c: (w * 2).fill_(w.sum()),
    "copy_": lambda t, w, c: (w * 2).copy_(w.exp()),
    "copy_ broadcasts": lambda t, w, c: (w * 2).copy_(w[:1].exp()),
    "a constant gets a history": lambda t, w, c: c.add_(w).mul_(w),
    "a constant, copied to": lambda t, w, c: c.copy_(w * w),
    "float64 into float32": lambda t, w, c: (w.float() * 2).add_(w.exp()),
    "after a use that kept nothing": lambda t, w, c: (lambda h: h + 1 + h.mul_(3))(w * 2),
    "a view, alone": lambda t, w, c: (w * 2).view(3, 1).mul_(3),
    "a view of a view": lambda t, w, c: (w * 2).view(3, 1).T.add_(1).mul_(w),
    "detached before": lambda t, w, c: (lambda h: (h.detach(), h.mul_(3))[1])(w * 2),
    "under no_grad it is a constant to the tape": lambda t, w, c: without_the_tape(t, w * 2) * w,
}


def without_the_tape(t, x):
    with t.no_grad():
        x *= 3
    return x


@pytest.mark.parametrize(("name", "make"), RIGHT.items(), ids=RIGHT)
def test_on_the_tape_the_gradient_equals_torchs(name, make):
    results = []
    for t in (tl, torch):
        w = t.tensor([1.0, 2.0, 0.7], dtype=t.float64, requires_grad=True)
        y = make(t, w, t.tensor([-0.5, 0.3, 0.8], dtype=t.float64))
        (y * t.arange(1, y.numel() + 1).reshape(*y.shape)).sum().backward()
        results.append((y.detach().numpy(), w.grad.numpy()))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6 if "float32" in name else 1e-12)


def test_values_saved_by_an_earlier_op_are_not_changed_if_the_tensor_has_no_view():
    """torch refuses these two; here the tensor takes the new array, as in ``h = h + 1``."""
    w = tl.tensor([1.0, 2.0], dtype=tl.float64, requires_grad=True)
    h = w.exp()
    h += 1
    h *= h
    h.sum().backward()
    np.testing.assert_allclose(w.grad.numpy(), 2 * (np.exp([1, 2]) + 1) * np.exp([1, 2]))


def test_a_retained_gradient_is_that_of_the_new_value():
    grads = []
    for t in (tl, torch):
        w = t.tensor([1.0, 2.0], requires_grad=True)
        h = w * 2
        h.retain_grad()
        h *= 3
        h.sum().backward()
        grads.append((h.grad.tolist(), w.grad.tolist()))
    assert grads[0] == grads[1] == ([1, 1], [6, 6])


def after_save(t, w, h):
    y = w * h
    h.detach().mul_(2)
    return y


def under_no_grad_after_save(t, w, h):
    y = w.exp() * h
    with t.no_grad():
        h += 1
    return y


def leaf_after_save(t, w, h):
    y = w * w
    with t.no_grad():
        w -= 1
    return y


def shared_after_save(t, w, h):
    y = h * h
    h.view(3, 1)
    h *= 2
    return y


REFUSED = {  # name -> what is done, and what ours says; torch refuses all of them, too
    "a leaf": (lambda t, w, h: w.add_(1), "add_ on a leaf that requires a gradient: write to it inside no_grad()"),
    "a leaf is zeroed": (lambda t, w, h: w.zero_(), "zero_ on a leaf"),
    "a view of a leaf": (lambda t, w, h: w.view(3, 1).mul_(2), "mul_ on a view of a leaf"),
    "a view of a view of a leaf": (lambda t, w, h: w.view(3, 1)[:2].mul_(2), "mul_ on a view of a leaf"),
    "an expanded tensor": (lambda t, w, h: t.ones(3, 1).expand(3, 2).add_(1), "several elements of this tensor share one place"),
    "an expanded tensor, assigned": (lambda t, w, h: t.ones(3, 1).expand(3, 2).__setitem__(0, 5), "share one place in memory"),
    "growing": (lambda t, w, h: t.ones(3).add_(t.ones(2, 3)), r"add_: a tensor of shape \(3,\) cannot grow to hold \(2, 3\)"),
    "growing on the tape": (lambda t, w, h: h.add_(t.ones(2, 3)), "cannot grow"),
    "growing by copy_": (lambda t, w, h: t.ones(3).copy_(t.ones(2, 3)), "copy_: .* cannot grow"),
    "a mask that grows": (lambda t, w, h: h.masked_fill_(t.ones(2, 3) > 0, 1.0), "masked_fill_: .* cannot grow"),
    "shapes that do not fit": (lambda t, w, h: t.ones(3).mul_(t.ones(2)), "do not broadcast"),
    "an integer tensor with a fraction": (lambda t, w, h: t.arange(3).add_(0.5), "float32, which a tensor of int64 cannot hold"),
    "an integer tensor, divided": (lambda t, w, h: t.arange(3).div_(2), "div_: the result is float32"),
    "an integer tensor with alpha": (lambda t, w, h: t.arange(3).add_(1, alpha=0.5), "cannot hold"),
    "an integer tensor and one on the tape": (lambda t, w, h: t.arange(3).add_(h), "cannot hold"),
    "fill_ with several": (lambda t, w, h: t.ones(3).fill_(t.ones(3)), "fill_ takes one number"),
    "a string": (lambda t, w, h: inplace("+")(t.ones(3), "a"), r"unsupported operand type\(s\) for \+="),
    "copy_ of a list": (lambda t, w, h: t.ones(3).copy_([1, 2, 3]), "copy_ takes a tensor, an array or a number, got list"),
    "integers for a leaf's data": (lambda t, w, h: setattr(w, "data", t.arange(3)), "floating point data, got int64"),
    "a number for data": (lambda t, w, h: setattr(w, "data", 1.0), "data takes a tensor or an array, got float"),
}


def new_memory_before_save(t, w, h):
    c = t.ones(3, dtype=t.float64)
    c.mul_(2)  # to the old memory
    c.data = t.ones(3, dtype=t.float64)
    y = w * c
    c.mul_(2)  # to the new, which was saved
    return y


REFUSED_BY_BACKWARD = {
    "an operand, through detach": (after_save, "mul cannot compute its gradient: .* written to in place"),
    "an operand, under no_grad": (under_no_grad_after_save, "mul cannot compute its gradient"),
    "a leaf, under no_grad": (leaf_after_save, "mul cannot compute its gradient"),
    "an operand that was given other memory": (new_memory_before_save, "mul cannot compute its gradient"),
    "an operand that was viewed": (shared_after_save, "mul cannot compute its gradient"),
}


@pytest.mark.parametrize(("write", "said"), REFUSED.values(), ids=REFUSED)
def test_writes_that_torch_refuses_are_refused_and_change_nothing(write, said):
    for t in (tl, torch):
        w = t.tensor([1.0, 2.0, 3.0], dtype=t.float64, requires_grad=True)
        h = w * 2
        with pytest.raises((RuntimeError, ValueError, TypeError), match=said if t is tl else None):
            write(t, w, h)
        assert w.tolist() == [1, 2, 3]
        assert h.tolist() == [2, 4, 6]


@pytest.mark.parametrize(("make", "said"), REFUSED_BY_BACKWARD.values(), ids=REFUSED_BY_BACKWARD)
def test_a_backward_that_needs_the_old_value_refuses_by_name(make, said):
    for t in (tl, torch):
        w = t.tensor([1.0, 2.0, 3.0], dtype=t.float64, requires_grad=True)
        y = make(t, w, w * 2)
        with pytest.raises(RuntimeError, match=said if t is tl else "inplace"):
            y.sum().backward()


THROUGH_ANOTHER = "its memory was written to in place through another tensor"

REFUSED_BY_US = {  # torch rebuilds the history of every view; ours says what to write instead
    "a view, after what it shows was written to": (lambda t, w, h: (h.view(3, 1), h.mul_(3))[0], THROUGH_ANOTHER),
    "what a view shows, after the view was": (lambda t, w, h: (h[1:].mul_(3), h)[1], THROUGH_ANOTHER),
    "a part of a constant": (lambda t, w, h: (lambda out: (out[:2].add_(h[:2]), out)[1])(t.zeros(3)), "shares its memory with others"),
    "a part of a tensor on the tape": (lambda t, w, h: h.__setitem__(0, 5), "would make its gradient wrong"),
    "a value on the tape into a constant": (lambda t, w, h: t.zeros(3).__setitem__(0, h[0]), "would not pass the gradient on"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED_BY_US.values(), ids=REFUSED_BY_US)
def test_writes_that_only_torch_can_do_are_refused_by_name(make, said):
    w = tl.tensor([1.0, 2.0, 3.0], dtype=tl.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=said):
        make(tl, w, w * 2).sum().backward()


def test_a_view_without_use_in_a_gradient_may_be_outdated():
    for t in (tl, torch):
        w = t.tensor([1.0, 2.0, 3.0], requires_grad=True)
        h = w * 2
        old = h.view(3, 1)
        h *= 3
        with t.no_grad():
            assert old.tolist() == [[6], [12], [18]]  # it shows the new values
        h.sum().backward()
        assert w.grad.tolist() == [6, 6, 6]


def test_memory_that_is_read_only_is_refused():
    array = np.ones(3)
    array.flags.writeable = False
    for write in (lambda x: x.add_(1), lambda x: x.__setitem__(0, 2), lambda x: x.copy_(0)):
        with pytest.raises(RuntimeError, match="this tensor shows memory that is read-only"):
            write(tl.from_numpy(array))


# --- data -----------------------------------------------------------------------------------------------


def test_data_shares_the_memory_and_is_off_the_tape():
    for t in (tl, torch):
        p = t.nn.Parameter(t.ones(2, 2))
        assert not p.data.requires_grad
        p.data[0] = 5
        p.data.mul_(2)
        assert p.tolist() == [[10, 10], [2, 2]]
        p.data = t.zeros(3)
        assert tuple(p.shape) == (3,)
        assert p.requires_grad
        given = t.tensor([1.0, 2.0])
        p.data = given
        p.data += 1
        assert given.tolist() == [2, 3]  # the memory was handed over, not copied


def test_data_takes_an_array_too():
    p = tl.nn.Parameter(tl.ones(2))
    p.data = np.array([3.0, 4.0], "float32")
    assert p.tolist() == [3, 4]


def test_data_takes_an_array_of_another_dtype_only_as_a_tensor():
    """A float64 array, which NumPy makes of most things, would turn all that follows to float64; torch takes no arrays at all."""
    p = tl.nn.Parameter(tl.ones(2))
    with pytest.raises(TypeError, match=r"the data of a float32 tensor takes .* that dtype, got float64: convert it with .astype"):
        p.data = np.array([3.0, 4.0])
    assert p.tolist() == [1, 1] and p.dtype == tl.float32
    for t in (tl, torch):
        q = t.nn.Parameter(t.ones(2))
        q.data = t.zeros(2, dtype=t.float64)
        assert q.dtype == t.float64


@pytest.mark.parametrize("other", ["a", None, [1.0, 2.0, 3.0], 1j])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "add_", "sub_", "mul_", "div_", "pow_"])
def test_an_operand_that_is_not_a_number_is_refused(name, other):
    x = tl.ones(3)
    with pytest.raises(TypeError, match=rf"{name.rstrip('_')}: an operand is a tensor, an array or a number, got {type(other).__name__}\."):
        getattr(x, name)(other)
    assert x.tolist() == [1, 1, 1]


@pytest.mark.parametrize("other", [3, np.array([3, 3]), "tensor"])
@pytest.mark.parametrize("name", ["imod", "iand", "ior", "ixor", "iadd", "imul"])
def test_an_operator_with_an_equals_sign_writes_to_the_same_tensor(name, other):
    if isinstance(other, str):
        other = tl.tensor([3, 3])
    x = tl.tensor([5, 6])
    memory = x.numpy()
    assert getattr(operator, name)(x, other) is x
    assert memory.tolist() == getattr(operator, name)(np.array([5, 6]), 3).tolist()


def test_a_write_is_allowed_to_what_backward_does_not_read():
    """exp saves its result, so its input may change; mul saves its operands."""
    for t in (tl, torch):
        w = t.ones(3, requires_grad=True)
        x = w * 1
        part, y = x[:2], x.exp()
        with t.no_grad():
            part.add_(1)
        y.sum().backward()
        np.testing.assert_allclose(w.grad.numpy(), np.full(3, np.e), rtol=1e-6)


def test_writes_through_data_are_not_counted_and_those_through_detach_are():
    for t in (tl, torch):
        for door, refused in (("data", False), ("detach", True)):
            w, c = t.ones(2, requires_grad=True), t.ones(2)
            y = (w * c).sum()
            (c.data if door == "data" else c.detach()).mul_(3)
            if refused:
                with pytest.raises(RuntimeError, match="in place" if t is tl else "inplace"):
                    y.backward()
            else:
                y.backward()
                assert w.grad.tolist() == [3, 3]
