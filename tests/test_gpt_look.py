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
from gpt.int8 import Int8Matrix, to_int8
from gpt.microscope.page import page as page_of
from gpt.microscope.reading import ROLES, Reading, influence, log_softmax, read, visible
from gpt.microscope.screen import SHADES, Terminal, lines_of, named, surprise_lines
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


def test_probabilities_of_large_logits_are_finite():
    logits = np.array([[1000.0, 999.0, -1000.0]])
    np.testing.assert_allclose(np.exp(log_softmax(logits))[0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1)), 0], rtol=1e-12)


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


def test_a_model_in_8_bits_is_read_and_has_no_influence():
    changes = {"model": "llama", "n_kv_head": 1, "n_embd": 32, "n_inner": 32}
    model, rounded = to_int8(make(**changes)), make(**changes)
    for parameter in rounded.parameters():
        if parameter.ndim == 2:
            parameter.array[...] = Int8Matrix(parameter.array)[:]
    found, expected = read(model, TOKENIZER, TEXT), read(rounded, TOKENIZER, TEXT)
    np.testing.assert_allclose(found.block_logits, expected.block_logits, rtol=0, atol=2e-5 * abs(expected.block_logits).max())
    np.testing.assert_allclose(found.attention, expected.attention, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="matrices in 8 bits have none: load this model without int8"):
        influence(model, found.ids, 0)


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


def test_the_share_of_a_role_is_the_mean_over_the_tokens_that_have_such_a_place():
    text = "\nabc\nab\na\nb"
    T = len(text)
    attention = np.tril(np.random.default_rng(0).random((T, T)))
    expected = {}
    for role in ROLES:
        shares = []
        for t in range(T):
            line = text.rfind("\n", 0, t) + 1
            places = {
                "previous token": [t - 1] if t else [],
                "line start": [line] if 0 < line < t - 1 else [],
                "same token": [s for s in range(t) if text[s] == text[t]],
                "itself": [t] if t else [],
                "first token": [0] if t > 1 else [],
            }[role]
            if places:
                shares.append(sum(attention[t, s] for s in places))
        expected[role] = np.mean(shares)
    assert dict(reading_with(attention, text).main_roles(0, 0, len(ROLES))) == pytest.approx(expected, rel=1e-12)


def test_a_single_token_has_no_roles():
    reading = reading_with(np.ones((1, 1)), "a")
    assert reading.roles().shape == (1, 1, len(ROLES))
    assert reading.main_roles(0, 0) == []


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


NAMES = ("a", " ", "\n", "elephan", "elephant")  # seven characters have room, eight have not
EFFECTS = np.array([0.5, -1.0, 0.25, 0.125, 0.06, -0.75, 0.03, 0.01, 0.0, 0.875])


def small_reading() -> Reading:
    """Ten tokens, and two heads: the first looks at the token before, the second at itself and at the first token."""
    ids = np.array([0, 1, 4, 2, 0, 3, 0, 1, 0, 0])
    p = np.tile([0.5, 0.25, 0.13, 0.06, 0.06], (10, 1))
    p[4] = [1 - 2e-6, 5e-7, 5e-7, 5e-7, 5e-7]  # the next token is a great surprise
    p[8] = [0.06, 0.5, 0.25, 0.13, 0.06]
    after_one_block = np.tile([0.0625, 0.0625, 0.0625, 0.0625, 0.75], (10, 1))
    attention = np.stack([np.eye(10)[[0, *range(9)]], np.eye(10) * 0.75 + np.eye(10)[[0] * 10] * 0.25])
    return Reading(tuple(NAMES[i] for i in ids), ids, np.log(p), np.log([after_one_block, p]), attention[None])


def small_lines(terminal: Terminal) -> list[str]:
    texts = {i: visible(name) for i, name in enumerate(NAMES)}
    return list(lines_of(small_reading(), Sampling(top_k=2), EFFECTS, texts, terminal))


SCREEN = """\
Surprise, in nats a token
  a·elephant⏎
  -12       2
  aelephana·aa
  09      0102
mean 3.00; the greatest, 14.51, at 'elephan'

What comes next
                p  sampled
  a         50.0%    66.7%  ████████
  ·         25.0%    33.3%  ████
  ⏎         13.0%     0.0%  ██
  elephan    6.0%     0.0%  █
  elepha…    6.0%     0.0%  █

The guess after each block
  block 0  elepha…   75.0%
  block 1  a         50.0%

Where each head looks
  block 0 head 0  previous token 100%, same token
    20%; now 'a' at 8, 100%
  block 0 head 1  itself 75%, first token 25%; now
    'a' at 9, 75%

Which token mattered for the guess
  for 'a': by how much log p would fall, to first
  order, if a token's embedding were faded out
  ·       at 1      -1.000  ██████████████████
  a       at 9      +0.875  ████████████████
  elephan at 5      -0.750  ██████████████
  a       at 0      +0.500  █████████
  elepha… at 2      +0.250  ████
  ⏎       at 3      +0.125  ██
  a       at 4      +0.060  █
  a       at 6      +0.030  █
"""


def test_the_screen_line_by_line():
    assert "\n".join(small_lines(Terminal(50))) == SCREEN


def test_with_colours_there_are_no_digits():
    def in_shade(text: str, shade: int) -> str:
        return f"\033[48;5;{SHADES[shade]}m\033[97m{text}\033[0m"

    lines = small_lines(Terminal(50, colours=True))
    assert lines[0] == "\033[1mSurprise, in nats a token\033[0m"
    assert lines[1] == "  a" + in_shade("·", 2) + in_shade("elephant", 3) + in_shade("⏎", 3)
    assert lines[2] == "  " + "".join(in_shade(*pair) for pair in (("a", 1), ("elephan", 5), ("a", 1), ("·", 2), ("a", 1), ("a", 3)))
    assert lines[3].startswith("mean")


def test_the_shades_go_from_green_to_red():
    red, green, blue = np.unravel_index(np.array(SHADES) - 16, (6, 6, 6))  # the colour cube of xterm
    assert green[0] > red[0]
    assert (np.diff(red) >= 0).all()
    assert red[-1] > green[-1] == 0
    assert not blue.any()


def test_a_long_line_of_tokens_is_broken_at_the_edge():
    rows = list(surprise_lines(reading_with(np.eye(30), "a" * 30), Terminal(24)))  # all of 128 tokens are as likely: 4.85 nats
    assert rows[:-1] == ["  " + "a" * 22, "  -" + "4" * 21, "  " + "a" * 8, "  " + "4" * 8]


@pytest.mark.parametrize(("width", "half", "whole"), [(24, 4, 8), (60, 13, 28), (120, 20, 30)])
def test_bars_have_the_room_that_the_screen_has(width: int, half: int, whole: int):
    lines = small_lines(Terminal(width))
    bars = [line.count("█") for line in lines]
    assert bars[lines.index("What comes next") + 2] == half, "the likeliest has a probability of 0.5"
    assert max(bars[lines.index("Which token mattered for the guess") :]) == whole


def test_an_encoding_without_the_signs_gets_others():
    assert Terminal(80, encoding="ascii").plain("·⏎⇥█→…é") == "_\\>#->...?"
    assert Terminal(80, encoding="latin-1").plain("·é") == "·é"


def test_all_tokens_on_the_screen_are_named():
    assert list(named(small_reading(), Sampling())) == [0, 1, 2, 3, 4, 4, 0, 0]  # the likeliest, the guess after each block, the guess


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
    content = content_of(text)
    assert f"noise: 2 blocks, 2 heads, {make().num_parameters():,} parameters" in text
    assert "".join(content["tokens"]) == "the</script>\n& “fox”"
    assert np.shape(content["attention"]) == (2, 2, 20, 20)
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href)=|https?://|@import", text)


def content_of(page: str) -> dict:
    return json.loads(re.search(r"const reading = (.*);\nconst T", page)[1])


def test_the_page_has_the_numbers_of_the_reading():
    reading = small_reading()
    page = page_of(reading, Sampling(0.5, 3), EFFECTS, lambda token: NAMES[token], "a & b")
    assert "a &amp; b" in page
    assert "@" not in re.sub(r"@(media|import)", "", page)
    shown = ["a", "·", "⏎", "elephan", "elephant"]
    ranked = np.argsort(-reading.logits, axis=-1, kind="stable")
    assert content_of(page) == {
        "tokens": list(reading.tokens),
        "shown": ["a", "·", "elephant", "⏎", "a", "elephan", "a", "·", "a", "a"],
        "surprise": [None, 1.386, 2.813, 2.04, 0.693, 14.509, 0.693, 1.386, 0.693, 2.813],
        "next": [[[shown[i], pytest.approx(row[i], abs=6e-5)] for i in order] for row, order in zip(reading.logits, ranked, strict=True)],
        "guesses": [[["elephant", 0.75], [shown[row.argmax()], pytest.approx(np.exp(row.max()), abs=6e-5)]] for row in reading.logits],
        "attention": reading.attention.tolist(),
        "roles": [[[["previous token", 1.0], ["same token", 0.2]], [["itself", 0.75], ["first token", 0.25]]]],
        "effects": EFFECTS.tolist(),
        "target": "a",
        "of": "",
        "sampling": {"temperature": 0.5, "top_k": 3, "top_p": 1.0},
    }
    content = content_of(page_of(reading, Sampling(top_p=0.75), EFFECTS, lambda token: NAMES[token], ""))
    assert content["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 0.75}


@pytest.mark.parametrize(("vocabulary", "of"), [(100, ""), (101, ", of the 100 likeliest")])
def test_the_page_keeps_the_hundred_likeliest_tokens(vocabulary: int, of: str):
    logits = -np.arange(vocabulary, dtype=float)[None]
    reading = Reading(("a",), np.array([0]), logits, logits[None], np.ones((1, 1, 1, 1)))
    content = content_of(page_of(reading, Sampling(), np.zeros(1), lambda token: f"<{token}>", ""))
    assert [name for name, _ in content["next"][0]] == [f"<{token}>" for token in range(100)]
    assert content["of"] == of


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
