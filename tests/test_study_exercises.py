"""The exercises: solutions are right and equal the book, wrong answers are found and named, mysteries too, and no page can do harm."""

from __future__ import annotations

import doctest
import functools
import re
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from study.examine import examine
from study.examiner import verdicts
from study.exercise import TO_WRITE, all_names, find, load
from study.exercises import GROUPS, NAMES
from study.mysteries import MYSTERIES
from tensorlite.nn import functional as F
from tensorlite.op import use_kernels
from tensorlite.optim import muon


def answers() -> dict[str, list[tuple[str, str]]]:
    """exercise -> (words, lines in the place of the solution), out of wrong_answers.txt."""
    text = (Path(__file__).parent / "wrong_answers.txt").read_text(encoding="utf-8")
    return {
        name: re.findall(r"^= (.*)\n((?:.+\n)+)", part, re.MULTILINE)
        for name, part in re.findall(r"^# (\w+)\n(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)
    }


WRONG_ANSWERS = answers()
NOT_NAMED = "(not named)"


@pytest.fixture
def judge(tmp_path):
    """The verdict on the page of an exercise with ``lines`` in the place of the solution, or on a whole text."""

    def judged(name, lines=None, text=None):
        exercise = load(name)
        if lines is not None:
            assert TO_WRITE in exercise.start
            text = exercise.start.replace(TO_WRITE, "".join(f"    {line}\n" for line in lines.splitlines()))
        exercise.path(tmp_path).write_text(text, encoding="utf-8")
        return examine(exercise, exercise.path(tmp_path))

    return judged


# --- the pages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", all_names())
def test_the_solution_passes_and_the_initial_page_does_not(name, judge):
    exercise = load(name)
    solved = judge(name, text=exercise.solution)
    assert solved.right, solved.says
    begun = judge(name, text=exercise.start)
    assert not begun.right
    assert begun.written == (name in MYSTERIES)
    assert len(exercise.hints) == 3


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_to_check_by_hand_are_right(name):
    result = doctest.testmod(load(name).module)
    assert result.failed == 0
    assert result.attempted >= 1 or name == "tape"  # whose example is in words


@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_on_a_screen_and_does_not_contain_the_solution(name):
    exercise = load(name)
    assert exercise.solution.count("\n") < 70
    assert all(len(line) <= 140 for line in exercise.start.splitlines())
    assert not any(line.strip() in exercise.start for line in exercise.lines.splitlines() if "return" in line and len(line) > 20)


BOOK = {
    "multiply": tl.mul,
    "add": tl.add,
    "exp": tl.exp,
    "log": tl.log,
    "relu": F.relu,
    "sigmoid": tl.sigmoid,
    "tanh": tl.tanh,
    "gelu": F.gelu,
    "sum": functools.partial(tl.sum, dim=1),
    "mean": functools.partial(tl.mean, dim=1),
    "max": functools.partial(tl.amax, dim=1),
    "mse": F.mse_loss,
    "matmul": tl.matmul,
    "linear": F.linear,
    "embedding": F.embedding,
    "softmax": functools.partial(F.softmax, dim=-1),
    "log_softmax": functools.partial(F.log_softmax, dim=-1),
    "cross_entropy": F.cross_entropy,
    "linear_cross_entropy": lambda x, weight, target: F.cross_entropy(F.linear(x, weight), target),
    "layernorm": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
    "rmsnorm": lambda x, weight: F.rms_norm(x, weight.shape, weight, eps=1e-6),
    "attention": functools.partial(F.scaled_dot_product_attention, is_causal=True),
}


@pytest.mark.parametrize("name", BOOK)
@use_kernels("book")
def test_the_page_equals_the_page_of_the_book(name):
    module = load(name).module
    for inputs in module.cases(np.random.default_rng(2)):
        tensors = [tl.tensor(x, requires_grad=x.dtype.kind == "f") for x in inputs]
        theirs = BOOK[name](*tensors)
        dy = np.random.default_rng(3).standard_normal(theirs.shape)
        theirs.backward(tl.tensor(dy))
        y, saved = getattr(module, f"{name}_forward")(*inputs)
        dxs = getattr(module, f"{name}_backward")(dy, saved)
        np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-12, atol=1e-14)
        for x, dx in zip(tensors, dxs if isinstance(dxs, tuple) else (dxs,), strict=False):
            if x.requires_grad:
                np.testing.assert_allclose(dx, x.grad.numpy(), rtol=1e-11, atol=1e-13)


def test_newton_schulz_is_that_of_muon():
    page, rng = load("newton_schulz").module, np.random.default_rng(0)
    for shape in ((3, 5), (5, 3)):
        g = rng.standard_normal(shape)
        expected = muon.newton_schulz(g, muon.COEFFICIENTS, 5)
        np.testing.assert_allclose(page.newton_schulz(g, 5, muon.COEFFICIENTS), expected, rtol=1e-12, atol=1e-13)


# --- wrong answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_wrong_answers_are_found_and_named(name, judge, record_property):
    for words, lines in WRONG_ANSWERS[name]:
        verdict = judge(name, lines)
        assert not verdict.right, f"this passes as {name}: {lines}"
        assert verdict.written
        if words == NOT_NAMED:
            assert verdict.looks_like is None, f"{lines} is called {verdict.looks_like}"
        else:
            assert words in f"{verdict.says} {verdict.looks_like}", f"{lines} is called {verdict.says} {verdict.looks_like}"
    record_property("wrong answers", (name, sum(words != NOT_NAMED for words, _ in WRONG_ANSWERS[name]), len(WRONG_ANSWERS[name])))


def test_nearly_all_of_the_wrong_answers_are_named():
    assert set(WRONG_ANSWERS) == set(NAMES)
    assert min(map(len, WRONG_ANSWERS.values())) >= 5
    words = [words for several in WRONG_ANSWERS.values() for words, _ in several]
    assert sum(word != NOT_NAMED for word in words) >= 0.9 * len(words)


FOUND_BY = {
    "mystery_1": ("dbias is wrong", "1/6, and 6 is a number of rows): a mean where a sum belongs"),
    "mystery_2": ("dweight is wrong", "lost repeats"),
    "mystery_3": ("dx is wrong", 'softmax without "- Σ dy·y"'),
    "mystery_4": ("dx is wrong", 'layernorm without "- mean(g)"'),
    "mystery_5": ("dk is wrong", "the scale 1/√D left out"),
    "mystery_6": ("dx is wrong", "4 is a length of an axis): a sum where a mean belongs"),
    "mystery_7": ("dx is wrong", "the gate taken for a constant"),
    "mystery_8": ("a value that is used twice", "its gradients add up"),
    "mystery_9": ("after three steps p", "m not corrected"),
    "mystery_10": ("dx is wrong", "without swapping the axes back"),
}


@pytest.mark.parametrize("name", MYSTERIES)
def test_the_check_of_a_mystery_points_to_its_fault(name, judge):
    """The check names the gradient and the mistake, and the last hint leads to the very line."""
    mystery, exercise = MYSTERIES[name], load(name)
    verdict = judge(name, text=exercise.start)
    gradient, mistake = FOUND_BY[name]
    assert gradient in verdict.says
    assert mistake in verdict.looks_like
    lines = [line.strip() for line in exercise.start.splitlines()]
    match re.match(r"The (last )?line ?(of )?(dweight.*dy|arrived.*dx|\w+)?", exercise.hints[2]).groups():
        case ("last ", _, _):
            found = lines[-1]
        case (_, "of ", quantity):
            (found,) = [line for line in lines if line.startswith(f"{quantity} = ")]
        case (_, _, line):
            found = lines[lines.index(line)]
    assert found == mystery.wrong.strip()


# --- pages that do other things than compute a gradient -------------------------------------------------

PAGES = {
    "raises": ("raise ValueError('no idea')", "line 30 raises ValueError: no idea. It is: raise ValueError('no idea')"),
    "raises deep inside": ("def f(n):\n    return f(n)\nreturn f(1)", "line 31 raises RecursionError"),
    "a name that is not there": ("return dz * y", "line 30 raises NameError: name 'dz' is not defined. It is: return dz * y"),
    "shapes that do not fit": ("return y[:2] * dy", "line 30 raises ValueError: operands could not be broadcast"),
    "exits": ("raise SystemExit(3)", "line 30 raises SystemExit: 3"),
    "asks for input": ("import sys\nsys.stdin.close()\nreturn y / 0 * float('nan')", "numbers of the gradient are NaN"),
    "returns nothing": ("dx = y * dy", "softmax_backward returns nothing: it should end in return dx."),
    "returns a list": ("return (y * dy).tolist()", "returns a list for dx: it should be an array of the shape (3, 4)."),
    "returns a number": ("return 1.0", "returns a float for dx"),
    "returns two": ("return dy, dy", "returns 2 gradients in the place of 1: return dx."),
    "returns None in a tuple": ("return (None,)", "returns None for dx"),
    "returns a wrong shape": ("return (y * dy).sum(axis=-1)", "dx has the shape (3,), and x has the shape (3, 4)."),
    "returns words": ("return np.full(y.shape, 'x')", "dx holds <U1, and should hold floating point numbers."),
    "returns nan": ("return y * np.nan", "12 of 12 numbers of the gradient are NaN or infinite"),
    "divides by zero": ("return dy / np.zeros_like(y)", "12 of 12 numbers of the gradient are NaN or infinite"),
    "writes to dy": ("dy -= (dy * y).sum(axis=-1, keepdims=True)\nreturn y * dy", "softmax_backward writes to dy"),
    "writes to saved": ("y *= dy - (dy * y).sum(axis=-1, keepdims=True)\nreturn y", "softmax_backward writes to what forward saved"),
    "is random": ("return np.random.standard_normal(y.shape)", "two different results"),
}  # fmt: skip


@pytest.mark.parametrize("lines, says", PAGES.values(), ids=PAGES)
def test_errors_and_output_of_a_page_are_reported_in_a_sentence(lines, says, judge):
    verdict = judge("softmax", lines)
    assert says in f"{verdict.says} {verdict.looks_like}"
    assert "Traceback" not in verdict.says


def test_a_page_that_is_not_python_or_lacks_its_function_is_reported(judge, tmp_path):
    good = load("softmax").solution
    assert "line 29 is not Python: invalid syntax" in judge("softmax", text=good.replace("y = saved", "y = = saved")).says
    assert "line 29 is not Python" in judge("softmax", text=good.replace("    y = saved", "  y = saved")).says
    assert "there is no function softmax_backward in" in judge("softmax", text=good.replace("def softmax_backward", "def backward")).says
    assert "raises ModuleNotFoundError: No module named 'nunpy'" in judge("softmax", text=good.replace("import numpy", "import nunpy")).says
    assert "computes something else than at first" in judge("softmax", text=good.replace("return y, y", "return 2 * y, y")).says
    assert "returns an array in the place of two things" in judge("softmax", text=good.replace("return y, y", "return y")).says
    assert "softmax_forward writes to its input x" in judge("softmax", text=good.replace("    e = np", "    x -= 1\n    e = np")).says
    (tmp_path / "softmax.py").write_bytes(b"\xff\xfe")
    assert "cannot be read" in examine(load("softmax"), tmp_path / "softmax.py").says
    (tmp_path / "softmax.py").unlink()
    assert "there is no" in examine(load("softmax"), tmp_path / "softmax.py").says


def test_an_endless_loop_or_exit_ends_only_its_own_page(tmp_path):
    bodies = {"square": "while True:\n        pass", "exp": "import os\n    os._exit(0)", "log": "return dy / x"}
    pages = []
    for name, body in bodies.items():
        path = load(name).path(tmp_path)
        path.write_text(load(name).start.replace(TO_WRITE, f"    {body}\n"), encoding="utf-8")
        pages.append((name, path))
    loop, exits, right = verdicts(pages, limit=1.0)
    assert "was still running after 1 seconds, in line" in loop.says
    assert loop.says.endswith(("It is: while True:", "It is: pass"))
    assert "ended the whole process" in exits.says
    assert right.right, right.says
    assert [v.comes_back for v in (loop, exits, right)] == [False, False, True]


def test_the_nearest_exercise_is_named():
    assert find("my_study/layernorm.py").name == find("LayerNorm").name == "layernorm"
    assert find("mystery-3").name == "mystery_3"
    with pytest.raises(Exception, match=r"there is no exercise 'sofmax': did you mean softmax\?"):
        find("sofmax")
    with pytest.raises(Exception, match="python -m study lists all"):
        find("xyzzy")


def test_every_page_is_in_one_group():
    files = {path.stem for path in (Path(__file__).parent.parent / "study" / "exercises").glob("*.py")} - {"__init__"}
    assert sorted(NAMES) == sorted(files)
    assert len(set(NAMES)) == sum(map(len, GROUPS.values())) == 32
