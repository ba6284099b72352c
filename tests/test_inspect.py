"""tensorlite.inspect: a tensor in one line, the graph as a drawing, the backward pass one step at a time."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig
from gpt.model import build_model
from tensorlite import inspect
from tensorlite.inspect.draw import _cut
from tensorlite.op import REGISTRY, Pair


def model_and_batch(dropout: float = 0.0, **options: object):
    tl.manual_seed(3)
    model = build_model(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=dropout, **options))
    x, y = (tl.tensor(np.random.default_rng(seed).integers(0, 11, (2, 8))) for seed in (0, 1))
    return model, x, y


def walk_of(dropout: float = 0.0, **options: object):
    model, x, y = model_and_batch(dropout, **options)
    return model, tl.walk(lambda: model(x, y)[1], model=model)


# --- one line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.float32([[1, 2], [3, 6]]), "float32 (2, 2)  1 … 6  mean 3 ± 1.87  "),
        (np.float64([np.nan, np.inf, 2, 4]), "float64 (4,)  2 … 4  mean 3 ± 1  1 nan  1 inf  "),
        (np.float32([np.nan]), "float32 (1,)  1 nan"),
        (np.int64([3, 9]), "int64 (2,)  3 … 9  "),
        (np.array([True, False, True]), "bool (3,)  2 of 3 True"),
        (np.zeros((0, 3), np.float32), "float32 (0, 3)  empty"),
        (np.float64(2.5), "float64 ()  2.5"),
        (np.float64([1.5e308, -1.5e308]), "float64 (2,)  -1.5e+308 … 1.5e+308  mean 0 ± 1.5e+308  "),
        (np.float64([1.5e308, 1.5e308, 1]), "float64 (3,)  1 … 1.5e+308  mean 1e+308 ± 7.07e+307  "),
    ],
)
def test_a_summary_describes_the_numbers(values: np.ndarray, expected: str):
    text = tl.Tensor(np.asarray(values)).summary()
    assert text.startswith(expected)
    assert set(text.removeprefix(expected)) <= set("▁▂▃▄▅▆▇█")


def test_the_histogram_follows_the_numbers():
    values = np.repeat(np.arange(12.0), [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 7])
    assert inspect.summary(values).endswith("▂" * 11 + "█")
    assert inspect.summary(np.float32([0, 11])).endswith("█▁▁▁▁▁▁▁▁▁▁█")
    assert inspect.summary(np.float32([0, 11]), bars=" .:-=+*#").endswith("#          #")


# --- the walk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kernels", ["fast", "book"])
def test_all_steps_together_are_backward_to_the_bit(dropout: float, kernels: str):
    with tl.use_kernels(kernels):
        model, walk = walk_of(dropout)
        for step in walk:
            assert step.is_finite
        found = walk.gradients()
        assert all(parameter.grad is None for parameter in model.parameters())
        walk.result.backward()
    expected = {name: parameter.grad.array for name, parameter in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        assert gradient.tobytes() == expected[name].tobytes(), name


def test_an_optimizers_flat_buffer_is_not_written_to(monkeypatch: pytest.MonkeyPatch):
    def into_the_buffer(dy, saved, out):
        if out[0] is None:
            return -dy
        return np.negative(dy, out=out[0])

    monkeypatch.setattr(REGISTRY["neg"], "faster", [Pair("out", lambda x: (-x, None), into_the_buffer)])
    p = tl.nn.Parameter(tl.tensor([1.0, 2.0]))
    tl.optim.AdamW([p], lr=0.1)  # gives the parameter a place for its gradient
    p.grad_buffer[...] = 7
    walk = inspect.Walk((-p * 3.0 + -p).sum())
    list(walk)
    assert p.grad_buffer.tolist() == [7, 7]
    assert [gradient.tolist() for gradient in walk.gradients().values()] == [[-4, -4]]
    walk.result.backward()
    assert p.grad.tolist() == p.grad_buffer.tolist() == [-4, -4]


def test_back_and_rewind_compute_nothing_and_a_repeated_forward_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch):
    _, walk = walk_of(dropout=0.3)
    first = [walk.forward() for _ in range(9)]
    partly = {name: gradient.tobytes() for name, gradient in walk.gradients().items()}
    monkeypatch.setattr(walk, "step", lambda **_: pytest.fail("an op ran again"))
    assert walk.back() is first[7]
    assert walk.back() is first[6]
    assert walk.forward() is first[7]
    walk.rewind()
    assert walk.current is None
    assert walk.gradients() == {}
    assert walk.back() is None
    assert [walk.forward() for _ in range(9)] == first
    assert {name: gradient.tobytes() for name, gradient in walk.gradients().items()} == partly


def test_two_walks_over_one_graph_are_the_same():
    model, walk = walk_of(dropout=0.3)
    again = inspect.Walk(walk.result, model=model)
    for one, other in zip(walk, again, strict=True):
        assert one.op == other.op
        assert [d.dx.tobytes() for d in one.deliveries] == [d.dx.tobytes() for d in other.deliveries]


def test_each_step_takes_the_waiting_node_with_the_highest_number():
    _, walk = walk_of()
    steps = list(walk)
    assert walk.at_end
    for before, after in itertools.pairwise(steps):
        assert before.queue[0] is after.node
        assert [node.number for node in before.queue] == sorted((node.number for node in before.queue), reverse=True)
    assert steps[-1].queue == ()


def test_a_step_knows_its_module_and_its_line():
    _, walk = walk_of()
    step = walk.until("h.1.attn")
    assert step.site.module == "h.1.attn.c_proj"
    assert walk.until("layernorm").site.module == "h.1.ln_1"
    assert "self.ln_1(x)" in walk.current.site.code
    assert str(walk.current.site).startswith("model.py:")


def test_until_finds_ops_modules_parameters_and_conditions():
    _, walk = walk_of()
    assert walk.until("gelu").op == "gelu"
    walk.rewind()
    step = walk.until("h.0.mlp.c_fc.weight")
    assert step.op == "linear"
    assert "h.0.mlp.c_fc.weight" in [delivery.name for delivery in step.deliveries]
    walk.rewind()
    limit = sorted(step.norm for step in walk)[-3]
    walk.rewind()
    assert walk.until(f"norm > {limit}").norm > limit
    walk.rewind()
    assert walk.until(lambda step: step.index == 5).index == 5
    assert walk.until("not finite") is None
    assert walk.at_end


@pytest.mark.parametrize("kernels", ["fast", "book"])
@pytest.mark.parametrize(
    ("parameter", "op", "module"),
    [
        ("h.1.mlp.c_proj.weight", "linear", "h.1.mlp.c_proj"),
        ("h.1.ln_2.weight", "layernorm", "h.1.ln_2"),
        ("h.0.attn.c_attn.weight", "linear", "h.0.attn.c_attn"),
    ],
)
def test_until_not_finite_stops_where_a_nan_in_a_weight_begins(parameter: str, op: str, module: str, kernels: str):
    with tl.use_kernels(kernels):
        model, x, y = model_and_batch()
        dict(model.named_parameters())[parameter].array.reshape(-1)[3] = np.nan
        walk = tl.walk(lambda: model(x, y)[1], model=model)
        assert np.isnan(walk.result.item())
        step = walk.until("not finite")
    assert (step.op, step.site.module) == (op, module)
    assert not step.is_finite
    assert walk.until("not finite") is None


def test_until_not_finite_stops_where_a_gradient_overflows():
    x = tl.tensor([1e-30], requires_grad=True)
    with np.errstate(all="ignore"):
        walk = tl.walk(lambda: tl.sum(tl.sqrt(x * x) * 2.0))  # x² is 0 in float32, and the slope of the root there is infinite
        assert walk.until("not finite").op == "sqrt"
        plain = inspect.Walk((tl.sqrt(x * x) * 2.0).sum())  # no trace: every gradient that is not finite counts
        assert plain.until("not finite").op == "sqrt"
        assert plain.until("not finite").op == "mul"


@pytest.mark.parametrize("wrong", ["h.1.atn", "gelo", "norm > x", "wte.wieght", "norms"])
def test_an_unknown_place_is_refused_with_similar_names(wrong: str):
    _, walk = walk_of()
    with pytest.raises(ValueError, match=re.escape(repr(wrong.split()[-1] if "> x" in wrong else wrong))):
        walk.until(wrong)
    assert walk.position == 0


def test_tensors_that_cannot_be_walked_are_refused():
    x = tl.randn(3, requires_grad=True)
    with pytest.raises(RuntimeError, match="nothing that requires a gradient"):
        inspect.Walk(tl.randn(()))
    with pytest.raises(RuntimeError, match=re.escape("shape (3,)")):
        inspect.Walk(x * 2)
    loss = (x * x).sum()
    loss.backward()
    with pytest.raises(RuntimeError, match="freed"):
        inspect.Walk(loss).forward()


def test_leaves_have_numbers_without_a_model_and_a_gradient_can_be_given():
    a, b = tl.tensor([2.0, 3.0], requires_grad=True), tl.tensor([5.0, 7.0], requires_grad=True)
    walk = inspect.Walk(a * b + a, gradient=tl.tensor([1.0, 10.0]))
    list(walk)
    assert sorted(gradient.tolist() for gradient in walk.gradients().values()) == [[2, 30], [6, 80]]


def test_a_graph_of_many_nodes_answers_at_once():
    x = tl.ones(1, requires_grad=True)
    y = x
    for _ in range(20_000):
        y = y * 1.0
    walk = inspect.Walk(y.sum())
    for _ in range(3):
        walk.forward()
    assert len(walk.steps) == 3  # nothing was made beforehand
    assert walk.until(lambda step: step.index == 19_999) is not None


# --- one step, in other ways ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["fast", "book"])
def test_every_step_agrees_with_the_book_and_with_differences(kernels: str):
    with tl.use_kernels(kernels):
        _, walk = walk_of(dropout=0.25)
        steps = list(walk)
    for step in steps:
        for found in inspect.compare(step):
            # float32 sums of at most 64 terms, each a few roundings from the book's float64: 64 · 2⁻²³ is 8e-6
            assert found.error < 2e-5, (step.op, found)


def test_a_step_that_delivers_a_sum_is_compared_by_its_own_part(monkeypatch: pytest.MonkeyPatch):
    def add_to(dy, saved, accumulated):
        return -dy if accumulated is None else accumulated - dy

    neg = REGISTRY["neg"]
    monkeypatch.setattr(neg, "faster", [Pair("sum", lambda x: (-x, None), add_to)])
    x = tl.tensor([1.0, 2.0], dtype=tl.float64, requires_grad=True)

    def loss():
        y = x * 1.5
        z = -y
        return (z + y * 4.0).sum()  # the last use of y comes first on the way back

    walk = tl.walk(loss)
    step = walk.until("neg")
    assert step.accumulated.tolist() == [4, 4]
    assert step.deliveries[0].dx.tolist() == [3, 3]
    assert [(found.way, found.ours) for found in inspect.compare(step)][:1] == [("book", -1.0)]
    assert all(found.error < 1e-9 for found in inspect.compare(step))


def test_a_wrong_backward_is_detected_at_its_step():
    right = REGISTRY["layernorm"].book

    def without_a_term(dy, saved):
        dx, dweight, dbias = right.backward(dy, saved)
        return dx + dy.mean(axis=-1, keepdims=True), dweight, dbias

    REGISTRY["layernorm"].book = Pair("book", right.forward, without_a_term)
    try:
        with tl.use_kernels("book"):
            _, walk = walk_of()
            steps = list(walk)
    finally:
        REGISTRY["layernorm"].book = right
    wrong = {step.op for step in steps for found in inspect.compare(step) if found.error > 1e-3}
    assert wrong == {"layernorm"}


def test_without_a_trace_there_is_nothing_to_compare_with():
    x = tl.randn(3, requires_grad=True)
    walk = inspect.Walk((x * x).sum())
    step = walk.forward()
    assert step.site is None
    with pytest.raises(RuntimeError, match="trace"):
        inspect.compare(step)


def test_a_trace_changes_no_number_and_ends():
    model, x, y = model_and_batch(dropout=0.3)
    tl.manual_seed(7)
    plain = model(x, y)[1]
    tl.manual_seed(7)
    with inspect.trace(model):
        traced = model(x, y)[1]
    assert traced.item() == plain.item()
    assert inspect.call_of(plain.source[0]) is None
    assert inspect.call_of(traced.source[0]) is not None
    assert inspect.call_of(model(x, y)[1].source[0]) is None


# --- drawings ------------------------------------------------------------------------------------------


def test_the_tree_of_a_small_graph():
    a = tl.tensor([2.0, 3.0], requires_grad=True)
    b = a * a
    assert str(tl.draw((b + a).sum())).splitlines() == [
        "sum  ()  18",
        "└─ add  (2,)",
        "   ├─ mul  (2,)",
        "   │  └─ leaf  (2,)  [3]",
        "   └─ ↑ [3] leaf",
    ]


def test_a_drawing_folds_modules_and_their_parameters():
    model, walk = walk_of()
    folded = str(tl.draw(walk.result, model, fold=2))
    assert "h.1  (2, 8, 16)" in folded
    assert "c_attn" not in folded
    assert len(tl.draw(walk.result, model).boxes) > 3 * len(tl.draw(walk.result, model, fold=2).boxes)


def test_only_one_number_is_written_beside_its_shape():
    x = tl.ones(2, requires_grad=True)
    assert str(tl.draw(x * 2)).splitlines()[0] == "mul  (2,)"
    assert str(tl.draw((x * 2).sum())).splitlines()[0] == "sum  ()  4"
    assert str(tl.draw(tl.ones(1))).splitlines()[0] == "leaf  (1,)"


def test_a_text_that_is_too_long_is_cut_to_its_length():
    assert _cut("abcdef", 6) == "abcdef"
    assert _cut("abcdefg", 6) == "abcde…"


def test_what_comes_after_a_parameter_of_a_folded_module_is_drawn():
    class Scale(tl.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = tl.nn.Parameter(tl.ones(3))

        def forward(self, x):
            return self.weight * x  # the parameter is the first operand

    model = tl.nn.Sequential(tl.nn.Linear(2, 3), Scale())
    x = tl.ones(1, 2, requires_grad=True)
    with inspect.trace(model):
        y = model(x)
    titles = [box.title for box in tl.draw(y, model, fold=1).boxes]
    assert titles[:2] == ["1", "0"]
    assert "leaf" in titles[2:]


def test_the_svg_is_well_formed_and_complete():
    model, walk = walk_of()
    drawing = tl.draw(walk.result, model)
    root = ElementTree.fromstring(drawing._repr_svg_())
    groups = root.findall("{http://www.w3.org/2000/svg}g")
    assert len(groups) == len(drawing.boxes)
    assert len(root.findall("{http://www.w3.org/2000/svg}path")) == sum(len(box.below) for box in drawing.boxes)
    left, top, width, height = (float(number) for number in root.get("viewBox").split())
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert left <= float(rect.get("x")) <= width - float(rect.get("width"))
        assert top <= float(rect.get("y")) <= height - float(rect.get("height"))


def test_an_arrow_leads_from_the_middle_of_a_box_to_the_middle_of_one_below():
    model, walk = walk_of()
    root = ElementTree.fromstring(tl.draw(walk.result, model)._repr_svg_())
    rects = [{key: float(rect.get(key)) for key in ("x", "y", "width", "height")} for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    tops = {(r["x"] + r["width"] / 2, r["y"]) for r in rects}
    bottoms = {(r["x"] + r["width"] / 2, r["y"] + r["height"]) for r in rects}
    for path in root.iter("{http://www.w3.org/2000/svg}path"):
        start, *_, end = re.findall(r"(-?[\d.]+) (-?[\d.]+)", path.get("d"))
        assert tuple(map(float, start)) in bottoms
        assert tuple(map(float, end)) in tops
        assert float(start[1]) < float(end[1])


def test_boxes_are_numbered_before_their_inputs():
    _, walk = walk_of()
    for fold in (False, 1, 2):
        boxes = tl.draw(walk.result, fold=fold).boxes
        assert all(below > box.number for box in boxes for below in box.below)


def test_a_large_graph_is_cut_and_says_so():
    y = tl.ones(1, requires_grad=True)
    for _ in range(3000):
        y = y + 1
    text = str(tl.draw(y, limit=100))
    assert len(text.splitlines()) == 101
    assert text.splitlines()[-1].startswith("… cut after 100 boxes")
    assert str(tl.draw(tl.ones(2))) == "leaf  (2,)"
