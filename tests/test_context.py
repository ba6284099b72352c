"""Blocks that decorate: no_grad, enable_grad, use_kernels, use_precision and the rest, around functions and generators."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite import op, precision, random
from tensorlite.op import kernel_mode, observe


def modes(t):
    """What a generator sees in its body, and its caller in between, with the block in several places."""
    seen = []

    def body(name):
        try:
            seen.append((name, t.is_grad_enabled()))
            got = yield 1
            seen.append((name, got, t.is_grad_enabled()))
            try:
                yield 2
            except KeyError as error:
                seen.append((name, error.args, t.is_grad_enabled()))
            yield 3
            return "the end"
        finally:
            seen.append((name, "closed", t.is_grad_enabled()))

    def run(generator):
        seen.append(next(generator))
        seen.append(t.is_grad_enabled())
        seen.append(generator.send("sent"))
        seen.append(generator.throw(KeyError("thrown")))
        seen.append(t.is_grad_enabled())
        try:
            next(generator)
        except StopIteration as end:
            seen.append(end.value)

    blocks = {"no_grad()": t.no_grad(), "no_grad": t.no_grad, "enable_grad()": t.enable_grad(), "enable_grad": t.enable_grad}
    for name, block in blocks.items():
        run(block(body)(name))
        with t.no_grad():
            run(block(body)(name))
        for _ in block(body)(name):
            break  # closes it
        early = block(body)(name)
        next(early)
        early.close()
    return seen


def test_a_decorated_generator_runs_only_its_body_inside_the_block_as_in_torch():
    assert modes(tl) == modes(torch)


def test_an_error_inside_a_decorated_generator_is_raised_and_leaves_the_block():
    @tl.no_grad
    def body():
        yield 1
        raise KeyError("inside")

    generator = body()
    next(generator)
    with pytest.raises(KeyError, match="inside"):
        next(generator)
    assert tl.is_grad_enabled()


@pytest.mark.parametrize("block", [tl.no_grad, tl.no_grad()], ids=["without brackets", "with brackets"])
def test_a_decorated_function_keeps_its_name_and_records_nothing(block):
    @block
    def evaluate(x, *, factor=2):
        """Some text."""
        return x * factor

    x = tl.ones(2, requires_grad=True)
    assert (evaluate.__name__, evaluate.__doc__) == ("evaluate", "Some text.")
    assert not evaluate(x, factor=3).requires_grad
    assert (x * 2).requires_grad


def test_a_decorated_method_may_be_recursive():
    class Model:
        @tl.no_grad
        def countdown(self, n):
            return [] if n == 0 else [tl.is_grad_enabled(), *self.countdown(n - 1)]

    assert Model().countdown(3) == [False] * 3
    assert tl.is_grad_enabled()


def test_a_decorated_function_may_run_in_many_threads():
    meet = threading.Barrier(4, timeout=30)
    seen = []

    @tl.no_grad
    def body():
        meet.wait()
        seen.append(tl.is_grad_enabled())
        meet.wait()

    def run():
        body()
        seen.append(tl.is_grad_enabled())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == [False] * 4 + [True] * 4


def drawn():
    return random.default_generator().bit_generator.state["state"]["state"].tolist()


STREAM = random.make_generator(5)
KEY = np.zeros(2, np.uint32)

BLOCKS = {  # name -> a block, and what it changes
    "use_kernels": (lambda: tl.use_kernels("book"), kernel_mode),
    "use_precision": (lambda: precision.use_precision("float16"), precision.current),
    "observe": (lambda: observe(lambda name, pair: pair), lambda: op._observer),
    "use_generator": (lambda: random.use_generator(STREAM), drawn),
    "use_dropout_key": (lambda: random.use_dropout_key(KEY), lambda: getattr(random._thread, "dropout", None)),
    "no_grad": (tl.no_grad, tl.is_grad_enabled),
}


@pytest.mark.parametrize(("make", "state"), BLOCKS.values(), ids=BLOCKS)
def test_every_block_decorates_functions_and_generators(make, state):
    outside = state()
    with make():
        inside = state()
    assert inside != outside
    block = make()

    @block
    def function():
        return state()

    @block
    def generator():
        yield state()
        yield state()

    assert type(function()) is type(inside)
    assert function() != outside
    for value in generator():
        assert value != outside
        assert state() == outside
    with block, block:  # and may be entered again
        assert state() != outside
    assert state() == outside


def test_a_decorator_without_arguments_or_function_raises_a_clear_error():
    for make, said in [
        (lambda: tl.use_kernels(lambda: None), "unknown kernels .*it is 'fast' or 'book'"),
        (lambda: precision.use_precision(lambda: None), "unknown precision .*it is one of"),
        (lambda: tl.no_grad(True), "a decorator takes a function, got bool"),
    ]:
        with pytest.raises((ValueError, TypeError), match=said):
            make()


def test_async_functions_are_refused():
    async def wait():
        pass

    async def values():
        yield 1

    for function in (wait, values):
        with pytest.raises(TypeError, match=f"{function.__name__} is async"):
            tl.no_grad(function)
