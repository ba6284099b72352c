"""Pictures: that the numbers in them are right, that they are written, and what is said where they cannot be."""

from __future__ import annotations

import json
import struct
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.text import Text

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.model import build_model
from gpt.plot import main
from gpt.plots.activation_curves import ACTIVATIONS, activation_curve, plot_activations
from gpt.plots.attention_maps import attention_weights, plot_attention
from gpt.plots.curves import plot_losses, plot_runs
from gpt.training.metrics import gradient_norms_by_layer
from gpt.training.trainer import Trainer

TOKENIZER = CharTokenizer.train("abcdefg \n")
CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=12, n_layer=2, n_head=2, n_embd=8, dropout=0.3)


def model(**changes):
    tl.manual_seed(0)
    return build_model(GPTConfig(**{**CONFIG.__dict__, **changes}))


def plot(*argv):
    return run_main(lambda: main([str(argument) for argument in argv]))


def run(folder, steps=4, **more):
    """A folder as a training leaves it."""
    folder.mkdir()
    records = [{"step": 0, "train_loss": 4.0, "val_loss": 4.1}]
    records += [{"step": s, "loss": 4.0 - s / 10, "learning_rate": 1e-3, "gradient_norm": 1.0 / s, **more} for s in range(1, steps)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_drawn_derivative_is_torchs(name):
    function = {
        "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu, "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    }[name]  # fmt: skip
    x = np.linspace(-4, 4, 81)
    y, slope = activation_curve(ACTIVATIONS[name][1], x)
    points = torch.tensor(x, requires_grad=True)
    expected = function(points)
    expected.sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), atol=1e-12)
    np.testing.assert_allclose(slope, points.grad.numpy(), atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_the_drawn_attention_is_the_models(positions):
    """The weights, times the values, give what the attention layer gives."""
    gpt = model(positions=positions).eval().to(dtype=tl.float64)
    rng = np.random.default_rng(0)
    for parameter in gpt.parameters():
        parameter.array[...] = rng.normal(size=parameter.shape)
    ids = np.array([0, 3, 1, 5, 2])
    maps = attention_weights(gpt, ids)
    assert maps.shape == (2, 2, 5, 5)
    np.testing.assert_allclose(maps.sum(axis=-1), 1, rtol=1e-12)
    assert not maps[:, :, *np.triu_indices(5, 1)].any()
    with tl.no_grad():
        positions = gpt.wpe.weight if positions == "learned" else gpt.waves
        x = gpt.wte(tl.tensor(ids[None])) + positions[:5]
        for i, block in enumerate(gpt.h):
            h = block.ln_1(x)
            v = block.attn.c_attn(h)[0, :, 16:].numpy().reshape(5, 2, 4).transpose(1, 0, 2)  # (H, T, D)
            y = (maps[i] @ v).transpose(1, 0, 2).reshape(5, 8)
            np.testing.assert_allclose(block.attn.c_proj(tl.tensor(y)).numpy(), block.attn(h)[0].numpy(), rtol=1e-9)
            x = block(x)


def test_the_squared_norms_of_the_layers_add_up_to_the_whole(monkeypatch):
    tokens = np.random.default_rng(0).integers(9, size=200)
    trainer = Trainer(model(), TrainConfig(steps=2, batch_size=4, grad_clip=0.01, workers=1), tokens, tokens)
    seen, clip = {}, tl.optim.clip_factor

    def look_and_clip(parameters, length):
        seen.update({name: p.grad.numpy().copy() for name, p in trainer.model.named_parameters()})
        return clip(parameters, length)

    monkeypatch.setattr("gpt.training.stepper.optim.clip_factor", look_and_clip)
    trainer.update()
    total = float(trainer.gradient_norm.array)
    norms = gradient_norms_by_layer(trainer.model, total)
    assert list(norms) == ["wte", "wpe", "h.0", "h.1", "ln_f"]
    assert sum(norm**2 for norm in norms.values()) == pytest.approx(total**2, rel=1e-5)
    expected = sum((gradient.astype(float) ** 2).sum() for name, gradient in seen.items() if name.startswith("h.1.")) ** 0.5
    assert norms["h.1"] == pytest.approx(expected, rel=1e-4), "as it was before it was clipped"


def test_curves_of_one_run_and_of_several(tmp_path, capsys):
    one = run(tmp_path / "one", gradient_norms={"wte": 0.5, "h.0": 0.3, "h.1": 0.2})
    two = run(tmp_path / "two", steps=9)
    assert plot(one) == 0
    assert is_png(one / "curves.png")
    assert capsys.readouterr().out == f"{one / 'curves.png'}\n"
    assert plot(one, two, "--out", tmp_path / "both.svg") == 0
    texts = {element.tag.rpartition("}")[2] for element in ET.parse(tmp_path / "both.svg").iter()}
    assert "path" in texts


def test_incomplete_records_are_drawn(tmp_path):
    plot_runs({"a": [{"step": 0, "val_loss": 1.0}], "b": [{"step": 0, "loss": 1.0}]}, tmp_path / "some.png")
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.png", title="one")
    assert is_png(tmp_path / "some.png")
    assert is_png(tmp_path / "loss.png")
    width, height = struct.unpack(">II", (tmp_path / "loss.png").read_bytes()[16:24])
    assert (width, height) == (7 * 150, 4 * 150), "7 by 4 inches, 150 dots each"


@pytest.fixture
def drawn(monkeypatch):
    """The figures, to be looked at instead of saved."""
    figures = []
    for module in ("curves", "attention_maps", "activation_curves"):
        monkeypatch.setattr(f"gpt.plots.{module}.save_figure", lambda figure, path: figures.append(figure))
    return figures


def texts_of(figure):
    """What is written in it, but for the numbers at its axes, of which Matplotlib has more than it shows."""
    yield from figure.texts
    for axes in figure.axes:
        yield from (axes.title, axes.xaxis.label, axes.yaxis.label)
        yield from axes.get_legend().get_texts() if axes.get_legend() else ()


def test_no_text_in_a_picture_is_cut_off(tmp_path, drawn):
    """Names and prompts of any length: every text lies within its figure."""
    records = [{"step": s, "loss": 4.0, "val_loss": 3.0 - s, "train_loss": 3.0, "gradient_norms": {"h.0": 1.0}} for s in range(3)]
    for count in (1, 2, 6):
        plot_runs({f"{'finetuned-on-shakespeare' * (6 if count == 1 else 2)}-{i}": records for i in range(count)}, tmp_path / "a.png")
    plot_losses(records, tmp_path / "a.png", title="long" * 50)
    for layers, heads, T in ((1, 1, 64), (2, 3, 5), (1, 2, 1)):
        maps = np.broadcast_to(np.tri(T), (layers, heads, T, T))
        plot_attention(maps, ["statement\n"] * T if T < 9 else ["m"] * T, tmp_path / "a.png", title="The import statement " * 20)
    plot_activations(tmp_path / "a.png")
    for figure in drawn:
        figure.canvas.draw()
        size = figure.bbox.size
        for text in filter(Text.get_text, texts_of(figure)):
            box = text.get_window_extent()
            assert (box.min >= -1).all(), text
            assert (box.max <= size + 1).all(), text


def test_each_run_is_in_the_legend_once(tmp_path, drawn):
    plot_runs({name: [{"step": 0, "val_loss": 1.0, "loss": 2.0}] for name in ("first", "second")}, tmp_path / "a.png")
    legend = drawn[0].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second", "training, single batches", "validation"]


def test_up_to_64_tokens_have_their_letters_beside_the_picture(tmp_path, drawn):
    for T in (64, 65):
        plot_attention(np.broadcast_to(np.tri(T), (1, 1, T, T)), ["a"] * T, tmp_path / "a.png")
    assert [len(figure.axes[0].get_yticks()) for figure in drawn] == [64, 0]


def line_of(axes, label):
    return next(line for line in axes.lines if line.get_label() == label)


def test_every_value_of_a_run_is_drawn_at_its_step(tmp_path, drawn):
    records = [{"step": 0, "train_loss": 4.0, "val_loss": 4.5}]
    records += [{"step": s, "loss": 4.0 - s, "learning_rate": s / 8, "gradient_norm": 10.0**-s} for s in (1, 2)]
    records[2]["gradient_norms"] = {"wte": 0.5, "h.0": 0.25, "h.1": 0.125, "h.2": 1.0, "ln_f": 2.0}
    plot_runs({"one": records}, tmp_path / "a.png")
    losses, rates, norms = drawn[0].axes
    for label, points, look in (
        ("training, single batches", [(1, 3.0), (2, 2.0)], ("-", "0.8", 1, 1, "None")),
        ("training", [(0, 4.0)], ("--", "C0", None, 1.6, "o")),
        ("validation", [(0, 4.5)], ("-", "C1", None, 1.6, "o")),
    ):
        line = line_of(losses, label)
        assert list(zip(*line.get_data(), strict=True)) == points
        assert (line.get_linestyle(), line.get_color(), line.get_alpha(), line.get_linewidth(), line.get_marker()) == look
    assert [list(data) for data in rates.lines[0].get_data()] == [[1, 2], [0.125, 0.25]]
    assert rates.get_ylim()[0] == 0
    assert [list(data) for data in line_of(norms, "all").get_data()] == [[1, 2], [0.1, 0.01]]
    assert norms.get_yscale() == "log"
    layers = norms.lines[1:]
    assert [(line.get_label(), *line.get_xdata(), *line.get_ydata(), line.get_linestyle()) for line in layers] == [
        ("wte", 2, 0.5, ":"), ("h.0", 2, 0.25, "-"), ("h.1", 2, 0.125, "-"), ("h.2", 2, 1.0, "-"), ("ln_f", 2, 2.0, ":")
    ]  # fmt: skip
    assert [line.get_color() for line in layers[1:4]] == [matplotlib.colormaps["viridis"](shade) for shade in (0.9, 0.5, 0.9 - 0.8)]
    assert [text.get_text() for text in norms.get_legend().get_texts()] == ["all", "wte", "h.0", "h.1", "h.2", "ln_f"]
    assert [axes.get_ylabel() for axes in drawn[0].axes] == ["loss in nats", "learning rate", "norm of the gradient"]
    assert [axes.get_xlabel() for axes in drawn[0].axes] == ["", "", "step"]
    assert drawn[0].get_suptitle() == "one"


def test_the_norms_have_plain_numbers_at_their_logarithmic_axis(tmp_path, drawn):
    plot_runs({"one": [{"step": s, "gradient_norm": norm} for s, norm in enumerate((0.05, 5.0))]}, tmp_path / "a.png")
    axis = drawn[0].axes[2].yaxis
    for formatter in (axis.get_major_formatter(), axis.get_minor_formatter()):
        assert [formatter(x) for x in (0.1, 1.0)] == ["0.1", "1"]


def test_norms_that_are_all_zero_have_a_linear_axis(tmp_path, drawn):
    plot_runs({"one": [{"step": 1, "gradient_norm": 0.0}]}, tmp_path / "a.png")
    assert drawn[0].axes[2].get_yscale() == "linear"


def test_of_several_runs_each_has_one_colour_and_the_legend_explains_the_kinds_of_lines(tmp_path, drawn):
    records = [{"step": s, "loss": 2.0, "train_loss": 2.0, "val_loss": 1.0, "learning_rate": 0.5, "gradient_norm": 1.0} for s in range(2)]
    plot_runs(dict.fromkeys(("first", "second", "third"), records), tmp_path / "a.png")
    losses, rates, norms = drawn[0].axes
    assert [line.get_color() for line in losses.lines] == [f"C{number}" for number in (0, 0, 0, 1, 1, 1, 2, 2, 2)]
    assert [(line.get_color(), line.get_linewidth()) for line in rates.lines] == [("C0", 3.6), ("C1", 2.6), ("C2", 1.6)]
    assert [line.get_color() for line in norms.lines] == ["C0", "C1", "C2"]
    names, kinds = np.split(np.array(losses.get_legend().legend_handles), [3])
    assert [(line.get_color(), line.get_linewidth()) for line in names] == [("C0", 4), ("C1", 4), ("C2", 4)]

    def look(line):
        return line.get_linestyle(), line.get_linewidth(), line.get_alpha(), line.get_marker(), line.get_markersize()

    assert list(map(look, kinds)) == list(map(look, losses.lines[:3]))
    assert {line.get_color() for line in kinds} == {"0.3"}
    assert losses.lines[0].get_alpha() == 0.3
    assert norms.get_legend() is None
    assert drawn[0].get_suptitle() == ""


def test_a_picture_of_the_loss_alone_says_what_its_axes_are(tmp_path, drawn):
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "a.png", title="a" * 67)  # 67 letters of 12 points fill 7 inches
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "a.png", title="a" * 68)
    (axes,) = drawn[0].axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss in nats")
    assert [line.get_label() for line in axes.lines] == ["training, single batches"]
    assert [figure.get_suptitle() for figure in drawn] == ["a" * 67, "a" * 66 + "…"]
    assert [axes.spines[side].get_visible() for side in ("left", "bottom", "top", "right")] == [True, True, False, False]
    assert all(line.get_visible() for line in axes.get_xgridlines())


def test_tokens_stand_at_the_left_and_below_and_white_space_is_visible(tmp_path, drawn):
    maps = np.random.default_rng(0).random((2, 3, 4, 4))
    plot_attention(maps, [" a", "\n", "\t", "b"], tmp_path / "a.png", title="a prompt")
    plot_attention(maps[:1, :1], ["a", "b", "c", "d"], tmp_path / "a.png")
    grid = np.array(drawn[0].axes[:6]).reshape(2, 3)
    names = ["·a", "⏎", "⇥", "b"]
    for (layer, head), axes in np.ndenumerate(grid):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(shown.filled(0), np.tril(maps[layer, head]))
        assert shown.mask[np.triu_indices(4, 1)].all()
        assert [label.get_text() for label in axes.get_xticklabels()] == (names if layer == 1 else [])
        assert [label.get_text() for label in axes.get_yticklabels()] == (names if head == 0 else [])
        assert axes.get_title() == (f"head {head}" if layer == 0 else "")
        assert axes.get_ylabel() == (f"block {layer}" if head == 0 else "")
    assert {label.get_rotation() for label in grid[1, 0].get_xticklabels()} == {90}, "a name has two characters"
    assert {label.get_rotation() for label in drawn[1].axes[0].get_xticklabels()} == {0}
    assert drawn[0].axes[6].get_ylabel() == "attention weight"
    np.testing.assert_allclose(drawn[0].axes[6].get_yticks(), [0, 0.05, 0.25, 0.5, 1])
    assert drawn[0].get_suptitle() == "a prompt"


def test_all_activations_have_the_same_axes_with_numbers_at_the_left_and_below(tmp_path, drawn):
    plot_activations(tmp_path / "a.png")
    for number, (axes, (name, (formula, function))) in enumerate(zip(drawn[0].axes, ACTIVATIONS.items(), strict=True)):
        assert (axes.get_xlim(), axes.get_ylim()) == ((-4, 4), (-1.2, 2.2))
        assert axes.xaxis.get_major_ticks()[0].label1.get_visible() == (number >= 3)
        assert axes.yaxis.get_major_ticks()[0].label1.get_visible() == (number % 3 == 0)
        assert axes.get_title() == f"{name}:  {formula}"
        x = line_of(axes, "f(x)").get_xdata()
        assert (x[0], x[-1]) == (-4, 4)
        for label, expected in zip(("f(x)", "f′(x)"), activation_curve(function, x), strict=True):
            np.testing.assert_array_equal(line_of(axes, label).get_ydata(), expected)
        assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "-", "--"]  # both axes, f, its derivative
        assert (*axes.lines[0].get_ydata(), *axes.lines[1].get_xdata()) == (0, 0, 0, 0)
        assert (axes.get_legend() is not None) == (number == 0)


def test_runs_are_named_by_their_folders_or_by_their_paths_if_two_folders_have_one_name(tmp_path, monkeypatch, drawn):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    for folder in ("a/tiny", "b/tiny", "b/wide"):
        run(tmp_path / folder)
    assert plot("a/tiny", "b/tiny", "b/wide", "--out", "all.png") == 0
    names = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()[:3]]
    assert names == ["a/tiny", "b/tiny", "wide"]


def test_a_character_that_the_font_lacks_gives_no_warning(tmp_path, recwarn):
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.png", title="日本")
    assert not recwarn.list


def test_a_dollar_in_a_name_begins_no_formula(tmp_path):
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.svg", title=r"$\frac$")  # Matplotlib cannot read it as one
    assert (tmp_path / "loss.svg").exists()


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        plot_losses([{"step": step, "loss": 2.0 - step} for step in range(3)], tmp_path / name, title="one")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_activations_are_drawn(tmp_path):
    assert plot("--activations", "--out", tmp_path / "functions.png") == 0
    assert is_png(tmp_path / "functions.png")


def test_attention_is_drawn(tmp_path):
    save_model(tmp_path / "run", model(), TOKENIZER)
    assert plot(tmp_path / "run", "--attention", "--prompt", "a bad cafe\n") == 0
    assert is_png(tmp_path / "run" / "attention.png")


def test_an_incomplete_last_line_is_left_out(tmp_path):
    folder = run(tmp_path / "one")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    assert plot(folder) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there is nothing to draw"),
        (["nowhere"], "nowhere is not a run"),
        (["empty"], "nothing to draw yet"),
        (["one", "--out", "one.jpg"], "a picture is .png or .svg"),
        (["one", "--out", "none/a.png"], "the picture cannot be written"),
        (["one", "--activations"], "give it alone"),
        (["one", "--attention"], "a --prompt that is not empty"),
        (["one", "--prompt", "a"], "--prompt belongs to --attention"),
        (["gpt", "--attention", "--prompt", "a" * 13], "the prompt has 13 tokens, more than the 12"),
        (["gpt", "--attention", "--prompt", "xa"], "'x' (U+0078)"),
        (["bigram", "--attention", "--prompt", "a"], "its model is a bigram table"),
        (["one", "--atention"], "did you mean --attention?"),
    ],
)
def test_a_wrong_option_gets_one_sentence(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metrics.jsonl").touch()
    save_model("gpt", model(), TOKENIZER)
    save_model("bigram", model(model="bigram"), TOKENIZER)
    assert plot(*argv) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("gpt.plot.can_plot", lambda: False)
    assert plot("--activations") == 2
    assert "a picture needs matplotlib: pip install 'tensorlite[plot]'." in capsys.readouterr().err
