"""Pictures: that the numbers in them are right, that they are written, and what is said where they cannot be."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

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
from gpt.plots.figure import save_figure
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
    seen, clip = {}, tl.optim.clip_grad_norm_

    def look_and_clip(parameters, length):
        seen.update({name: p.grad.numpy().copy() for name, p in trainer.model.named_parameters()})
        return clip(parameters, length)

    monkeypatch.setattr("gpt.training.stepper.optim.clip_grad_norm_", look_and_clip)
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


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, to be looked at."""
    figures = []

    def keep(figure, path):
        figures.append(figure)
        save_figure(figure, path)

    for module in ("curves", "attention_maps", "activation_curves"):
        monkeypatch.setattr(f"gpt.plots.{module}.save_figure", keep)
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


def test_a_character_that_the_font_lacks_gives_no_warning(tmp_path, recwarn):
    plot_losses([{"step": 1, "loss": 2.0}], tmp_path / "loss.png", title="日本")
    assert not recwarn.list


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
