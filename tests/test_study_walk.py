"""python -m study walk: at the terminal, and as a page in a browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import save_model
from study import heatmap, walk
from study.errors import StudyError
from study.screen import Screen
from study.walk import Terminal, open_passage
from tensorlite.inspect import walk as start_walk
from tests.browser import needs_browser, opened
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def terminal(width: int = 80, **screen: object) -> Terminal:
    passage = open_passage(None, walk.PROMPT)
    passage.model.eval()
    return Terminal(start_walk(passage.loss, model=passage.model), Screen(width, **screen))


def said(terminal: Terminal, line: str) -> str:
    return "\n".join(terminal.answer(line))


# --- the terminal --------------------------------------------------------------------------------------


def test_a_step_shows_where_it_is_and_what_goes_in_and_out():
    walking = terminal()
    text = said(walking, "c h.1.mlp.c_proj")
    assert "linear in h.1.mlp.c_proj" in text
    assert "nn.fusion.feedforward(x,self.c_fc,self.activation,self.c_proj)" in re.sub(r"\s+", "", text).replace("returnself", "return self")
    assert re.search(r"formula +y = x · weightᵀ \+ bias", text)
    assert re.search(r"comes in +dy +float32 \(1, 54, 16\)", text)
    assert re.search(r"dweight → h\.1\.mlp\.c_proj\.weight +float32 \(16, 64\)", text)
    assert re.search(r"waiting +gelu \d+ · add \d+", text)


def test_next_back_and_rewind():
    walking = terminal()
    first, second = said(walking, ""), said(walking, "")
    assert first.startswith("step 1 ")
    assert second.startswith("step 2 ")
    assert said(walking, "b") == first
    assert "start" in said(walking, "b")
    assert said(walking, "n") == first
    said(walking, "r")
    assert said(walking, "") == first
    while "This is the end" not in (text := said(walking, "")) and "end of the walk" not in text:
        last = text
    assert "nothing: this was the last op" in last
    assert "15 of 15 parameters" in last


def test_why_prints_the_books_derivation_and_check_compares():
    walking = terminal()
    assert "press Enter first" in said(walking, "w")
    assert "press Enter first" in said(walking, "k")
    said(walking, "c layernorm")
    assert "- x̂ · mean(g · x̂)" in said(walking, "w")
    rows = [line.split() for line in said(walking, "k").splitlines()]
    ways = {(row[0], row[1]) for row in rows if len(row) == 6}
    assert ways == {(gradient, way) for gradient in ("dx", "dweight") for way in ("book", "differences", "torch")}
    assert all(row[-1] == "agrees" for row in rows if len(row) == 6)


def test_all_steps_agree_in_every_way():
    walking = terminal()
    for step in walking.steps:
        found = walk.checks(step)
        assert found
        assert all(walk.is_right(step, one) for one in found), (step.op, found)
        assert walk.has_twin(step) == (step.op != "getitem"), step.op


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("zz", "There is no command 'zz'"),
        ("c h.1.atn", "Did you mean h.1.attn?"),
        ("c", "is no op"),
        ("c norm > x", "compared with a number"),
    ],
)
def test_an_invalid_command_is_answered(line: str, answer: str):
    assert answer in " ".join(said(terminal(), line).split())


@pytest.mark.parametrize("width", [40, 80, 100])
def test_screens_fit(width: int):
    walking = terminal(width)
    for line in ["", "c attention", "c causal_self_attention", "k", "c embedding"]:
        assert all(len(shown) <= width for shown in walking.answer(line)), line


def test_without_colours_and_in_another_encoding(capsys: pytest.CaptureFixture[str]):
    walking = terminal(encoding="cp1252")
    walking.show(walking.answer(""))
    capsys.readouterr().out.encode("cp1252")
    coloured = terminal(colours=True)
    assert "\033[31m" in said(coloured, "")
    assert "\033" not in said(terminal(), "")


def test_the_program_at_a_pipe(tmp_path: Path):
    command = [sys.executable, "-m", "study", "walk", "--prompt", "ab"]
    environment = {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, input="\nb\n", text=True, capture_output=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert "step 1 cross_entropy" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a"], "at least two tokens"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--html", "no/such/folder/walk.html"], "cannot be written"),
        (["--htm", "x"], "unrecognized"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str):
    with pytest.raises(StudyError, match=message):
        walk.main(arguments)


def test_a_checkpoint_is_walked_through(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    passage = open_passage(None, "abc abc")
    save_model(tmp_path / "run", passage.model, CharTokenizer.train("abc " + walk.PROMPT))
    monkeypatch.setattr("builtins.input", lambda _: "q")
    assert walk.main(["--checkpoint", str(tmp_path / "run"), "--prompt", "abc"]) == 0
    assert "nats a token" in capsys.readouterr().out
    with pytest.raises(StudyError, match="never saw"):
        walk.main(["--checkpoint", str(tmp_path / "run"), "--prompt", "XYZ"])


# --- small pictures ------------------------------------------------------------------------------------


def test_a_part_is_shown_by_the_number_farthest_from_0():
    array = np.zeros((4, 6))
    array[1, 2], array[3, 5], array[0, 2] = -7, 2, 3
    assert heatmap.pooled(array, rows=2, columns=2).tolist() == [[-7, 0], [0, 2]]
    assert heatmap.pooled(np.float32(3)).tolist() == [[3]]
    assert heatmap.pooled(np.zeros((0, 5))).size == 0
    assert list(heatmap.heat_map(array, Screen(80), columns=2))[1] == "█ "
    array[2, 0] = np.nan
    assert any("!" in row for row in heatmap.heat_map(array, Screen(80)))


# --- the page ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def walk_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "walk.html"
    passage = open_passage(None, "</script><b>& “the” value")
    passage.model.eval()
    walk.write_page(start_walk(passage.loss, model=passage.model), passage, path)
    return path


def test_the_page_is_complete_and_loads_nothing(walk_html: Path):
    text = walk_html.read_text(encoding="utf-8")
    content = json.loads(re.search(r"const walk = (.*);\nconst steps", text)[1])
    assert len(content["steps"]) == 27
    assert all(one["right"] for step in content["steps"] for one in step["checks"])
    assert set(content["why"]) == {step["op"] for step in content["steps"]}
    assert text.count("</script>") == 1
    assert not re.search(r"(src|href)=|https?://|@import", text)


@needs_browser
def test_the_page_can_be_used_with_the_keyboard_alone(walk_html: Path):
    with opened(walk_html.as_uri(), viewport={"width": 1200, "height": 900}) as (page, errors):
        heading = page.locator("#step h2")
        assert heading.inner_text() == "The start"
        assert page.locator("#text").inner_text() == "</script><b>& “the” value"
        assert page.locator("#back").is_disabled()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert heading.inner_text() == "Step 2 of 27: reshape"
        page.keyboard.press("ArrowLeft")
        assert heading.inner_text() == "Step 1 of 27: cross_entropy"
        page.keyboard.press("End")
        assert heading.inner_text() == "Step 27 of 27: embedding in wte"
        assert "15 of 15 parameters" in page.locator("#step").inner_text()
        assert page.locator("#next").is_disabled()
        page.keyboard.press("Home")
        while page.evaluate("document.activeElement.id") != "place":
            page.keyboard.press("Tab")
        page.keyboard.type("h.1.attn")
        page.keyboard.press("Enter")
        assert heading.inner_text() == "Step 11 of 27: linear in h.1.attn.c_proj"
        page.locator("#place").fill("nonsense")
        page.keyboard.press("Enter")
        assert "is no op, module, parameter or condition" in page.locator("#message").inner_text()
        page.locator("#place").fill("norm > 1e9")
        page.keyboard.press("Enter")
        assert "this is the last one" in page.locator("#message").inner_text()
        assert errors == []


@needs_browser
def test_the_page_explains_and_checks_and_keeps_sections_unfolded(walk_html: Path):
    with opened(walk_html.as_uri(), viewport={"width": 1200, "height": 900}) as (page, errors):
        page.locator("#list button").nth(3).click()
        page.locator("summary", has_text="Why").click()
        page.locator("summary", has_text="Check").click()
        assert "mean(g · x̂)" in page.locator("details pre").inner_text()
        assert page.locator("td", has_text="agrees").count() >= 6
        page.keyboard.press("ArrowRight")
        assert page.locator("details[open]").count() == 2
        assert page.locator("canvas").count() == 3  # add: one gradient comes in, two go out
        assert errors == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(walk_html: Path, scheme: str):
    with opened(walk_html.as_uri(), viewport={"width": 360, "height": 700}, color_scheme=scheme) as (page, errors):
        for _ in range(27):
            page.keyboard.press("ArrowRight")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert colour == {"light": "rgb(251, 250, 247)", "dark": "rgb(22, 27, 32)"}[scheme]
        assert errors == []
