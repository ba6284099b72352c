"""python -m gpt.look: what a model does with a text, on a terminal and as a page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from data.errors import DataError
from data.tokenizer import CharTokenizer
from gpt import look
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.generation.sampling import Sampling, choose_tokens, sampling_probabilities
from gpt.microscope.reading import ROLES, Reading, influence, read
from gpt.microscope.screen import Terminal, lines_of
from gpt.model import GPT, build_model
from tensorlite import random
from tensorlite.nn import functional as F
from tests.browser import needs_browser, opened
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
TOKENIZER = CharTokenizer.train("the quick brown fox\njumps over </script>&“”")
TEXT = "the fox\nthe quick"


def make(**options: object) -> GPT:
    config = {"block_size": 24, "n_layer": 2, "n_head": 2, "n_embd": 16, **options}
    with random.use_generator(random.make_generator(1)):
        model = build_model(GPTConfig(vocab_size=TOKENIZER.vocab_size, **config)).eval()
        with tl.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8.0)  # so that its predictions are far from uniform
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("runs") / "noise", make(), TOKENIZER)


# --- what is computed -----------------------------------------------------------------------------------


def test_a_reading_holds_what_the_model_computes():
    model = make().double()
    reading = read(model, TOKENIZER, TEXT)
    with tl.no_grad():
        logits = model(tl.tensor(reading.ids[None]))[0]
        losses = F.cross_entropy(logits[0, :-1], tl.tensor(reading.ids[1:]), reduction="none")
    np.testing.assert_allclose(reading.logits, logits.numpy()[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(reading.block_logits[-1], reading.logits, rtol=0, atol=0)
    np.testing.assert_allclose(reading.surprise[1:], losses.numpy(), rtol=0, atol=1e-12)
    assert np.isnan(reading.surprise[0])
    np.testing.assert_allclose(reading.attention.sum(axis=-1), 1, rtol=0, atol=1e-12)
    assert "".join(reading.tokens) == TEXT
    after_one = GPT.logits  # the first block alone, through a model that has only that one
    model.h = model.h[:1]
    with tl.no_grad():
        np.testing.assert_allclose(reading.block_logits[0], after_one(model, tl.tensor(reading.ids[None])).numpy()[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_influence_is_the_derivative_along_scaling_a_token_to_0(positions: str):
    model = make(positions=positions, tied_head=False).double()
    ids = np.unique(TOKENIZER.encode("the fox")).astype(np.int64)  # each token once, so that changing its row changes one place
    effects = influence(model, ids, target=3)

    def log_p() -> float:
        with tl.no_grad():
            return -F.cross_entropy(model(tl.tensor(ids[None]))[0][:, -1], tl.tensor([3])).item()

    h = 1e-5
    for place, token in enumerate(ids):
        row = model.wte.weight.array[token].copy()
        values = []
        for sign in (1, -1):
            model.wte.weight.array[token] = row * (1 + sign * h)
            values.append(log_p())
        model.wte.weight.array[token] = row
        assert effects[place] == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6, abs=1e-8)


def test_influence_does_not_change_the_model():
    model = make()
    model.wpe.weight.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    influence(model, np.array([1, 2, 3]), 4)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    assert all(parameter.grad is None for parameter in model.parameters())


def reading_with(attention: np.ndarray, tokens: str = "ab\nab") -> Reading:
    ids = np.array([ord(token) for token in tokens])
    logits = np.zeros((len(ids), 128))
    return Reading(tuple(tokens), ids, logits, logits[None], attention[None, None])


@pytest.mark.parametrize(
    ("role", "places"),
    [
        ("previous token", [0, 0, 1, 2, 3]),
        ("itself", [0, 1, 2, 3, 4]),
        ("first token", [0, 0, 0, 0, 0]),
    ],
)
def test_a_head_that_looks_at_one_place_is_recognised(role: str, places: list[int]):
    reading = reading_with(np.eye(5)[places])
    assert reading.main_roles(0, 0)[0] == (role, 1.0)


def test_line_starts_and_earlier_copies_are_recognised():
    same = np.eye(7)[[0, 0, 0, 0, 1, 2, 3]]  # a b \n a b \n a: the same token before
    reading = reading_with(same, "ab\nab\na")
    assert dict(reading.main_roles(0, 0, len(ROLES)))["same token"] == 1.0
    starts = np.eye(8)[[0, 0, 0, 0, 0, 3, 3, 3]]
    reading = reading_with(starts, "ab\nabcde")
    assert dict(reading.main_roles(0, 0, len(ROLES)))["line start"] == 1.0


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(2.0, top_k=3), Sampling(1.0, top_p=0.6), Sampling(0), Sampling(0.7, 4, 0.8, 0.1)]
)
def test_sampling_probabilities_are_the_shares_of_what_is_chosen(sampling: Sampling):
    logits = np.array([0.3, 2.0, -1.0, 1.2, 0.9, -3.0])
    uniforms = (np.arange(20_000) + 0.5) / 20_000
    chosen, _ = choose_tokens(np.broadcast_to(logits, (20_000, 6)), uniforms, sampling)
    shares = np.bincount(chosen, minlength=6) / 20_000
    np.testing.assert_allclose(sampling_probabilities(logits, sampling), shares, rtol=0, atol=1 / 20_000)  # a step of the uniforms


# --- the terminal ---------------------------------------------------------------------------------------


def lines(terminal: Terminal, text: str = TEXT) -> list[str]:
    reading = read(make(), TOKENIZER, text)
    effects = influence(make(), reading.ids, int(reading.logits[-1].argmax()))
    texts = {i: TOKENIZER.decode([i]) for i in range(TOKENIZER.vocab_size)}
    return list(lines_of(reading, Sampling(0.5, top_k=3), effects, texts, terminal))


@pytest.mark.parametrize("width", [40, 80, 100])
def test_screens_fit(width: int):
    assert all(len(line) <= width for line in lines(Terminal(width)))


def test_surprise_is_coloured_or_a_digit_below():
    plain = lines(Terminal(80))
    assert "the·fox⏎" in plain[1]
    assert re.fullmatch(r"  -\d{7}", plain[2])
    assert "\033" not in "".join(plain)
    coloured = "\n".join(lines(Terminal(80, colours=True)))
    assert "\033[48;5;" in coloured
    "\n".join(lines(Terminal(80, encoding="ascii"))).encode("ascii")
    assert any(line.startswith("  the_fox\\") for line in lines(Terminal(80, encoding="ascii")))


def test_one_token_is_enough():
    assert any("block 0" in line for line in lines(Terminal(80), "t"))


def test_the_program_prints_and_writes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    look.main([str(run), "--prompt", TEXT])
    printed = capsys.readouterr().out
    for title in ("Surprise", "What comes next", "The guess after each block", "Where each head looks", "Which token mattered"):
        assert title in printed
    command = [sys.executable, "-m", "gpt", "--mode", "look", run, "--prompt", "fox"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=PATIENCE, env={"PYTHONIOENCODING": "cp1252"})
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "--prompt", ""], "no text to look at"),
        (["RUN", "--prompt", "x" * 30], "30 tokens, more than the 24"),
        (["RUN", "--prompt", "ABC"], "never saw"),
        (["RUN", "--temperature", "nan"], "temperature must be"),
        (["RUN", "--html", "no/such/look.html"], "cannot be written"),
        (["RUN", "--promt", "x"], "did you mean --prompt"),
        (["BIGRAM"], "no blocks to look into"),
    ],
)
def test_bad_arguments(run: Path, tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    bigram = build_model(GPTConfig(model="bigram", vocab_size=TOKENIZER.vocab_size, block_size=24))
    save_model(tmp_path / "bigram", bigram, TOKENIZER)
    given = [{"RUN": str(run), "BIGRAM": "bigram"}.get(argument, argument) for argument in arguments]
    if "--prompt" not in given:
        given += ["--prompt", "the"]
    with pytest.raises((UserError, DataError), match=re.escape(message)):
        look.main(given)


# --- the page -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def look_html(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "look.html"
    look.main([str(run), "--prompt", "the</script>\n& “fox”", "--html", str(path)])
    return path


def test_the_page_is_complete_and_loads_nothing(look_html: Path):
    text = look_html.read_text(encoding="utf-8")
    content = json.loads(re.search(r"const reading = (.*);\nconst T", text)[1])
    assert "".join(content["tokens"]) == "the</script>\n& “fox”"
    assert np.shape(content["attention"]) == (2, 2, 20, 20)
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href)=|https?://|@import", text)


@needs_browser
def test_the_page_by_keyboard(look_html: Path):
    with opened(look_html.as_uri(), viewport={"width": 1000, "height": 900}) as (page, errors):
        about = page.locator("#about")
        assert about.inner_text().startswith("Token 20 of 20")
        page.locator("#text button").last.focus()
        page.keyboard.press("ArrowLeft")
        assert about.inner_text().startswith("Token 19 of 20")
        page.keyboard.press("Home")
        assert "nothing came before it" in about.inner_text()
        assert page.locator("#head").is_disabled()
        page.locator("#colour").select_option("attention")
        page.locator("#text button").nth(7).hover()
        assert about.inner_text().startswith("Token 8 of 20")
        shades = page.eval_on_selector_all("#text button", "buttons => buttons.map(button => getComputedStyle(button).backgroundColor)")
        assert all(shade.endswith(", 0)") for shade in shades[8:])  # it cannot look at what comes later
        assert not all(shade.endswith(", 0)") for shade in shades[:8])
        assert errors == []


@needs_browser
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 3, 1.0), (1.5, 0, 0.6), (0.0, 0, 1.0)])
def test_the_page_samples_like_the_library(run: Path, look_html: Path, temperature: float, top_k: int, top_p: float):
    reading = read(make(), TOKENIZER, "the</script>\n& “fox”")
    expected = reading.next_tokens(Sampling(temperature, top_k or None, top_p), 12)
    with opened(look_html.as_uri()) as (page, errors):
        for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
            page.eval_on_selector(f"#{name}", "(input, value) => { input.value = value; input.oninput(); }", value)
        shown = [float(text.rstrip("%")) for text in page.locator("#next tr td:nth-child(3)").all_inner_texts()]
        np.testing.assert_allclose(shown, [100 * sampled for _, _, sampled in expected], rtol=0, atol=0.1)  # four digits of log p, one of %
        assert errors == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(look_html: Path, scheme: str):
    with opened(look_html.as_uri(), viewport={"width": 360, "height": 700}, color_scheme=scheme) as (page, errors):
        for what in ("surprise", "attention", "effects"):
            page.locator("#colour").select_option(what)
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 27, 32)"}[scheme]
        assert errors == []
