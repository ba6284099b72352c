"""Expansion of a user's paths, also without a home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

import data.inspect
import data.prepare
import gpt.chat
import gpt.finetune
import gpt.generate
import gpt.plot
import gpt.train
from data.errors import DataError
from data.paths import cache_folder, expand_path
from data.sources.named import named_source
from gpt.errors import run_main


def test_a_tilde_becomes_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert expand_path("~/a/b") == tmp_path / "a" / "b"
    assert expand_path("a/~") == Path("a/~")
    assert cache_folder() == tmp_path / ".cache" / "tensorlite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "tensorlite"


@pytest.mark.parametrize("path", ["~", "~/runs/tiny", "~nobody-at-all/x"])
def test_a_missing_home_folder_is_an_error(path, no_home):
    with pytest.raises(DataError, match=f"^{path}: there is no home folder {path.partition('/')[0]} here; give the whole path\\.$"):
        expand_path(path)


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_an_impossible_file_name_is_an_error(name):
    with pytest.raises(DataError, match=r"^'\S+' is no name that a file can have\.$"):
        expand_path(name)


def test_downloads_without_a_home_ask_for_a_folder(tmp_path, monkeypatch, no_home):
    with pytest.raises(DataError, match="set the variable XDG_CACHE_HOME to a folder"):
        named_source("shakespeare")
    assert named_source("pydoc").name == "pydoc"


PROGRAMS = [
    (gpt.train.main, "--data ~/a.txt"),
    (gpt.train.main, "--data TEXT --out ~/run"),
    (gpt.train.main, "--data TEXT --tokenizer ~/tokenizer.json"),
    (gpt.train.main, "--resume ~/run"),
    (gpt.train.main, "--data shakespeare"),
    (gpt.generate.main, "--checkpoint ~/run"),
    (gpt.generate.main, "--checkpoint ~/run --prompt-file ~/prompt"),
    (gpt.chat.main, "--checkpoint ~/run"),
    (gpt.finetune.main, "--checkpoint ~/run --data TEXT"),
    (gpt.finetune.main, "--resume ~/run"),
    (gpt.plot.main, "~/run"),
    (gpt.plot.main, "--activations --out ~/a.png"),
    (data.prepare.main, "~/a.txt --out OUT"),
    (data.prepare.main, "TEXT --out ~/out"),
    (data.prepare.main, "TEXT --out OUT --tokenizer ~/tokenizer.json"),
    (data.prepare.main, "oz --out OUT"),
    (data.inspect.main, "~/out"),
]


@pytest.mark.parametrize("main, options", PROGRAMS)
def test_every_program_reports_a_missing_home_folder_in_one_sentence(tmp_path, monkeypatch, capsys, no_home, main, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox.\n" * 100, encoding="utf-8")
    argv = options.replace("TEXT", "text.txt").replace("OUT", "out").split()
    assert run_main(lambda: main(argv)) == 2
    error = capsys.readouterr().err
    assert "there is no home folder" in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize("main, options", [(main, options) for main, options in PROGRAMS if "~" in options])
def test_every_program_reports_a_name_that_is_too_long(tmp_path, monkeypatch, capsys, main, options):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox.\n" * 100, encoding="utf-8")
    argv = options.replace("TEXT", "text.txt").replace("OUT", "out").replace("~/", "x" * 5000).split()
    assert run_main(lambda: main(argv)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: 'xxx")
    assert error.endswith("'… is longer than the name of a file can be.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]
