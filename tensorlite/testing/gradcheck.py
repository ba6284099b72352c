"""Check a gradient against the function itself, by small changes of its inputs.

For outputs y = f(x) and a random cotangent dy, the number L(x) = Σ dy · y has the gradient dx that
backward returns for dy. Central differences give the same gradient without calculus,

    D(h) = (L(x + h·e) - L(x - h·e)) / 2h  =  ∂L/∂x·e + c·h² + O(h⁴),

and Richardson's trick removes the h² term by combining two step lengths: (4·D(h) - D(2h)) / 3. In
float64 this gives about ten correct digits, so even a small mistake is visible.

Why a random cotangent: with dy = 1, as in ``f(x).sum().backward()``, the gradient of a softmax is zero and that of a
layernorm nearly zero, even if the code is wrong. A random dy gives every column of the Jacobian a
different weight, so a wrong gradient agrees with probability zero.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module, to_numpy
from tensorlite.tape import no_grad
from tensorlite.tensor import Tensor, is_floating
from tensorlite.testing.diagnosis import Evidence, diagnose, diagnose_directions

_DIRECTIONS = 8  # random directions for an input that is too large to move element by element


class GradientError(AssertionError):
    """A gradient is wrong; the message says where, by how much, and what the mistake looks like."""


@dataclass(frozen=True)
class Mismatch:
    """One input whose gradient is wrong.

    Attributes:
        position, label: which input, by number and as messages name it.
        index: where the error is largest.
        backward, differences: the two numbers there.
        error: how far they are apart, relative to the largest number of that gradient.
        wrong, size: how many numbers of the gradient are wrong, and how many there are. For an input that was checked along random
            directions ``wrong`` is None.
        looks_like: the kind of mistake that would give this gradient, to follow "It looks like", or None.
        evidence: what the diagnosis read; None where the input was checked along random directions.
    """

    position: int
    label: str
    index: tuple[int, ...]
    backward: float
    differences: float
    error: float
    wrong: int | None
    size: int
    looks_like: str | None
    evidence: Evidence | None = field(repr=False, compare=False)


@dataclass(frozen=True)
class GradcheckReport:
    """The result of a `gradcheck` that passed.

    Attributes:
        worst: the largest error, relative to the largest number in that input's gradient.
        where: the input and index of that error.
        compared: how many numbers were compared.
    """

    worst: float
    where: str
    compared: int


def gradcheck(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    eps: float = 2.0**-12,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    seed: int = 0,
    max_jacobian: int = 1024,
) -> GradcheckReport:
    """Compare the gradients of ``fn(*inputs)`` with central differences, for every floating point input.

    Args:
        fn: takes tensors, returns a tensor or a tuple or list of them. It must give the same result
            twice: seed any random numbers inside it.
        inputs: float64 arrays or tensors are checked; integers, booleans and anything else are passed through.
        eps: step length of the differences. Keep every input further than 2·eps from a kink.
        rtol, atol: each number may be off by ``atol + rtol · (largest number in that input's gradient)``.
        seed: for the cotangents and directions.
        max_jacobian: inputs of up to this many elements are checked element by element, larger ones
            along random directions.

    Raises:
        GradientError: if a gradient is wrong, or backward fails.
        TypeError: for floating point inputs that are not float64.
        ValueError: if there is nothing to check, or ``fn`` is random.
    """
    __tracebackhide__ = True  # pytest shows the line that called gradcheck, and the message
    problem = _TensorProblem(fn, inputs, eps, seed)
    findings = _findings(problem, atol / rtol, max_jacobian)
    worst = findings[0]
    if not worst.error <= rtol:
        others = [problem.label(f.position) for f in findings[1:] if not f.error <= rtol]
        raise GradientError(_message(problem.op, _mismatch(problem, worst, findings), others))
    where = f"{problem.label(worst.position)} at index {worst.index}" if worst.numeric.size else problem.label(worst.position)
    return GradcheckReport(worst.error, where, sum(finding.numeric.size for finding in findings))


def compare_with_differences(
    forward: Callable[..., Any],
    backward: Callable[[Any], Sequence[Array | None]],
    inputs: Sequence[Any],
    *,
    eps: float = 2.0**-12,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    seed: int = 0,
    max_jacobian: int = 1024,
) -> list[Mismatch]:
    """`gradcheck` for plain functions on arrays that are not an op: returns what is wrong, the worst first, instead of raising.

    Args:
        forward: takes ``inputs`` and returns an array or a tuple of arrays.
        backward: takes dy, an array or a tuple like the result of forward, and returns one gradient for each of the leading inputs, of its
            shape, or None.
        inputs, eps, rtol, atol, seed, max_jacobian: as for `gradcheck`; the arrays are float64.

    Raises:
        TypeError, ValueError: as `gradcheck`.
    """
    problem = _PairProblem(forward, backward, inputs, eps, seed)
    findings = _findings(problem, atol / rtol, max_jacobian)
    return [_mismatch(problem, finding, findings) for finding in findings if not finding.error <= rtol]


class _Problem:
    """L(x) = Σ dy · fn(x), its values near the inputs and its gradients by backward."""

    def __init__(self, fn: Callable[..., Any], inputs: Sequence[Any], eps: float, seed: int) -> None:
        self.fn, self.eps = fn, eps
        self.inputs = [x.array if isinstance(x, Tensor) else x for x in inputs]
        self.names = _parameter_names(fn, len(self.inputs))
        self.rng = np.random.default_rng(seed)
        self.positions = [i for i, x in enumerate(self.inputs) if hasattr(x, "dtype") and is_floating(x.dtype)]
        for i in self.positions:
            if self.inputs[i].dtype != np.float64:
                raise TypeError(
                    f"gradcheck: {self.label(i)} is {self.inputs[i].dtype}; differences of rounded numbers prove nothing, "
                    "so give float64 inputs (the ops run the same lines in both)."
                )
        if not self.positions:
            raise ValueError("gradcheck: none of the inputs is floating point, so there is no gradient to check.")

        self.op = getattr(fn, "__name__", type(fn).__name__)
        self.y = self.outputs(self.inputs)
        if not self.y:
            raise ValueError("gradcheck: no output of fn is floating point, so there is no gradient to check.")
        if any(bool((a != b).any()) for a, b in zip(self.y, self.outputs(self.inputs), strict=True) if not np.isnan(to_numpy(a)).any()):
            raise ValueError("gradcheck: fn gave two different results for the same inputs: seed its random numbers inside fn.")
        self.dy = [array_module(y).asarray(self.rng.standard_normal(y.shape)) for y in self.y]

    def label(self, position: int) -> str:
        name = self.names[position]
        return f"input {position} ({name})" if name else f"input {position}"

    def outputs(self, arrays: Sequence[Any]) -> list[Array]:
        """The floating point outputs of fn."""
        raise NotImplementedError

    def gradients(self) -> dict[int, Array]:
        """dx for every floating point input, by backward."""
        raise NotImplementedError

    def differences(self, position: int, direction: Array, h: float) -> list[Array]:
        """dy · (f(x + h·direction) - f(x - h·direction)) / 2h: what each output contributes to the slope."""
        x = self.inputs[position]
        ahead, behind = (self.outputs([*self.inputs[:position], x + s * direction, *self.inputs[position + 1 :]]) for s in (h, -h))
        result = []
        for a, b, dy in zip(ahead, behind, self.dy, strict=True):
            xp = array_module(a)
            same = a == b  # also where both are infinite
            result.append(xp.where(same, 0, dy * (xp.where(same, 0, a) - xp.where(same, 0, b)) / (2 * h)))
        return result

    def slope(self, position: int, direction: Array) -> float:
        """The derivative of L along ``direction``, by Richardson's combination of two central differences."""
        near, far = (sum(float(d.sum()) for d in self.differences(position, direction, h)) for h in (self.eps, 2 * self.eps))
        return (4 * near - far) / 3

    def is_kink(self, position: int, direction: Array) -> bool:
        """Whether the slopes to the left and right differ, or the slope changes with the step length."""
        x, h = self.inputs[position], self.eps / 16

        def value(s: float) -> float:
            arrays = [*self.inputs[:position], x + s * direction, *self.inputs[position + 1 :]]
            return sum(float((dy * (y - y0)).sum()) for dy, y, y0 in zip(self.dy, self.outputs(arrays), self.y, strict=True))

        left, right = -value(-h) / h, value(h) / h
        wide = (value(self.eps) - value(-self.eps)) / (2 * self.eps)
        scale = max(abs(left), abs(right), abs(wide))
        return bool(max(abs(right - left), abs(wide - (left + right) / 2)) > 0.01 * scale)


class _TensorProblem(_Problem):
    """A function of tensors, whose backward walks the tape."""

    def run(self, tensors: Sequence[Any]) -> list[Tensor]:
        """The floating point outputs of fn."""
        result = self.fn(*tensors)
        outputs = result if isinstance(result, tuple | list) else (result,)
        return [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]

    def outputs(self, arrays: Sequence[Any]) -> list[Array]:
        with no_grad():
            return [y.array for y in self.run([Tensor.wrap(x) if hasattr(x, "dtype") else x for x in arrays])]

    def gradients(self) -> dict[int, Array]:
        __tracebackhide__ = True
        tensors = [Tensor.wrap(x) if hasattr(x, "dtype") else x for x in self.inputs]
        for i in self.positions:
            tensors[i].requires_grad_()
        outputs = self.run(tensors)
        if self.op == "<lambda>" and outputs[-1].source:
            self.op = f"a function ending in {outputs[-1].source[0].name}"
        try:
            for y, dy in zip(outputs, self.dy, strict=True):
                if y.requires_grad:
                    y.backward(Tensor.wrap(dy), retain_graph=True)
        except Exception as error:
            raise GradientError(f"the backward of {self.op} failed: {type(error).__name__}: {error}") from error
        grads = {i: tensors[i].grad for i in self.positions}
        return {i: array_module(self.inputs[i]).zeros_like(self.inputs[i]) if g is None else g.array for i, g in grads.items()}


class _PairProblem(_Problem):
    """Two functions of arrays."""

    def __init__(
        self, forward: Callable[..., Any], backward: Callable[[Any], Sequence[Array | None]], inputs: Sequence[Any], eps: float, seed: int
    ) -> None:
        super().__init__(forward, inputs, eps, seed)
        self.backward = backward

    def outputs(self, arrays: Sequence[Any]) -> list[Array]:
        result = self.fn(*arrays)
        return [y for y in (result if isinstance(result, tuple) else (result,)) if is_floating(y.dtype)]

    def gradients(self) -> dict[int, Array]:
        several = isinstance(self.fn(*self.inputs), tuple)
        dxs = [*self.backward(tuple(self.dy) if several else self.dy[0]), *[None] * len(self.inputs)]
        return {i: np.zeros_like(self.inputs[i]) if dxs[i] is None else dxs[i] for i in self.positions}


@dataclass(frozen=True)
class _Finding:
    """One input's gradient, both ways: element by element, or along directions."""

    position: int
    index: tuple[int, ...]  # where the worst error is
    analytic: np.ndarray
    numeric: np.ndarray
    error: float  # the worst one, relative to the largest number of the gradient
    wrong: np.ndarray  # error of each number, on that scale
    along_directions: bool = False


def _examine_elements(problem: _Problem, position: int, dx: Array, floor: float) -> _Finding:
    numeric = np.zeros(dx.shape)
    for index in np.ndindex(dx.shape):
        numeric[index] = problem.slope(position, _unit(dx, index))
    errors = _relative(to_numpy(dx), numeric, floor)
    if not errors.size:
        return _Finding(position, (), to_numpy(dx), numeric, 0.0, errors)
    index = tuple(int(i) for i in np.unravel_index(errors.argmax(), errors.shape))
    return _Finding(position, index, to_numpy(dx), numeric, float(errors[index]), errors)


def _examine_directions(problem: _Problem, position: int, dx: Array, floor: float) -> _Finding:
    """Compare slopes along random directions; if one is wrong, halve it again and again until one element is left."""
    xp = array_module(dx)
    directions = [xp.asarray(problem.rng.standard_normal(dx.shape)) for _ in range(_DIRECTIONS)]
    analytic = np.array([float((dx * u).sum()) for u in directions])
    numeric = np.array([problem.slope(position, u) for u in directions])
    errors = _relative(analytic, numeric, floor)
    worst = int(errors.argmax())

    def mismatch(first: int, last: int) -> float:
        u = xp.zeros(dx.size)
        u[first:last] = directions[worst].reshape(-1)[first:last]
        u = u.reshape(dx.shape)
        gap = abs(float((xp.where(u == 0, 0, dx) * u).sum()) - problem.slope(position, u))
        return np.inf if np.isnan(gap) else gap

    first, last = 0, dx.size
    while last - first > 1 and errors[worst] > 1e-10:
        middle = (first + last) // 2
        first, last = (first, middle) if mismatch(first, middle) >= mismatch(middle, last) else (middle, last)
    index = tuple(int(i) for i in np.unravel_index(first, dx.shape))
    return _Finding(position, index, analytic, numeric, float(errors[worst]), errors, along_directions=True)


def _findings(problem: _Problem, floor: float, max_jacobian: int) -> list[_Finding]:
    """One for each input that has a gradient, the worst first."""
    __tracebackhide__ = True
    findings = []
    for position, dx in problem.gradients().items():
        examine = _examine_elements if dx.size <= max_jacobian else _examine_directions
        findings.append(examine(problem, position, dx, floor))
    return sorted(findings, key=lambda finding: -finding.error)


def _mismatch(problem: _Problem, finding: _Finding, findings: list[_Finding]) -> Mismatch:
    """What is wrong with the gradient of one input, and the probable mistake."""
    position, index = finding.position, finding.index
    x, direction = problem.inputs[position], _unit(problem.inputs[position], index)
    evidence, wrong = None, None
    if finding.along_directions:
        backward, differences = float(problem.gradients()[position][index]), problem.slope(position, direction)
        culprit = diagnose_directions(finding.analytic, finding.numeric, [x.shape, *(y.shape for y in problem.y)])
    else:
        backward, differences = float(finding.analytic[index]), float(finding.numeric[index])
        wrong = int((~(finding.wrong <= 1e-6 * min(1, finding.error))).sum())
        evidence = Evidence(
            analytic=finding.analytic,
            numeric=finding.numeric,
            x=to_numpy(x),
            y=[to_numpy(y) for y in problem.y],
            dy=[to_numpy(dy) for dy in problem.dy],
            contributions=lambda: _contributions(problem, position),
            others={problem.label(f.position): f.numeric for f in findings if f is not finding and not f.along_directions},
        )
        culprit = diagnose(evidence)
    if problem.is_kink(position, direction):
        culprit = "a kink or a jump of the function itself at this point, where differences say nothing: choose inputs away from it."
    return Mismatch(position, problem.label(position), index, backward, differences, finding.error, wrong, x.size, culprit, evidence)


def _message(op: str, worst: Mismatch, others: list[str]) -> str:
    extent = (
        f"{worst.wrong} of {worst.size} numbers differ" if worst.wrong is not None else f"checked along {_DIRECTIONS} random directions"
    )
    message = (
        f"the gradient of {op} is wrong for {worst.label}: at index {worst.index} backward says {worst.backward:.10g}, "
        f"central differences say {worst.differences:.10g} (relative error {worst.error:.2g}; {extent})."
    )
    if worst.looks_like:
        message += f"\nIt looks like {worst.looks_like}"
    if others:
        message += f"\nAlso wrong: {', '.join(others)}."
    return message


def _contributions(problem: _Problem, position: int) -> np.ndarray:
    """How much each number of the output adds to the gradient of each number of the input: x.shape + y.shape."""
    x = problem.inputs[position]
    columns = [to_numpy(problem.differences(position, _unit(x, index), problem.eps)[0]) for index in np.ndindex(x.shape)]
    return np.array(columns).reshape(x.shape + problem.y[0].shape)


def _relative(analytic: np.ndarray, numeric: np.ndarray, floor: float) -> np.ndarray:
    """|analytic - numeric| relative to the largest number of the gradient; NaN counts as infinitely wrong."""
    scale = float(np.abs(numeric).max(initial=0)) + floor
    return np.nan_to_num(np.abs(analytic - numeric) / scale, nan=np.inf, posinf=np.inf)


def _unit(x: Array, index: tuple[int, ...]) -> Array:
    """All zeros and a single 1."""
    e = array_module(x).zeros(x.shape)
    e[index] = 1
    return e


def _parameter_names(fn: Callable[..., Any], count: int) -> list[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return [""] * count
    names: list[str] = []
    for p in parameters:
        if p.kind is p.VAR_POSITIONAL:
            names += [f"{p.name}[{i}]" for i in range(count - len(names))]
        elif p.kind is not p.KEYWORD_ONLY:
            names.append(p.name)
    return (names + [""] * count)[:count]
