"""`python -m gpt.train --data`: a prepared folder, nanoGPT's, a text file, a name; and what the checkpoint keeps of it."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from data import inspect
from data.prepare import Settings, prepare
from data.prepared import PreparedError, open_prepared
from data.tokenizer import BpeTokenizer, CharTokenizer, Gpt2Tokenizer, IdsTokenizer
from gpt.checkpoints.model_folder import load_model_folder
from gpt.errors import run_main
from gpt.generate import main as generate
from gpt.train import main

TEXT = "Dorothy lived in the midst of the great Kansas prairies, with Uncle Henry, who was a farmer, and Aunt Em.\n" * 60
TINY = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--warmup-steps=2", "--workers=1",
    "--steps=30", "--learning-rate=0.01", "--eval-interval=30", "--eval-iters=2", "--log-interval=10", "--sample-length=20",
]  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "oz.txt").write_text(TEXT)
    return tmp_path / "oz.txt"


def run(tmp_path: Path, *options: str) -> int:
    return run_main(lambda: main([*TINY, f"--out={tmp_path / 'run'}", *options]))


def losses(tmp_path: Path) -> list[float]:
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [record["val_loss"] for record in records if "val_loss" in record]


def test_a_folder_of_characters_trains_like_its_text(tmp_path: Path, text: Path) -> None:
    prepare(text, tmp_path / "folder", Settings(workers=1))
    assert run(tmp_path, f"--data={text}") == 0
    of_text = losses(tmp_path)
    (tmp_path / "run").rename(tmp_path / "of_text")
    assert run(tmp_path, f"--data={tmp_path / 'folder'}") == 0
    assert losses(tmp_path) == of_text  # to the last bit
    assert of_text[-1] < of_text[0]
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (tmp_path / "of_text" / "tokenizer.json").read_bytes()


def test_a_bpe_folder(tmp_path: Path, text: Path, capsys) -> None:
    prepare(text, tmp_path / "folder", Settings(tokenizer="bpe", vocab_size=300, workers=1))
    assert run(tmp_path, f"--data={tmp_path / 'folder'}") == 0
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    assert "first line  Dorothy lived" in capsys.readouterr().out
    model, tokenizer, _ = load_model_folder(tmp_path / "run")
    assert isinstance(tokenizer, BpeTokenizer)
    assert tokenizer == open_prepared(tmp_path / "folder").tokenizer
    assert model.config.vocab_size == tokenizer.vocab_size
    assert run_main(lambda: generate([f"--checkpoint={tmp_path / 'run'}", "--prompt=Dorothy", "--max-new-tokens=5", "--seed=0"])) == 0
    assert capsys.readouterr().out.startswith("Dorothy")


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    folder = tmp_path / "nano"
    folder.mkdir()
    tokens = CharTokenizer.train(TEXT).encode(TEXT).astype(np.uint16)
    tokens[:5000].tofile(folder / "train.bin")
    tokens[5000:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(set(TEXT)), "stoi": {}, "itos": {}}))
    return folder


def test_nanogpts_folder_trains_unchanged(tmp_path: Path, nano: Path, capsys) -> None:
    before = {path.name: path.read_bytes() for path in nano.iterdir()}
    assert run(tmp_path, f"--data={nano}") == 0
    assert {path.name: path.read_bytes() for path in nano.iterdir()} == before
    assert losses(tmp_path)[-1] < losses(tmp_path)[0]
    out = capsys.readouterr().out
    assert "meta.pkl is a pickle" in out
    assert "shown as numbers" in out
    sample = out.rstrip("\n").rpartition("\n")[2].split()
    assert len(sample) == 20
    assert all(0 <= int(word) < len(set(TEXT)) for word in sample)
    assert load_model_folder(tmp_path / "run")[1] == IdsTokenizer(len(set(TEXT)))
    assert run_main(lambda: generate([f"--checkpoint={tmp_path / 'run'}", "--prompt=3 5", "--max-new-tokens=4", "--seed=0"])) == 0
    assert len(capsys.readouterr().out.split()) == 6


def test_nanogpts_folder_trains_with_its_own_tokenizer(tmp_path: Path, nano: Path, capsys) -> None:
    CharTokenizer.train(TEXT).save(tmp_path / "char.json")
    assert run(tmp_path, f"--data={nano}", f"--tokenizer={tmp_path / 'char.json'}") == 0
    assert "first line  Dorothy lived" in capsys.readouterr().out
    assert load_model_folder(tmp_path / "run")[1] == CharTokenizer.train(TEXT)


def test_a_vocabulary_rounded_up(tmp_path: Path, nano: Path, text: Path) -> None:
    for data in (nano, text):
        assert run(tmp_path, f"--data={data}", "--vocab-size=64", "--steps=1") == 0
    assert load_model_folder(tmp_path / "run")[0].config.vocab_size == 64
    model, tokenizer, _ = load_model_folder(tmp_path / "run-2")
    assert model.config.vocab_size == 64
    assert tokenizer == CharTokenizer.train(TEXT)


def test_gpt2s_tokenizer_is_saved_in_the_checkpoint(tmp_path: Path, text: Path) -> None:
    ranks = BpeTokenizer.train([TEXT], 300).tokens[1:]
    Gpt2Tokenizer(ranks).save(tmp_path / "gpt2.json")
    assert run(tmp_path, f"--data={text}", f"--tokenizer={tmp_path / 'gpt2.json'}", "--steps=1") == 0
    (tmp_path / "gpt2.json").unlink()
    assert load_model_folder(tmp_path / "run")[1] == Gpt2Tokenizer(ranks)


def test_the_bigram_counts_a_folder_as_it_counts_a_text(tmp_path: Path, text: Path, capsys, monkeypatch) -> None:
    prepare(text, tmp_path / "folder", Settings(workers=1))
    said = []
    for data in (text, tmp_path / "folder"):
        assert run(tmp_path, f"--data={data}", "--preset=bigram", "--steps=1") == 0
        said += [line for line in capsys.readouterr().out.splitlines() if line.startswith("Counting pairs")]
        monkeypatch.setattr("gpt.training.evaluation.CHUNK", 100)  # the folder is counted in many pieces
    assert len(said) == 2
    assert said[0] == said[1]


def test_a_folder_with_another_tokenizer_than_the_checkpoints_is_refused(tmp_path: Path, text: Path) -> None:
    assert run(tmp_path, f"--data={text}", "--steps=1") == 0
    (tmp_path / "other.txt").write_text(TEXT + "!")
    prepare(tmp_path / "other.txt", tmp_path / "other", Settings(workers=1))
    _, tokenizer, _ = load_model_folder(tmp_path / "run")
    with pytest.raises(PreparedError) as caught:
        open_prepared(tmp_path / "other", tokenizer)
    assert tokenizer.hash in str(caught.value)
    assert CharTokenizer.train(TEXT + "!").hash in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--tokenizer=bpe"], "holds tokens already"),
        (["--tokenizer=/nowhere.json"], "cannot be read"),
        (["--vocab-size=3"], "vocab_size 3 is too small"),
        (["--vocab-size=0"], "vocab_size must be at least 1, got 0."),
        (["--block-size=5000"], "the validation text is too short"),
    ],
)
def test_a_wrong_option_gets_one_sentence_and_makes_no_folder(
    tmp_path: Path, text: Path, capsys, options: list[str], sentence: str
) -> None:
    prepare(text, tmp_path / "folder", Settings(workers=1))
    capsys.readouterr()
    assert run(tmp_path, f"--data={tmp_path / 'folder'}", *options) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "run").exists()


def test_a_run_folder_is_refused_as_data(tmp_path: Path, capsys) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model.safetensors").touch()
    assert run_main(lambda: inspect.main([str(tmp_path / "tiny")])) == 2
    said = capsys.readouterr().err
    assert "tiny is a run, not a prepared folder" in said
    assert f"python -m gpt.generate --checkpoint {tmp_path / 'tiny'}" in said


def test_a_folder_that_is_not_prepared(tmp_path: Path, text: Path, capsys) -> None:
    assert run(tmp_path, f"--data={tmp_path}") == 2
    assert "is not a prepared folder: it has no train.bin; prepare it first: python -m data.prepare" in capsys.readouterr().err
