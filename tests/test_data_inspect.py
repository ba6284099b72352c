"""`python -m data.inspect`: the figures it shows are those of the text."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.inspect import count_tokens, histogram, main, report
from data.prepare import Settings, prepare
from data.prepared import open_prepared
from data.token_file import TokenFile
from data.tokenizer import CharTokenizer

TEXT = "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.\n" * 100


def prepared_text(tmp_path: Path, **settings) -> Path:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    prepare(tmp_path / "text.txt", tmp_path / "out", Settings(workers=1, **settings))
    return tmp_path / "out"


def test_counts_are_those_of_the_text(tmp_path: Path) -> None:
    prepared = open_prepared(prepared_text(tmp_path))
    counts = count_tokens(prepared.train, prepared.vocab_size) + count_tokens(prepared.val, prepared.vocab_size)
    assert dict(zip(prepared.tokenizer.characters, counts.tolist(), strict=True)) == Counter(TEXT)


def test_the_histogram_begins_with_the_most_frequent() -> None:
    tokenizer = CharTokenizer("abc\n")
    lines = list(histogram(tokenizer, np.array([5, 20, 0, 10]), top=10))
    assert [line.split()[:2] for line in lines] == [["1", "'b'"], ["3", "'\\n'"], ["0", "'a'"]]  # c never comes
    assert [line.count("#") for line in lines] == [40, 20, 10]
    assert "57.14%" in lines[0]
    assert len(list(histogram(tokenizer, np.array([5, 20, 0, 10]), top=1))) == 1


def test_the_report_about_characters(tmp_path: Path, capsys) -> None:
    assert main([str(prepared_text(tmp_path))]) == 0
    out = capsys.readouterr().out
    size = len(TEXT.encode())
    assert f"CharTokenizer, {len(set(TEXT))} tokens, {len(set(TEXT))} of them in use" in out
    assert CharTokenizer.train(TEXT).hash in out
    assert f"{size / len(TEXT):.2f} bytes of text a token ({size:,} bytes)" in out
    assert "From the middle of train.bin:" in out
    assert out.count("Boxkämpfer jagen Viktor") >= 4  # whole sentences of both texts
    assert "unknown     none" in out


def test_twenty_tokens_are_shown_unless_the_user_gives_a_number(tmp_path: Path, capsys) -> None:
    folder = prepared_text(tmp_path)
    assert len(set(TEXT)) > 20
    for arguments, shown in ([], 20), (["--top", "5"], 5):
        assert main([str(folder), *arguments]) == 0
        lines = capsys.readouterr().out.split("The most frequent tokens:\n")[1].split("\n\n")[0].splitlines()
        assert len(lines) == shown


def test_the_report_about_bpe(tmp_path: Path, capsys) -> None:
    folder = prepared_text(tmp_path, tokenizer="bpe", vocab_size=300)
    assert main([str(folder), "--top", "3"]) == 0
    out = capsys.readouterr().out
    prepared = open_prepared(folder)
    tokens = np.concatenate([prepared.train[:], prepared.val[:]])
    written = int((tokens != prepared.tokenizer.end_of_text).sum())
    assert f"{len(TEXT.encode()) / written:.2f} bytes of text a token ({len(TEXT.encode()):,} bytes)" in out
    assert out.count("#\n") == 3
    assert "Boxkämpfer jagen Viktor" in out


def test_a_token_that_is_half_a_character_is_shown_in_bytes(tmp_path: Path) -> None:
    prepared = open_prepared(prepared_text(tmp_path, tokenizer="bpe", vocab_size=257))
    assert any(r"b'\xc3'" in line for line in report(prepared, top=300))


def test_the_share_of_unknown_characters(tmp_path: Path, capsys) -> None:
    CharTokenizer(sorted(set(TEXT) - set("ö") | {"\ufffd"})).save(tmp_path / "my.json")
    assert main([str(prepared_text(tmp_path, tokenizer=str(tmp_path / "my.json"), unknown="replace"))]) == 0
    unknown = TEXT.count("ö")
    assert f"{unknown / len(TEXT):.4%} of the tokens ({unknown:,}) stand for characters" in capsys.readouterr().out


@pytest.mark.parametrize("documents", [1, 20])
def test_the_share_of_characters_left_out(tmp_path: Path, capsys, documents: int) -> None:
    (tmp_path / "texts").mkdir()
    for number in range(documents):
        (tmp_path / "texts" / f"{number}.txt").write_text(TEXT[:-1], encoding="utf-8")
    CharTokenizer(sorted(set(TEXT) - set("ö")), "skip").save(tmp_path / "my.json")
    prepare(tmp_path / "texts", tmp_path / "out", Settings(workers=1, tokenizer=str(tmp_path / "my.json"), unknown="skip"))
    assert main([str(tmp_path / "out")]) == 0
    lost, written = TEXT.count("ö") * documents, (len(TEXT) - 1) * documents
    assert f"{lost / written:.4%} of the characters ({lost:,}) were left out" in capsys.readouterr().out


def test_nanogpts_folder_is_inspected(tmp_path: Path, capsys) -> None:
    for name in ("train.bin", "val.bin"):
        CharTokenizer.train(TEXT).encode(TEXT).tofile(tmp_path / name)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "These tokens have no tokenizer" in out
    assert "compression" not in out
    CharTokenizer.train(TEXT).save(tmp_path / "elsewhere.json")
    assert main([str(tmp_path), "--tokenizer", str(tmp_path / "elsewhere.json")]) == 0
    assert "Boxkämpfer jagen Viktor" in capsys.readouterr().out


def test_counting_goes_piece_by_piece(tmp_path: Path) -> None:
    np.array([1, 2, 2, 3, 3, 3] * 400_000, np.uint16).tofile(tmp_path / "train.bin")  # more than one piece
    assert count_tokens(TokenFile(tmp_path / "train.bin"), 5).tolist() == [0, 400_000, 800_000, 1_200_000, 0]


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--tokenizer", "nowhere.json"]])
def test_a_wrong_argument_gets_one_sentence(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "data.inspect", *arguments], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
