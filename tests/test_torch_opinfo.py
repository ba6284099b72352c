"""torch's own samples of arguments (OpInfo) for the ops that are here: values and gradients in float64, and how many are refused.

torch tests its operators with these. Each sample passes, fails, or is refused: an argument that there is nothing behind (out of the small
core), or one that torch takes and we do not, said in a sentence. None may fail, and what is refused is counted, so that it cannot grow.
"""

from __future__ import annotations

import collections
import sys
import types
import unittest
import warnings

import numpy as np
import pytest
import torch

import tensorlite as tl

# torch's file imports this package for the base of its own test cases; the samples need nothing of it
sys.modules.setdefault("expecttest", types.ModuleType("expecttest")).__dict__.setdefault("TestCase", unittest.TestCase)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

REFUSED = {  # how many samples of each are refused, and why
    "nn.functional.batch_norm": 2,  # an input of one axis, (0,)
    "norm": 2,  # "nuc": singular values
}
IN_ANOTHER_ORDER = {  # the tensors to be differentiated come first in a sample
    "einsum": lambda tensors, equation: tl.einsum(equation, *tensors),
    "nn.functional.embedding": lambda weight, ids, **options: tl.nn.functional.embedding(ids, weight, **options),
    "where": lambda x, condition, other: tl.where(condition, x, other),
}
RANDOM = {
    *("bernoulli", "multinomial", "nn.functional.dropout", "normal", "rand_like", "randn_like", "randn", "randint", "rand", "randperm"),
    *("empty", "empty_like", "new_empty"),
}


def ours_of(name):
    if name in IN_ANOTHER_ORDER:
        return IN_ANOTHER_ORDER[name]
    owner = tl
    for part in name.split("."):
        owner = getattr(owner, part)
    return owner


def converted(value, leaves):
    """Tensors of ours with the numbers of torch's; those that want a gradient are noted, with theirs."""
    if isinstance(value, torch.Tensor):
        wants = value.requires_grad and value.is_floating_point()
        x = tl.tensor(value.detach().numpy(), requires_grad=wants)
        if wants:
            leaves.append((x, value))
        return x
    if isinstance(value, torch.dtype):
        return np.dtype(str(value).removeprefix("torch."))
    if isinstance(value, torch.Size):
        return tuple(value)
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(converted(part, leaves) for part in value)
    if isinstance(value, dict):
        return {key: converted(part, leaves) for key, part in value.items()}
    return value


def flat(y):
    return [part for part in y if part is not None] if isinstance(y, tuple | list) else [y]


def close(a, b, what):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape, f"{what}: {a.shape} instead of {b.shape}"
    scale = np.abs(b[np.isfinite(b)]).max(initial=1e-6) if b.dtype.kind == "f" else 1
    np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * max(scale, 1e-3), err_msg=what)


def outcome(op, sample):
    """``passed`` or ``refused``; raises an AssertionError if it fails."""
    arguments = (sample.input, *sample.args)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = flat(op.op(*arguments, **sample.kwargs))
    if not all(isinstance(y, torch.Tensor | bool | int | float) for y in theirs) or any(
        isinstance(y, torch.Tensor) and y.is_complex() for y in theirs
    ):
        return "refused"
    leaves = []
    try:
        args, kwargs = converted(arguments, leaves), converted(sample.kwargs, leaves)
        with np.errstate(all="ignore"):
            ours = flat(ours_of(op.name)(*args, **kwargs))
    except (NotImplementedError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        return f"refused: {type(error).__name__}: {error}"
    assert len(ours) == len(theirs)
    rng = np.random.default_rng(0)
    total, torch_total = [], []
    for i, (y, z) in enumerate(zip(ours, theirs, strict=True)):
        if not isinstance(z, torch.Tensor):
            assert y == z
            continue
        close(y.detach().numpy(), z.detach().numpy(), f"output {i}")
        if z.requires_grad:
            dy = rng.standard_normal(tuple(z.shape))
            torch_total.append((z * torch.tensor(dy)).sum())
            assert y.requires_grad, f"output {i} has no gradient"
            total.append((y * tl.tensor(dy)).sum())
    if not total:
        return "passed"
    with np.errstate(all="ignore"):
        sum(total[1:], total[0]).backward()
    for _, leaf in leaves:
        leaf.grad = None
    sum(torch_total[1:], torch_total[0]).backward()
    for i, (x, leaf) in enumerate(leaves):
        right = np.zeros(tuple(leaf.shape)) if leaf.grad is None else leaf.grad.to_dense().numpy()
        close(np.zeros(x.shape) if x.grad is None else x.grad.numpy(), right, f"gradient {i}")
    return "passed"


def is_here(op):
    try:
        return callable(ours_of(op.name)) and op.name not in RANDOM and torch.float64 in op.dtypes
    except AttributeError:
        return False


HERE = {name: [op for op in op_db if op.name == name and is_here(op)] for name in sorted({op.name for op in op_db if is_here(op)})}


@pytest.mark.parametrize("name", HERE)
def test_torchs_sample_inputs_give_torchs_results(name):
    refused = collections.Counter()
    for op in HERE[name]:
        for sample in op.sample_inputs("cpu", torch.float64, requires_grad=op.supports_autograd):
            if not sample.kwargs.get("dropout_p"):
                refused[outcome(op, sample)] += 1
    passed = refused.pop("passed", 0)
    assert passed, f"every sample is refused: {refused}"
    assert sum(refused.values()) == REFUSED.get(name, 0), refused


def test_most_of_the_functions_of_the_core_have_samples():
    assert len(HERE) >= 150
