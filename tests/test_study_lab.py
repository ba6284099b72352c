"""python -m study lab: variants of a GPT, trained side by side."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from data.dataset import Dataset, open_dataset
from gpt.config import GPTConfig
from gpt.model import GPT
from study import lab
from study.errors import StudyError
from study.lab import WHOLE, WITH, WITHOUT, Outcome, Parts, build, train, verdict
from study.screen import Screen
from tensorlite import random

SMALL = GPTConfig(vocab_size=13, block_size=8, n_layer=2, n_head=2, n_embd=8, dropout=0.0)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small text, a small model, and a folder to work in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lab, "SHAPE", {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8})
    monkeypatch.setattr(lab, "BATCH_SIZE", 4)
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 40, encoding="utf-8")
    return path


@pytest.fixture
def dataset(text: Path) -> Dataset:
    return open_dataset(text, 0.1)


def built(**changes: object) -> GPT:
    with random.use_generator(random.make_generator(0)):
        return build(SMALL, Parts(**changes)).eval()


def logits(model: GPT, ids: list[int]) -> np.ndarray:
    with tl.no_grad():
        return model(tl.tensor([ids]))[0].numpy()[0]


IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def test_the_whole_model_is_the_gpt_to_the_bit():
    with random.use_generator(random.make_generator(0)):
        plain = GPT(SMALL).eval()
    assert logits(built(), IDS).tobytes() == logits(plain, IDS).tobytes()


def test_all_variants_begin_with_the_same_weights():
    whole = built().state_dict()
    for variant in WITHOUT:
        for name, value in built(**variant.changes).state_dict().items():
            if not (variant.name == "positions" and name == "wpe.weight"):
                assert value.numpy().tobytes() == whole[name].numpy().tobytes(), (variant.name, name)


def test_the_mask_hides_what_comes_later():
    changed = [*IDS[:-1], 0]
    assert (logits(built(), IDS)[:-1] == logits(built(), changed)[:-1]).all()
    assert (logits(built(mask=False), IDS)[:-1] != logits(built(mask=False), changed)[:-1]).any()


def test_without_attention_a_token_does_not_depend_on_others():
    changed = [*reversed(IDS[:-1]), IDS[-1]]
    assert (logits(built(attention=False), IDS)[-1] == logits(built(attention=False), changed)[-1]).all()
    assert (logits(built(), IDS)[-1] != logits(built(), changed)[-1]).any()


def test_without_positions_the_order_of_earlier_tokens_has_no_effect():
    model = built(positions=False).double()
    changed = [*reversed(IDS[:-1]), IDS[-1]]
    # one block: in the second, an earlier token has itself seen what came before it
    model.h = model.h[:1]
    np.testing.assert_allclose(logits(model, IDS)[-1], logits(model, changed)[-1], rtol=0, atol=1e-12)
    assert not model.wpe.weight.requires_grad


def test_unscaled_scores_are_larger_by_the_root_of_d():
    scaled, free = (built(**changes).h[0].attn for changes in ({"mask": False}, {"mask": False, "scale": False}))
    with tl.no_grad():
        free.c_attn.weight[: SMALL.n_embd] *= 1 / math.sqrt(SMALL.n_embd // SMALL.n_head)  # the queries
        x = tl.randn(2, 8, SMALL.n_embd)
        np.testing.assert_allclose(scaled(x).numpy(), free(x).numpy(), rtol=1e-5, atol=1e-7)


def test_post_norm_normalises_after_the_sum_and_no_residual_has_no_sum():
    x = tl.randn(1, 8, SMALL.n_embd)
    with tl.no_grad():
        y = built(post_norm=True).h[0](x).numpy()
        np.testing.assert_allclose(y.mean(axis=-1), 0, atol=1e-6)
        np.testing.assert_allclose(y.std(axis=-1), 1, rtol=1e-2)
        block = built(residual=False, mlp=False).h[0]
        assert (block(x).numpy() == block.attn(block.ln_1(x)).numpy()).all()
        linear = built(activation=False).h[0].mlp
        np.testing.assert_allclose(linear(x * 2).numpy(), 2 * linear(x).numpy(), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("variant", [WHOLE, *WITHOUT, *WITH], ids=lambda variant: variant.name)
def test_every_variant_trains(dataset: Dataset, variant: lab.Variant):
    outcome = train(variant, dataset, 6)
    assert outcome.stopped is None
    assert math.isfinite(outcome.val_loss)
    assert outcome.last > 0
    assert [record["step"] for record in outcome.records if "loss" in record] == [1, 2, 3, 4, 5, 6]


def test_a_run_is_repeatable_and_learns(dataset: Dataset):
    one, other = (train(WHOLE, dataset, 40) for _ in range(2))
    assert one.records == other.records
    assert one.val_loss < one.records[0]["val_loss"]


def test_a_variant_that_diverges_says_when(dataset: Dataset):
    wild = lab.Variant("wild", {"optimizer": "sgd", "learning_rate": 1e30, "clipping": False, "warmup": False}, "")
    outcome = train(wild, dataset, 20)
    assert outcome.stopped is not None
    assert math.isnan(outcome.val_loss)
    assert verdict(outcome, train(WHOLE, dataset, 2)) == f"diverged: no number any more in step {outcome.stopped}"


def outcome_of(variant: lab.Variant, val_loss: float, first: float = 1.0, last: float = 1.0) -> Outcome:
    return Outcome(variant, [], val_loss, first, last, 1.0)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (outcome_of(WITHOUT[0], 2.5, first=0.001), "0.50 nats worse; the gradient fades on its way to the first block, to 0.1%"),
        (outcome_of(WITHOUT[1], 1.5), "0.50 nats better"),
        (outcome_of(WITHOUT[2], 2.05), "about the same in a run as short as this"),
        (outcome_of(WITHOUT[4], 0.1), "1.90 nats better, because it reads the answer"),
        (outcome_of(WITHOUT[4], 2.2), "0.20 nats worse"),
    ],
)
def test_the_verdict_follows_from_the_numbers(outcome: Outcome, said: str):
    assert verdict(outcome, outcome_of(WHOLE, 2.0)) == said


def test_the_program_prints_a_table_and_draws_a_sheet(text: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--data", str(text), "--steps", "4", "--without", "mask", "--with", "sgd,one-head,sgd", "--out", "lab.svg"]
    assert lab.main(arguments) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^(whole|without \S+|with \S+) +\d", printed, re.MULTILINE)
    assert rows == ["whole", "without mask", "with sgd", "with one-head"]
    assert (text.parent / "lab.svg").read_text(encoding="utf-8").startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--without", "residuals"], "did you mean residual"),
        (["--with", "residual,"], "--with has no 'residual'"),
        (["--steps", "1"], "at least 2"),
        (["--out", "lab.pdf"], ".svg"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str):
    with pytest.raises(StudyError, match=re.escape(message)):
        lab.main(arguments)


@pytest.mark.parametrize("width", [40, 80])
def test_the_list_fits_and_explains_all(width: int):
    lines = list(lab.explained(Screen(width)))
    assert all(len(line) <= width for line in lines)
    for variant in (*WITHOUT, *WITH):
        assert sum(line.startswith(f"  {variant.name} ") for line in lines) == 1
