"""Einstein summation: any product of arrays, summed over any indices, said in one line."""

from __future__ import annotations

import string
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import unbroadcast
from tensorlite.ops.summation import sum_of


def einsum_forward(*operands: Array, equation: str) -> tuple[Array, Any]:
    """y_out = Σ over all other indices of the product of the operands,   "ij,jk->ik" being a matrix product

    Shapes: as the equation says; "..." stands for axes that broadcast.
    Saves: the operands, and their indices without "...".
    Raises: ValueError if equation and operands do not fit.
    Source: Einstein 1916; equals torch.einsum.
    """
    inputs, output = _indices(equation, operands)
    if len(operands) == 1:
        return _einsum_of_one(operands[0], inputs[0], output), (operands, inputs, output)
    y = array_module(operands[0]).einsum(f"{','.join(inputs)}->{output}", *operands, optimize=len(operands) > 2)
    return y, (operands, inputs, output)


def einsum_backward(dy: Array, saved: Any) -> tuple[Array, ...]:
    """The gradient of an einsum is an einsum: swap dy and the operand.

    y_ik = Σⱼ a_ij b_jk  ("ij,jk->ik")  is linear in a, and a_ij meets dy_ik with the factor b_jk, so
        da_ij = Σₖ dy_ik b_jk  ("ik,jk->ij").
    Every einsum obeys this one rule, with two indices to look after:
    - an index that only this operand has was summed away; all its values get the same gradient: a factor of ones;
    - an index it has twice, "ii", reads only the diagonal; elsewhere the gradient is 0: a factor δ (the identity matrix).
    """
    operands, inputs, output = saved
    xp = array_module(dy)
    gradients = []
    for position, (x, indices) in enumerate(zip(operands, inputs, strict=True)):
        others = [(i, o) for p, (i, o) in enumerate(zip(inputs, operands, strict=True)) if p != position]
        factors = [(output, dy), *others]
        free = [letter for letter in string.ascii_letters if letter not in "".join(inputs)]
        target = ""
        for axis, letter in enumerate(indices):
            if letter in target:
                fresh = free.pop()
                factors.append((letter + fresh, xp.eye(x.shape[axis], dtype=dy.dtype)))
                letter = fresh
            elif not any(letter in known for known, _ in factors):
                factors.append((letter, xp.ones(x.shape[axis], dtype=dy.dtype)))
            target += letter
        known = ",".join(factor for factor, _ in factors)
        dx = xp.einsum(f"{known}->{target}", *(array for _, array in factors), optimize=True)
        if dx.shape != x.shape:  # an axis of length 1 that met a longer one
            dx = unbroadcast(xp.broadcast_to(dx, tuple(map(max, zip(dx.shape, x.shape, strict=True)))), x.shape)
        gradients.append(dx)
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


def _einsum_of_one(x: Array, indices: str, output: str) -> Array:
    """No product, only a sum: first the diagonals, "ii" to "i", then what `sum_of` adds in blocks, then the order of the axes."""
    xp = array_module(x)
    each = "".join(dict.fromkeys(indices))
    summed = tuple(axis for axis, letter in enumerate(each) if letter not in output)
    y = xp.einsum(f"{indices}->{each}", x)
    y = sum_of(y, summed) if summed else y.copy()
    return xp.einsum(f"{''.join(letter for letter in each if letter in output)}->{output}", xp.asarray(y))


def _indices(equation: str, operands: tuple[Array, ...]) -> tuple[list[str], str]:
    """The indices of every operand and of the result, one letter an axis, "..." spelled out.

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
