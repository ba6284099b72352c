"""Run a student's page and say what is wrong with it, in sentences about their code.

Their functions are called with copies; what they return is looked at before it is compared; and whatever they raise becomes a sentence with
their line. The gradients are compared with central differences of the forward of the solved page (`tensorlite.testing`).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any

import numpy as np

from study.exercise import Exercise
from study.verdict import Verdict, WrongPageError, wrong
from tensorlite.testing import Mismatch, compare_with_differences


def examine(exercise: Exercise, path: Path) -> Verdict:
    """The verdict on the page at ``path``. It runs in this process: `study.examiner` sets a limit of time."""
    try:
        page, source = load_page(exercise, path)
        if hasattr(exercise.module, "check"):
            with located(path, source):
                found = exercise.module.check(page)
            return Verdict(exercise.name, False, *found) if found else Verdict(exercise.name, True, "does what the solved page does.")
        return _check_gradients(exercise, page, path, source)
    except WrongPageError as error:
        return Verdict(exercise.name, False, error.says, error.looks_like)
    except _NotWrittenError:
        return Verdict(exercise.name, False, f"not written yet: open {path}.", written=False)


def load_page(exercise: Exercise, path: Path) -> tuple[SimpleNamespace, str]:
    """The names that the page at ``path`` defines, its functions among them, and its text.

    Raises:
        WrongPageError: if it cannot be read or run, or lacks a function.
    """
    source = _read(path)
    with located(path, source):
        return _run(exercise, path, source), source


class _NotWrittenError(Exception):
    """The page is as `write` left it."""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        wrong(f"there is no {path}: python -m study write {path.stem} makes it.")
    except (OSError, UnicodeDecodeError) as error:
        wrong(f"{path} cannot be read: {error}.")


@contextlib.contextmanager
def located(path: Path, source: str, elsewhere: bool = True) -> Iterator[None]:
    """What the page raises becomes a sentence with its line.

    Args:
        elsewhere: whether this is done as well with what was not raised in the page; if not, it stays as it is.

    Raises:
        WrongPageError: with the sentence.
    """
    try:
        yield
    except WrongPageError:
        raise
    except SyntaxError as error:
        if error.filename != str(path):
            wrong(_at(path, source, error))
        wrong(f"line {error.lineno} is not Python: {error.msg}.{_quoted(source, error.lineno)}")
    except NotImplementedError as error:
        if str(error) == "write me":
            raise _NotWrittenError from None
        wrong(_at(path, source, error))
    except (Exception, SystemExit) as error:  # their code may raise anything, and none of it is ours
        if not elsewhere:
            if not _lines_of(path, error):
                raise
            wrong(f"{path}, {_at(path, source, error)}")
        wrong(_at(path, source, error), _fit_mistake(error))


def _fit_mistake(error: BaseException) -> str | None:
    """What arrays that do not fit look like, by NumPy's message."""
    text = str(error)
    if not isinstance(error, ValueError):
        return None
    if sizes := re.search(r"core dimension.*\(size (\d+) is different from (\d+)\)", text):
        return (
            f"a transpose that is missing or too many, or two factors in the wrong order: a @ b needs as many columns in a as there "
            f"are rows in b, and here these are {sizes[2]} and {sizes[1]}."
        )
    if shapes := re.search(r"could not be broadcast together with shapes \(([\d,]*)\) \(([\d,]*)\)", text):
        one, other = sorted((tuple(int(n) for n in shape.split(",") if n) for shape in shapes.groups()), key=len)
        if one == other[: len(one)]:
            return "an axis that is missing at the end: keepdims=True keeps it in a sum or a mean, and a[:, None] adds one."
    return None


def _at(path: Path, source: str, error: BaseException) -> str:
    """An error of the page in one sentence."""
    lines = _lines_of(path, error)
    text = re.sub(r"^matmul: Input operand.*", "these two matrices do not fit", str(error).partition("\n")[0]).rstrip(". ")
    what = f"{type(error).__name__}{f': {text}' if text else ''}."
    return f"line {lines[-1]} raises {what}{_quoted(source, lines[-1])}" if lines else f"the page raises {what}"


def _lines_of(path: Path, error: BaseException) -> list[int | None]:
    """The lines of the page that an error came through."""
    return [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]


def _quoted(source: str, line: int | None) -> str:
    lines = source.splitlines()
    return f" It is: {lines[line - 1].strip()}" if line and line <= len(lines) and lines[line - 1].strip() else ""


def _run(exercise: Exercise, path: Path, source: str) -> SimpleNamespace:
    names: dict[str, Any] = {"__name__": exercise.name, "__file__": str(path)}
    exec(compile(source, str(path), "exec", dont_inherit=True), names)
    for function in functions_of(exercise):
        if not callable(names.get(function)):
            wrong(f"there is no function {function} in {path}: python -m study write {exercise.name} --again makes a fresh page.")
    return SimpleNamespace(**names)


def functions_of(exercise: Exercise) -> list[str]:
    """The functions that a page of this exercise must have."""
    defined = (value for value in vars(exercise.module).values() if isinstance(value, FunctionType))
    return [f.__name__ for f in defined if f"\ndef {f.__name__}(" in f"\n{exercise.solution}" and f.__module__ == exercise.module.__name__]


# --- gradients ------------------------------------------------------------------------------------------


def _check_gradients(exercise: Exercise, page: SimpleNamespace, path: Path, source: str) -> Verdict:
    """Compare with central differences, case by case; of several mistakes the one that can be named is told."""
    right = [getattr(exercise.module, f"{exercise.page}_{way}") for way in ("forward", "backward")]
    pair = [getattr(page, f"{exercise.page}_{way}") for way in ("forward", "backward")]
    found: list[tuple[str, str | None]] = []
    compared = 0
    for inputs in exercise.module.cases(np.random.default_rng(1)):
        calls = _Calls(exercise, pair, right, inputs, path, source)
        try:
            calls.check_forward()
            wrongs = compare_with_differences(_outputs_of(right[0]), calls.backward, inputs)
        except WrongPageError:
            if not found:
                raise
            break
        compared += sum(x.size for x in inputs if _is_differentiable(x))
        if wrongs:
            first = min(wrongs, key=lambda m: (m.error < 1e-3 * wrongs[0].error, m.position))
            found.append(_told(exercise, calls, first, wrongs))
    if found:
        says, looks_like = next((told for told in found if told[1]), found[0])
        return Verdict(exercise.name, False, says, looks_like)
    return Verdict(exercise.name, True, f"{compared} numbers agree with central differences.")


def _outputs_of(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` without what it saves, under the same names."""

    @functools.wraps(forward)
    def outputs(*inputs: Any) -> Any:
        return forward(*inputs)[0]

    return outputs


class _Calls:
    """Calls the student's two functions for one set of inputs, and looks at what they return."""

    def __init__(
        self, exercise: Exercise, pair: Sequence[Any], right: Sequence[Any], inputs: Sequence[Any], path: Path, source: str
    ) -> None:
        self.exercise, self.inputs, self.path, self.source = exercise, inputs, path, source
        self.forward_of, self.backward_of = pair
        self.right_forward = right[0]
        self.names = list(inspect.signature(right[0]).parameters)[: len(inputs)]
        self.gradients = [f"d{name}" for name, x in zip(self.names, inputs, strict=True) if _is_differentiable(x)]
        self.last = max(i for i, x in enumerate(inputs) if _is_differentiable(x))

    def forward(self) -> tuple[Any, Any]:
        """y and saved, by the student's forward."""
        name = f"{self.exercise.page}_forward"
        inputs = copy.deepcopy(self.inputs)
        with located(self.path, self.source):
            result = self.forward_of(*inputs)
        if not isinstance(result, tuple) or len(result) != 2:
            wrong(f"{name} returns {_kind(result)} in the place of two things: y, and what backward needs.")
        for argument, before, after in zip(self.names, self.inputs, inputs, strict=True):
            if not _same(before, after):
                wrong(f"{name} writes to its input {argument}: compute a new array, or write to a copy.")
        return result

    def check_forward(self) -> None:
        """That the forward, which is given, still computes what it should."""
        y, right = self.forward()[0], self.right_forward(*self.inputs)[0]
        name = f"{self.exercise.page}_forward"
        if np.shape(y) != right.shape or not np.allclose(y, right, rtol=1e-9, atol=1e-12):
            wrong(
                f"{name} computes something else than at first: it is given, and only backward is to be written. "
                f"python -m study write {self.exercise.name} --again makes a fresh page.",
            )

    def backward(self, dy: Any) -> list[Any]:
        """One gradient for each input, by the student's backward, once nothing about their form is wrong."""
        name = f"{self.exercise.page}_backward"
        _, saved = self.forward()
        first = self._call(name, dy, saved)
        if not _same(first, self._call(name, dy, self.forward()[1])):
            wrong(f"{name} gives two different results for the same dy and saved: is something drawn at random in it?")
        return first

    def _call(self, name: str, dy: Any, saved: Any) -> list[Any]:
        given = copy.deepcopy((dy, saved))
        dy = np.array(dy)
        with located(self.path, self.source), np.errstate(all="ignore"):
            result = self.backward_of(dy, saved)
        if not _same(dy, given[0]):
            wrong(f"{name} writes to dy: compute a new array, or write to a copy, dy.copy().")
        if not _same(saved, given[1]):
            wrong(f"{name} writes to what forward saved: compute a new array, or write to a copy.")
        return self._looked_at(name, result, dy)

    def _looked_at(self, name: str, result: Any, dy: np.ndarray) -> list[Any]:
        """The gradients as a list, or a sentence about what they are instead."""
        if result is None:
            wrong(f"{name} returns nothing: it should end in return {self._wanted()}.")
        several = self.last > 0
        if not several and not isinstance(result, tuple):
            result = (result,)
        if not isinstance(result, tuple):
            wrong(f"{name} returns {_kind(result)} in the place of {self.last + 1} gradients: return {self._wanted()}.")
        if not self.last < len(result) <= len(self.inputs):
            wrong(
                f"{name} returns {len(result)} gradient{'s' * (len(result) != 1)} in the place of {self.last + 1}: return {self._wanted()}."
            )
        checked: list[Any] = []
        for argument, x, dx in zip(self.names, self.inputs, result, strict=False):
            if _is_differentiable(x):
                checked.append(self._checked(name, f"d{argument}", x, dx, dy))
            elif dx is not None:
                wrong(f"{name} returns a gradient for {argument}, which has none: return None in its place.")
            else:
                checked.append(None)
        return checked

    def _checked(self, name: str, label: str, x: np.ndarray, dx: Any, dy: np.ndarray) -> np.ndarray:
        if dx is None:
            wrong(f"{name} returns None for {label}: it needs a gradient of the shape {x.shape}.")
        if not isinstance(dx, np.ndarray | np.generic):
            if x.ndim == 0 and isinstance(dx, float | int):
                dx = np.asarray(dx, dtype=float)
            else:
                wrong(f"{name} returns {_kind(dx)} for {label}: it should be an array of the shape {x.shape}.")
        if dx.shape != x.shape:
            wrong(f"{label} has the shape {dx.shape}, and {label[1:]} has the shape {x.shape}.", _shape_mistake(dx, x, dy))
        if dx.dtype.kind not in "fiu":
            wrong(f"{label} holds {dx.dtype}, and should hold floating point numbers.")
        return np.asarray(dx, dtype=float)

    def _wanted(self) -> str:
        return ", ".join(
            f"d{name}" if _is_differentiable(x) else "None" for name, x in zip(self.names[: self.last + 1], self.inputs, strict=False)
        )


def _told(exercise: Exercise, calls: _Calls, first: Mismatch, wrongs: list[Mismatch]) -> tuple[str, str | None]:
    """What is wrong with one gradient, and what that looks like: a known mistake of this page, or one of the general diagnosis."""
    label = f"d{calls.names[first.position]}"
    digits = next(d for d in (4, 6, 10, 17) if f"{first.backward:.{d}g}" != f"{first.differences:.{d}g}" or d == 17)
    shape = calls.inputs[first.position].shape
    says = f"{label} is wrong"
    says += f" for {label[1:]} of the shape {shape}: at {list(first.index)}" if first.size > 1 else ":"
    says += f" yours is {first.backward:.{digits}g}, central differences say {first.differences:.{digits}g}"
    says += f" ({first.wrong} of {first.size} numbers are wrong)." if first.size > 1 else "."
    others = [f"d{calls.names[m.position]}" for m in wrongs if m is not first]
    if others:
        says += f" {' and '.join(others)} {'are' if len(others) > 1 else 'is'} wrong, too."
    return says, _known_mistake(exercise, calls, first) or first.looks_like or _not_linear(calls, first)


def _not_linear(calls: _Calls, mismatch: Mismatch) -> str | None:
    """Whether the gradient is not proportional to dy, as every gradient is."""
    if mismatch.evidence is None or len(mismatch.evidence.dy) != 1:
        return None
    once, twice, negative = (calls.backward(c * mismatch.evidence.dy[0])[mismatch.position] for c in (1, 2, -1))
    if _same(once, twice):
        return "dy left out: the gradient is the same whatever dy is."
    if not np.allclose(twice, 2 * once, rtol=1e-9, atol=0, equal_nan=True):
        return "dy left out of a term, or squared: if dy is twice as large, the gradient must be twice as large. Yours is not."
    if not np.allclose(negative, -once, rtol=1e-9, atol=0, equal_nan=True):
        return "a gradient that does not change its sign with dy: |dy|, or a maximum, has no place in it."
    return None


def _known_mistake(exercise: Exercise, calls: _Calls, mismatch: Mismatch) -> str | None:
    """The sentence of the page's own mistake that gives exactly this gradient."""
    evidence = mismatch.evidence
    if evidence is None or evidence.analytic.size <= 1 or not np.isfinite(evidence.analytic).all():
        return None
    for sentence, mistaken in getattr(exercise.module, "LIKELY", {}).items():
        _, saved = calls.right_forward(*copy.deepcopy(calls.inputs))
        with np.errstate(all="ignore"):
            dxs = mistaken(evidence.dy[0].copy(), saved)
        dx = (dxs if isinstance(dxs, tuple) else (dxs,))[mismatch.position]
        if dx.shape == evidence.analytic.shape and evidence.is_explained_by(dx):
            return sentence
    return None


def _shape_mistake(dx: np.ndarray, x: np.ndarray, dy: np.ndarray) -> str | None:
    if (
        dx.ndim == x.ndim
        and dx.size != x.size
        and x.size < dy.size
        and all(n == 1 or n == m for n, m in zip(x.shape, dx.shape, strict=True))
    ):
        return "a forgotten sum over an axis along which the input was repeated."
    if dx.ndim == x.ndim < dy.ndim and x.size < dy.size and set(dx.shape) <= {*dy.shape, dy.size // dy.shape[-1]}:
        return "a sum over another axis than the one along which the input was repeated."
    if dx.shape == x.shape[::-1]:
        return "a transpose too many, or one that was forgotten."
    if [n for n in dx.shape if n != 1] == [n for n in x.shape if n != 1]:
        return "an axis of length 1 too many or too few: keepdims=True keeps such an axis, reshape adds or removes it."
    if dx.size == x.size:
        return "the right numbers in another shape: dx.reshape(x.shape), if nothing has to be moved."
    if dx.size > x.size and not dx.size % x.size:
        return "a forgotten sum over an axis along which the input was repeated."
    if dx.size < x.size and not x.size % max(1, dx.size):
        return "a sum too many, or dy that still has to be repeated: np.broadcast_to(…, shape)."
    return None


def _is_differentiable(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.dtype.kind == "f"


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    name = type(value).__name__
    return "an array" if isinstance(value, np.ndarray) else "nothing" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _same(a: Any, b: Any) -> bool:
    """Whether two values, or all arrays in two nested tuples, are equal; NaN equals NaN. What cannot be compared counts as equal."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    return True
