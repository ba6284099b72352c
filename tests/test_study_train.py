"""Training with the student's pages: the losses of gpt.train to the bit, and what is said where a page is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from data.dataset import Dataset
from data.tokenizer import CharTokenizer
from gpt.config import RandomStream, from_preset
from gpt.model import build_model
from gpt.training.trainer import Trainer
from study import train
from study.errors import StudyError
from study.examine import load_page
from study.exercise import TO_WRITE, load
from study.screen import Screen
from study.verdict import Verdict
from tensorlite.op import REGISTRY, use_kernels
from tensorlite.random import make_generator, use_generator

STEPS = 6
# Rates that move the weights far in a few steps, and gradients that are clipped.
MODEL, CONFIG = from_preset(
    "tiny", n_layer=2, n_head=2, n_embd=32, block_size=16, batch_size=6, steps=STEPS, warmup_steps=1, learning_rate=0.02, grad_clip=0.3
)


@pytest.fixture(scope="module")
def dataset():
    text = "the quick brown fox jumps over the lazy dog. " * 20
    tokenizer = CharTokenizer(sorted(set(text)))
    tokens = np.array(tokenizer.encode(text))
    return Dataset(tokens[:700], tokens[700:], tokenizer, tokenizer.vocab_size, "", "")


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """The student's pages: the solutions, but for those that are given lines in their place."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_study").mkdir()

    def written(*names, **changed):
        for name in (*names, *changed):
            lines = "".join(f"    {line}\n" for line in changed.get(name, "").splitlines())
            text = load(name).start.replace(TO_WRITE, lines) if name in changed else load(name).solution
            load(name).path().write_text(text, encoding="utf-8")
        return {name: load_page(load(name), load(name).path())[0] for name in (*names, *changed)}

    return written


def losses(pages, dataset):
    run = train.Run(pages, MODEL, CONFIG, dataset)
    return [run.update() for _ in range(STEPS)]


@pytest.fixture(scope="module")
def book(dataset):
    """The losses of `gpt.train`."""
    model_config = type(MODEL)(**{**vars(MODEL), "vocab_size": dataset.vocab_size})
    with use_generator(make_generator(CONFIG.seed, RandomStream.WEIGHTS)):
        model = build_model(model_config)
    config = type(CONFIG)(**{**vars(CONFIG), "workers": 1, "shards": 1})
    trainer = Trainer(model, config, dataset.train, dataset.val)
    with use_kernels("book"), trainer.workers:
        return [trainer.update().item() for _ in range(STEPS)]


def test_without_pages_the_losses_equal_those_of_gpt_train(book, dataset):
    assert losses({}, dataset) == book
    assert len(set(book)) == STEPS


def test_with_all_solutions_the_losses_equal_the_books_to_the_bit(book, dataset, pages):
    assert losses(pages(*train.USED), dataset) == book


@pytest.mark.parametrize("name", train.USED)
def test_every_page_is_used_in_training(book, dataset, pages, name):
    """One page with a wrong gradient changes the losses, whichever it is."""
    wrong = {
        "add": "return unbroadcast(dy, a_shape), 2 * unbroadcast(dy, b_shape)",
        "embedding": "return None, np.ones(shape, dy.dtype)",
        "linear": "return 0.5 * (dy_rows @ weight).reshape(x.shape), dy_rows.T @ rows, dy_rows.sum(axis=0)",
        "layernorm": "return dy, sum_of(dy * x_hat, rows), sum_of(dy, rows)",
        "gelu": "return dy * cdf",
        "attention": "return 3 * q, 3 * k, dy",
        "heads": "return dy.reshape(B, T, H * D)",
        "cross_entropy": "return p * dy, None",
        "tape": "walked = {}\nwaiting = [(last, dy)]\nwhile waiting:\n    node, dy = waiting.pop()\n    if not node.parents:\n"
        "        walked[node] = dy\n    else:\n        waiting += zip(node.parents, node.gradients(dy))\nreturn walked",
        "clip": "return 0.0, list(gradients)",
        "adamw": "p -= lr * np.sign(g)",
    }
    changed = losses(pages(**{name: wrong[name]}), dataset)
    if name != "heads":  # whose backward puts the heads together in forward
        assert changed[0] == pytest.approx(book[0], rel=1e-6), "the first loss is computed before any gradient"
    assert changed != book


def test_a_different_right_answer_differs_only_by_rounding(book, dataset, pages):
    otherwise = (
        "g = dy * weight\nn = x_hat.shape[-1]\nm = lambda a: a.sum(axis=-1, keepdims=True)\n"
        "dx = (n * g - m(g) - x_hat * m(g * x_hat)) * inverse_std / n\nreturn dx, (dy * x_hat).sum(axis=rows), dy.sum(axis=rows)"
    )
    ours = losses(pages(layernorm=otherwise), dataset)
    np.testing.assert_allclose(ours, book, rtol=1e-3)


def test_the_books_functions_are_restored_afterwards(dataset, pages):
    before = dict(REGISTRY), [op.book for op in REGISTRY.values()]
    losses(pages("gelu", "adamw"), dataset)
    assert before == (dict(REGISTRY), [op.book for op in REGISTRY.values()])
    assert losses({}, dataset)[-1] > 0


@pytest.mark.parametrize(
    "name, lines, sentence",
    [
        ("gelu", "return dz", "gelu.py, line 33 raises NameError: name 'dz' is not defined. It is: return dz"),
        (
            "layernorm",
            "return dy[0], dy, dy",
            "training stops at what a page of yours returned: the backward of layernorm returned a gradient",
        ),
        ("clip", "return 1.0, None", "training stops at what a page of yours returned"),
    ],
)
def test_a_page_that_stops_training_is_reported_in_a_sentence(dataset, pages, name, lines, sentence):
    with pytest.raises(StudyError) as error:
        losses(pages(**{name: lines}), dataset)
    assert sentence in str(error.value)


def test_the_comparison_of_losses_is_reported(dataset, pages, capsys):
    same = train.compare(pages("gelu"), MODEL, CONFIG, dataset, Screen())
    assert same == "All 6 losses are the same, to the last bit."
    table = capsys.readouterr().out.splitlines()
    assert [line.split() for line in table if line][:1] == [["step", "the", "book", "yours"]]
    assert [line.split()[0] for line in table if line][1:] == [str(step) for step in range(1, STEPS + 1)]
    wrong = train.compare(pages(gelu="return dy * cdf * 0"), MODEL, CONFIG, dataset, Screen())
    assert wrong.startswith("The losses differ from step 2 on")
    assert wrong.endswith("which is more than rounding explains.")
    nan = train.compare(pages(gelu="return dy * np.nan"), MODEL, CONFIG, dataset, Screen())
    assert nan == "With your pages the loss is nan from step 2 on."


def test_steps_and_pages_are_checked_first(pages, monkeypatch, capsys):
    with pytest.raises(StudyError, match="--steps must be at least 1, got 0"):
        train.main(["--steps", "0"])
    pages("gelu", "clip")
    for verdict, says in (
        (
            Verdict("gelu", False, "the page was still running.", comes_back=False),
            r"training cannot begin: .*gelu.py: the page was still running",
        ),
        (Verdict("gelu", False, "wrong"), r"training cannot begin: .*gelu.py: line 5 is not Python"),
    ):
        monkeypatch.setattr(train, "verdicts", lambda pages, v=verdict: [v, Verdict("clip", True, "")])
        with pytest.raises(StudyError, match=says):
            train.main([])
        load("gelu").path().write_text("\n\n\n\nimport = 3\n", encoding="utf-8")
    assert "yours: gelu, clip." in capsys.readouterr().out


def test_the_pages_in_use_are_listed():
    verdict_of = {"gelu": Verdict("gelu", True, ""), "clip": Verdict("clip", False, "wrong")}
    yours, wrong, others = train.described(["gelu", "clip"], verdict_of)
    assert yours == "yours: gelu, clip."
    assert wrong == "Of these clip is wrong, by python -m study check. See what becomes of it."
    assert others == "the book's: add, embedding, linear, layernorm, attention, heads, cross_entropy, tape, adamw."
    (none,) = train.described([], {})
    assert none.startswith("none of your pages takes part yet")
