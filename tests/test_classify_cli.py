"""python -m gpt.classify: from a classifier that `gpt.finetune` has left to labels with probabilities."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt import chat, classify, generate
from gpt import finetune as finetune_program
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.finetuning.classifier import load_classifier
from gpt.model import build_model
from tests.patience import PATIENCE

ROOT = Path(__file__).parents[1]
TOKENIZER = CharTokenizer.train("abcdefgh ,.\n")
TEXTS = [("aab ab", "left"), ("ggh hg", "right"), ("abba", "left"), ("hg gh", "right")] * 6


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a finetuning has left."""
    folder = tmp_path_factory.mktemp("runs")
    tl.manual_seed(0)
    save_model(
        folder / "base", build_model(GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=16)), TOKENIZER
    )
    (folder / "texts.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in TEXTS))
    argv = [f"--checkpoint={folder / 'base'}", f"--data={folder / 'texts.csv'}", "--task=classify", f"--out={folder / 'run'}", "--steps=40"]
    argv += ["--learning-rate=0.03", "--eval-interval=20", "--eval-iters=1", "--batch-size=6", "--warmup-steps=0", "--workers=1"]
    assert run_main(lambda: finetune_program.main(argv)) == 0
    return folder / "run"


def out(capsys, *argv):
    assert run_main(lambda: classify.main([str(word) for word in argv])) == 0
    return capsys.readouterr()


def test_a_text_gets_every_label_with_its_probability(run, capsys):
    said = out(capsys, "--checkpoint", run, "gh g").out
    assert [line.split()[0] for line in said.splitlines()] == ["right", "left"]
    shown = [float(line.split()[1].rstrip("%")) for line in said.splitlines()]
    assert sum(shown) == pytest.approx(100, abs=0.11)
    classifier, tokenizer = load_classifier(run)
    with tl.no_grad():
        scores = classifier(tl.tensor(tokenizer.encode("gh g").astype(int)[None]))[0].numpy()[0, -1]
    expected = torch.softmax(torch.from_numpy(scores), dim=-1).numpy()
    np.testing.assert_allclose(sorted(shown), sorted(100 * expected), atol=0.051)


def test_several_texts_get_a_line_each(run, capsys):
    lines = [line.split("\t") for line in out(capsys, "--checkpoint", run, "ab", "gh\r\ngh").out.splitlines()]
    assert [(label, text) for label, _, text in lines] == [("left", "ab"), ("right", "gh gh")]
    assert all(50 <= float(chance.rstrip("%")) <= 100 for _, chance, _ in lines)


def test_a_file_is_read_like_a_corpus(run, tmp_path, capsys):
    (tmp_path / "lines.txt").write_bytes(b"\xef\xbb\xbfab ab\r\n\r\ngh\r\n")
    lines = [json.loads(line) for line in out(capsys, "--checkpoint", run, "--file", tmp_path / "lines.txt", "--json").out.splitlines()]
    assert [(line["text"], line["label"]) for line in lines] == [("ab ab", "left"), ("gh", "right")]
    assert all(list(line["probabilities"]) == ["left", "right"] for line in lines)
    assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=2e-6) for line in lines)


def test_a_file_with_labels_gets_the_accuracy(run, capsys):
    said = out(capsys, "--checkpoint", run / "best", "--file", run.parent / "texts.csv")
    assert len(said.out.splitlines()) == 24
    assert "accuracy 100.0% on the 24 labelled texts in" in said.err


def test_texts_come_through_a_pipe_or_by_the_mode_classify(run):
    command = [sys.executable, "-m", "gpt", "--mode", "classify", "--checkpoint", run]
    done = subprocess.run(command, cwd=ROOT, input="ab\ngh\n" * 40, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["left", "right"] * 40


def test_a_long_text_is_truncated_with_a_note(run, capsys):
    said = out(capsys, "--checkpoint", run, "ab ab ab ab", "ab")
    assert said.err == "note: 1 of 2 texts are longer than the model's context: it has read their first 8 tokens.\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--checkpoint", "RUN", "az"], "'z' (U+007A, line 1)"),
        (["--checkpoint", "RUN", ""], "a text to classify must not be empty"),
        (["--checkpoint", "RUN", "--file", "RUN", "a"], "give one of them"),
        (["--checkpoint", "RUN", "--file", "nowhere.txt"], "the texts cannot be read: nowhere.txt: no such file or directory."),
        (["--checkpoint", "RUN", "--file", "other.csv"], "line 3 of other.csv has the label 'up', which the model does not know"),
        (["--checkpoint", "RUN", "--file", "utf16.txt"], "is UTF-16 text, not UTF-8"),
        (["--checkpoint", "RUN", "--file", "a\0b"], "'a\\x00b'"),
        (["--checkpoint", "base", "a"], "its model is no classifier; python -m gpt.finetune --task classify trains one."),
        (["--checkpoint", "RUN", "--text", "a"], "unknown option --text"),
        (["--checkpoint", "RUN", "--backend", "tpu", "a"], "unknown device 'tpu'"),
    ],
)
def test_wrong_options_get_one_sentence(run, capsys, monkeypatch, argv, sentence):
    monkeypatch.chdir(run.parent)
    Path("other.csv").write_text("text,label\nab,left\nab,up\n")
    Path("utf16.txt").write_text("ab", encoding="utf-16")
    assert run_main(lambda: classify.main([str(run) if word == "RUN" else word for word in argv])) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


@pytest.mark.parametrize("program", [generate, chat])
@pytest.mark.parametrize("name", ["", "best", "model.safetensors"])
def test_a_classifier_does_not_generate_text(run, capsys, program, name):
    assert run_main(lambda: program.main(["--checkpoint", str(run / name)])) == 2
    assert f'is a classifier and generates no text: python -m gpt.classify --checkpoint {run / name} "TEXT".' in capsys.readouterr().err
    assert out(capsys, "--checkpoint", run / name, "ab").out.startswith("left ")
