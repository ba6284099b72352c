"""Einstein summation: any product of arrays, summed over any indices, in one line.

An einsum consists of permutations of axes (`shape`), sums (`summation`) and matrix products (`matmul`), which do most of the work.
With two operands, an index is of one of four kinds. "bhtd,bhsd->bhts" has

    b, h    in both operands and in the result     a batch of matrices
    t       in the first and in the result         their rows
    s       in the second and in the result        their columns
    d       in both, but not in the result         summed: what a matrix product sums over

so with the axes in the order (b, h, t, d) and (b, h, d, s) it is one batched product. Three or more operands are multiplied two at a
time.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterable
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import sum_of


def einsum_forward(*operands: Array, equation: str) -> tuple[Array, Any]:
    """y_out = Σ over all other indices of the product of the operands,   "ij,jk->ik" being a matrix product

    Shapes: as the equation says; "..." stands for axes that broadcast.
    Saves: the operands, and their indices without "...".
    Raises: ValueError if equation and operands do not fit.
    Source: Einstein 1916; equals torch.einsum.
    """
    inputs, output = _indices(equation, operands)
    y = _contract(list(zip(inputs, _of_equal_lengths(inputs, operands), strict=True)), output)
    return y.copy() if len(operands) == 1 else y, (operands, inputs, output)


def einsum_backward(dy: Array, saved: Any) -> tuple[Array, ...]:
    """The gradient of an einsum is an einsum: exchange dy and the operand.

    y_ik = Σⱼ a_ij b_jk  ("ij,jk->ik")  is linear in a, and a_ij meets dy_ik with the factor b_jk, so
        da_ij = Σₖ dy_ik b_jk  ("ik,jk->ij").
    For any equation: an element of x is multiplied by elements of the other operands and added into elements of y. Its gradient is the
    sum over all of these of dy times the other elements. So every index that x does not have is summed. Three kinds of index need care:
    - an index that only x has was summed: all its values get the same gradient;
    - an index that x has twice, "ii", reads only the diagonal: elsewhere the gradient is 0, whatever dy is;
    - along an index where x has length 1 and another operand is longer, x was broadcast: its gradients are added (see `broadcasting`).
    """
    operands, inputs, output = saved
    wide = _of_equal_lengths(inputs, operands)
    gradients = []
    for position, (x, indices) in enumerate(zip(operands, inputs, strict=True)):
        factors = [(output, dy)] + [(inputs[i], wide[i]) for i in range(len(operands)) if i != position]
        met = [letter for letter in dict.fromkeys(indices) if any(letter in known for known, _ in factors)]
        dx = _contract(factors, "".join(met))
        if len(met) < len(indices):
            dx = _spread(dx, met, indices, wide[position].shape)
        gradients.append(unbroadcast(dx, x.shape))
    return tuple(gradients)


_einsum = Op(einsum_forward, einsum_backward, in_float32=True)


def einsum(equation: str, *operands: Any) -> Any:
    """Products of tensors summed over indices, for example ``einsum("bhtd,bhsd->bhts", q, k)``; as torch.einsum.

    Raises:
        ValueError: if equation and operands do not fit.
        NotImplementedError: for torch's form with lists of numbers instead of an equation.
    """
    if not isinstance(equation, str):
        raise NotImplementedError("einsum: write the indices as a string, 'ij,jk->ik'; the form with lists of numbers is not supported.")
    if len(operands) == 1 and isinstance(operands[0], tuple | list):
        operands = tuple(operands[0])
    return _einsum(*operands, equation=equation)


def _contract(terms: list[tuple[str, Array]], output: str) -> Array:
    """The product of the terms, each (its indices, its array), summed over all indices but ``output``. A view if nothing is summed."""
    while len(terms) > 2:
        pair, needed = _smallest_product(terms, output)
        others = [term for i, term in enumerate(terms) if i not in pair]
        terms = [_product(terms[pair[0]], terms[pair[1]], needed), *others]
    indices, x = _product(terms[0], terms[1], output) if len(terms) == 2 else _reduced(*terms[0], output)
    return x if indices == output else x.transpose([indices.index(letter) for letter in output])


def _smallest_product(terms: list[tuple[str, Array]], output: str) -> tuple[tuple[int, int], str]:
    """Which two terms have the smallest product, and which of its indices the other terms or the output need."""
    lengths = {letter: n for indices, x in terms for letter, n in zip(indices, x.shape, strict=True)}
    candidates = []
    for pair in itertools.combinations(range(len(terms)), 2):
        needed = output + "".join(indices for i, (indices, _) in enumerate(terms) if i not in pair)
        joint = set(terms[pair[0]][0] + terms[pair[1]][0]) & set(needed)
        candidates.append((math.prod(lengths[letter] for letter in joint), pair, needed))
    return min(candidates)[1:]


def _product(first: tuple[str, Array], second: tuple[str, Array], needed: str) -> tuple[str, Array]:
    """The product of two terms, summed over the indices that are not needed: (its indices, its array). See the top of this page."""
    a_indices, a = _reduced(*first, needed + second[0])
    b_indices, b = _reduced(*second, needed + a_indices)
    batch = [letter for letter in a_indices if letter in b_indices and letter in needed]
    summed = [letter for letter in a_indices if letter in b_indices and letter not in needed]
    rows = [letter for letter in a_indices if letter not in b_indices]
    columns = [letter for letter in b_indices if letter not in a_indices]
    indices = "".join(batch + rows + columns)
    if not summed:
        return indices, array_module(a).einsum(f"{a_indices},{b_indices}->{indices}", a, b)
    y = _without_gaps(_matrices(a, a_indices, batch, rows, summed)) @ _without_gaps(_matrices(b, b_indices, batch, summed, columns))
    lengths = dict(zip(a_indices + b_indices, a.shape + b.shape, strict=True))
    return indices, y.reshape([lengths[letter] for letter in indices])


def _matrices(x: Array, indices: str, batch: list[str], rows: list[str], columns: list[str]) -> Array:
    """x as (*batch, rows, columns): the axes of the rows are merged into one, and so are those of the columns; no axes give length 1."""
    x = x.transpose([indices.index(letter) for letter in batch + rows + columns])
    lead, tail = x.shape[: len(batch)], x.shape[len(batch) :]
    return x.reshape(*lead, math.prod(tail[: len(rows)]), math.prod(tail[len(rows) :]))


def _without_gaps(x: Array) -> Array:
    """x, or a contiguous copy. BLAS needs the elements of each row, or those of each column, side by side."""
    return x if x.itemsize in x.strides[-2:] else array_module(x).ascontiguousarray(x)


def _reduced(indices: str, x: Array, needed: str) -> tuple[str, Array]:
    """A term without the axes that are not needed: first diagonals, "ii" to "i", then a sum."""
    each = "".join(dict.fromkeys(indices))
    if each == indices and set(each) <= set(needed):
        return indices, x
    xp = array_module(x)
    if each != indices:
        x = xp.einsum(f"{indices}->{each}", x)
    gone = tuple(axis for axis, letter in enumerate(each) if letter not in needed)
    return "".join(letter for letter in each if letter in needed), xp.asarray(sum_of(x, gone)) if gone else x


def _spread(dx: Array, met: list[str], indices: str, shape: tuple[int, ...]) -> Array:
    """dx, which has the axes ``met``, with all ``indices``: constant along new ones, and 0 off the diagonal of repeated ones."""
    xp = array_module(dx)
    first = [letter in met and indices.index(letter) == axis for axis, letter in enumerate(indices)]
    dx = xp.broadcast_to(dx.reshape([n if here else 1 for n, here in zip(shape, first, strict=True)]), shape)
    for axis, letter in enumerate(indices):
        if indices.index(letter) != axis:
            dx = apply_mask(dx, _diagonal(xp, shape, indices.index(letter), axis))
    return dx


def _of_equal_lengths(inputs: list[str], operands: Iterable[Array]) -> list[Array]:
    """The operands as views, in which an axis of length 1 has the length that its index has elsewhere."""
    operands = list(operands)
    lengths: dict[str, int] = {}
    for indices, x in zip(inputs, operands, strict=True):
        for letter, n in zip(indices, x.shape, strict=True):
            lengths[letter] = n if lengths.get(letter, 1) == 1 else lengths[letter]
    shapes = [tuple(lengths[letter] for letter in indices) for indices in inputs]
    return [x if x.shape == shape else array_module(x).broadcast_to(x, shape) for x, shape in zip(operands, shapes, strict=True)]


def _diagonal(xp: Any, shape: tuple[int, ...], i: int, j: int) -> Array:
    """Where the positions along the axes i and j are equal: booleans that broadcast with ``shape``."""
    places = [xp.arange(shape[axis]).reshape([-1 if k == axis else 1 for k in range(len(shape))]) for axis in (i, j)]
    return places[0] == places[1]


def _indices(equation: str, operands: tuple[Array, ...]) -> tuple[list[str], str]:
    """The indices of every operand and of the result, with one letter for each axis in place of "...".

    Raises:
        ValueError: if a term does not describe its operand.
    """
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise ValueError(f"einsum: {equation!r} describes {len(terms)} operands, got {len(operands)}.")
    named = [term.replace("...", "") for term in terms]
    counts = [x.ndim - len(letters) for letters, x in zip(named, operands, strict=True)]  # axes that "..." stands for
    for term, letters, x, count in zip(terms, named, operands, counts, strict=True):
        if count < 0 or (count > 0 and "..." not in term) or not (letters.isalpha() or letters == ""):
            raise ValueError(f"einsum: the term {term!r} of {equation!r} does not describe an operand of shape {x.shape}.")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    dots = "".join(free[: max(counts, default=0)])
    inputs = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, counts, strict=True)]
    if not arrow:  # torch's and NumPy's default: the broadcast axes, then the letters that occur once, sorted
        letters = "".join(named)
        output = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    output = output.replace("...", dots)
    if len(set(output)) != len(output) or not set(output) <= set("".join(inputs)):
        raise ValueError(f"einsum: the result {output!r} of {equation!r} repeats an index, or has one that no operand has.")
    lengths: dict[str, int] = {}
    for term, x in zip(inputs, operands, strict=True):
        for letter, n in zip(term, x.shape, strict=True):
            if n != lengths.setdefault(letter, n) and n != 1:
                if lengths[letter] != 1:
                    raise ValueError(f"einsum: index {letter!r} of {equation!r} has the lengths {lengths[letter]} and {n}.")
                lengths[letter] = n
    return inputs, output
