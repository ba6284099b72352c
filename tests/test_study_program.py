"""`python -m study` on any terminal, and asked for what there is not: one sentence, no traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from study import notebook, progress, table
from study.__main__ import COMMANDS, main
from study.errors import StudyError
from study.lesson import lines
from study.page import LANGUAGES, Prose, find, load, names
from study.screen import Screen, inline, width_of, wrapped
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent


def program(*arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **variables}
    return subprocess.run([sys.executable, "-m", "study", *arguments], cwd=folder, env=environment, capture_output=True, timeout=PATIENCE)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lesson_is_ticked_after_it_was_run(here, capsys):
    assert main([]) == 0
    before = capsys.readouterr().out
    assert "✔" not in before
    assert main(["2"]) == 0
    assert "│ 22" not in before
    lesson = capsys.readouterr().out
    assert "│ words:      6 tokens, vocabulary 5" in lesson
    assert main([]) == 0
    ticked = [line for line in capsys.readouterr().out.splitlines() if line.startswith("✔")]
    assert len(ticked) == 1 and " 2 " in ticked[0]
    assert json.loads((here / "my_study" / "progress.json").read_text()) == {"lesson": ["2"]}


@pytest.mark.parametrize("arguments", [["lesson", "1"], ["1", "--language", "en"], ["--language=en", "1"], ["text"]])
def test_a_lesson_can_be_asked_for_in_several_ways(here, capsys, arguments):
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("1 A text, and what is in it\n")


def test_torch_is_the_same_page_with_another_import(here, capsys):
    main(["2"])
    ours = capsys.readouterr().out
    main(["2", "--engine", "torch"])
    theirs = capsys.readouterr().out
    assert theirs.replace("import torch\n", "import tensorlite as torch\n").replace("run on torch", "run on tensorlite") == ours


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["99"], "there is no lesson '99': the nearest is "),
        (["0"], "there is no lesson '0': the nearest is 1, 'A text, and what is in it'."),
        (["-3"], "there is no lesson '-3': the nearest is 1, 'A text, and what is in it'."),
        (["tokns"], "there is no lesson 'tokns': the nearest is 2, 'Tokens, tensors and batches'."),
        (["xyzzy"], "there is no lesson 'xyzzy': python -m study lists all."),
        ([""], "there is no lesson '': python -m study lists all."),
        (["lessn"], "Did you mean python -m study lesson?"),
        (["1", "2"], "unrecognized arguments: 2 (--help lists what there is)."),
        (["--colour"], "unrecognized arguments: --colour (--help lists what there is)."),
        (["1", "--engine", "jax"], "there is no engine 'jax': --engine is tensorlite or torch."),
        (["1", "--language", "de"], "there are no lessons in 'de': --language is en or zh-TW."),
        (["--language", "de"], "there are no lessons in 'de': --language is en or zh-TW."),
        (["all"], "there is no lesson 'all'"),
    ],
)
def test_an_unknown_name_gets_one_sentence(here, arguments, sentence):
    with pytest.raises(StudyError) as error:
        main(arguments)
    assert sentence in str(error.value)


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = program("77", folder=tmp_path)
    assert done.returncode == 2 and done.stdout == b""
    assert re.fullmatch(rb"error: there is no lesson '77': the nearest is .*\.\n", done.stderr)


@pytest.mark.parametrize("content", ["{", "[]", '{"lesson": 1}', "\ufeff\x00"])
def test_a_damaged_progress_file_is_reported(here, content):
    (here / "my_study").mkdir()
    (here / "my_study" / "progress.json").write_text(content, encoding="utf-8")
    with pytest.raises(StudyError, match=r"progress\.json"):
        main([])


def test_a_folder_without_write_permission_is_reported(here):
    (here / "my_study").write_text("a file in the way")
    assert progress.read() == {}
    with pytest.raises(StudyError, match="cannot be remembered"):
        progress.mark("lesson", "1")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("width", [24, 40, 80])
def test_prose_fits_the_terminal(width, language):
    """Code keeps its lines; all else is broken, and no line of Chinese begins with a full stop."""
    screen = Screen(width)
    for name in names():
        for part in load(name, language).parts:
            if not isinstance(part, Prose) or "```" in part.text or "\n|" in part.text:
                continue
            for line in screen.markdown(part.text):
                words = line.split()
                assert width_of(line) <= width or len(words) <= 2, line
                assert not line.strip().startswith(("，", "。", "、", "：", "）")), line


def test_wrapping_loses_no_text():
    text = "一個 token 的機率是 p，而「softmax」的總和是 1。 The sum is 1."
    for width in range(24, 90):
        assert "".join("".join(wrapped(text, width)).split()) == "".join(text.split())
    assert list(wrapped("a b", 80, "- ")) == ["- a b"]
    assert list(wrapped("一二三 (四五)六", 9)) == ["一二三", "(四五)六"]
    assert list(wrapped("一二(三)", 7)) == ["一二", "(三)"]
    assert list(wrapped("alpha beta", 8, "- ")) == ["- alpha", "  beta"]


def test_a_table_is_aligned_or_becomes_a_list():
    text = "| | range |\n|---|---|\n| relu | 0 and up, without an end |\n| 激活 | none |"
    assert list(Screen(30).markdown(text)) == ["      range", "relu  0 and up, without an end", "激活  none", ""]
    assert list(Screen(30).markdown(text.replace("an end", "any end")))[1:3] == ["relu  0 and up, without any", "      end"]
    wide = "| a rather long cell | b, c |\n|---|---|\n| d | a long one |"
    assert list(Screen(24).markdown(wide)) == ["a rather long cell · b,", "c", "- d · a long one", ""]


def test_markdown_is_removed():
    assert inline("see [page 7](07_x.md), **now**, *not* `a * b * c`") == "see page 7, now, not `a * b * c`"
    assert inline("[softmax.py](../../tensorlite/ops/softmax.py)") == "tensorlite/ops/softmax.py"


def test_colours_are_for_terminals(monkeypatch):
    page = load("01_text")
    coloured = "\n".join(lines(page, Screen(80, True), "tensorlite", "en"))
    assert "\033[1m" in coloured
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == "\n".join(lines(page, Screen(80), "tensorlite", "en"))

    class Terminal:
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    for variables, expected in [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]:
        for name in ("NO_COLOR", "TERM"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert Screen.of_stdout().colours is expected


def test_a_log_has_neither_colours_nor_control_characters(tmp_path):
    done = program("3", folder=tmp_path, FORCE_COLOR="1", COLUMNS="40")
    assert done.returncode == 0 and done.stderr == b""
    assert not re.search(rb"[\x00-\x09\x0b-\x1f]", done.stdout)


def test_an_encoding_without_our_symbols_gets_replacements(tmp_path):
    for name in ("1", "3"):
        done = program(name, folder=tmp_path, PYTHONIOENCODING="cp1252")
        assert done.returncode == 0, done.stderr
        page = lines(load(find(name)), Screen(80, False, "cp1252"), "tensorlite", "en")
        assert done.stdout.decode("cp1252").splitlines() == [line for text in page for line in text.split("\n")]
    assert b"x  3 0:32:13" in program(folder=tmp_path, PYTHONIOENCODING="cp1252").stdout
    refused = program("1", "--language", "zh-TW", folder=tmp_path, PYTHONIOENCODING="cp1252")
    assert (refused.returncode, refused.stdout) == (2, b"")
    assert refused.stderr == b"error: the encoding of this terminal, cp1252, has no Chinese: set PYTHONIOENCODING=utf-8.\n"


@pytest.mark.parametrize("name", names())
def test_every_symbol_of_the_lessons_has_a_replacement(name):
    screen = Screen(80, False, "ascii")
    page = load(name)
    for part in page.parts:
        for text in [part.text] if isinstance(part, Prose) else [part.source, *part.outputs.values()]:
            plain = screen.plain(text)
            plain.encode("ascii")
            assert plain.count("?") == text.count("?") + text.count("\ufffd")


def test_a_notebook_runs_and_holds_the_outputs(here, capsys):
    assert main(["3", "--notebook", "books"]) == 0
    assert capsys.readouterr().out == f"wrote {Path('books') / '03_tensors.ipynb'}\n"
    content = json.loads((here / "books" / "03_tensors.ipynb").read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    names = {}
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for cell in code:
        exec("".join(cell["source"]), names)
        assert capsys.readouterr().out == "".join("".join(output["text"]) for output in cell["outputs"])
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])


def test_a_notebook_that_cannot_be_written(here):
    (here / "books").write_text("a file in the way")
    with pytest.raises(StudyError, match="cannot be written"):
        notebook.write(load("01_text"), Path("books"))


def test_a_script_is_never_overwritten(here, capsys):
    assert main(["1", "--script"]) == 0
    path = here / "my_study" / "01_text.py"
    done = subprocess.run([sys.executable, path], capture_output=True, encoding="utf-8", timeout=PATIENCE)
    assert done.returncode == 0 and "221 characters" in done.stdout
    with pytest.raises(StudyError, match="with your changes perhaps"):
        main(["1", "--script"])


def test_all_notebooks_can_be_written_at_once(here, capsys):
    main(["all", "--notebook", "--language", "zh-TW"])
    assert len(list(here.glob("*.zh-TW.ipynb"))) == len(names())


def test_every_command_can_be_listed():
    for command in COMMANDS.values():
        assert list(command.listing(Screen(), "en", []))


def test_show_prints_a_table(capsys):
    table.show("a", [[1.0, -0.001], [float("-inf"), 22.5]])
    table.show("bool", [True, False])
    table.show("3-D", [[[1], [2]], [[3], [4]]])
    table.show("a long name of a tensor", 1.25, 3)
    table.show("none", [])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "a            1.00   0.00",
        "             -inf  22.50",
        "bool         True  False",
        "3-D         1",
        "            2",
        "",
        "            3",
        "            4",
        "a long name of a tensor   1.250",
        "none",
    ]
