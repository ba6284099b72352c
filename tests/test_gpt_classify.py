"""The classification head: its inputs, its training, and the errors about its data."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import save_model
from gpt.checkpoints.weights import CheckpointError
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.finetune import main
from gpt.finetuning.classifier import Classifier, confusion_matrix, format_confusion, load_classifier, read_labelled_texts, row_classes
from gpt.finetuning.records import RecordError
from gpt.model import build_model
from gpt.training.rows import IGNORE, Row, pad_rows

TOKENIZER = CharTokenizer.train("abcdefgh ,\n")
CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=16)
TEXTS = [("aab", "left"), ("gghh", "right"), ("abba", "left"), ("hg", "right")]


def body():
    tl.manual_seed(0)
    return build_model(CONFIG)


def write(tmp_path, *lines, name="data.jsonl"):
    file = tmp_path / name
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def labelled(tmp_path, texts=TEXTS, block_size=24):
    return read_labelled_texts(write(tmp_path, *({"text": text, "label": label} for text, label in texts)), TOKENIZER, block_size)


def test_the_label_is_predicted_from_the_last_token(tmp_path):
    data = labelled(tmp_path)
    assert data.labels == ["left", "right"]
    assert row_classes(data.rows).tolist() == [0, 1, 0, 1]
    x, y = pad_rows(data.rows)
    assert x.shape == (4, 4)
    assert y.tolist() == [[-100, -100, 0, -100], [-100, -100, -100, 1], [-100, -100, -100, 0], [-100, 1, -100, -100]]


def test_csv_and_json_lines_are_the_same(tmp_path):
    table = write(tmp_path, "label,text", *(f'{label},"{text}"' for text, label in TEXTS), name="data.csv")
    for one, other in zip(read_labelled_texts(table, TOKENIZER, 24).rows, labelled(tmp_path).rows, strict=True):
        assert np.array_equal(one.x, other.x)
        assert np.array_equal(one.y, other.y)


def test_a_csv_text_may_have_commas_quotes_and_line_ends(tmp_path):
    table = write(tmp_path, "text,label", '"a,b\nc",x', "d,y", name="data.csv")
    rows = read_labelled_texts(table, TOKENIZER, 24).rows
    assert [TOKENIZER.decode(row.x) for row in rows] == ["a,b\nc", "d"]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_only_the_text_is_read_not_the_padding(pooling, tmp_path):
    """Alone or padded in a batch with others, whatever stands in the pads: the same scores."""
    classifier = Classifier(body(), ["left", "right"], pooling).eval()
    rows = labelled(tmp_path).rows
    x, _ = pad_rows(rows, pad=5)
    with tl.no_grad():
        together = classifier(tl.tensor(x))[0].numpy()
        for i, row in enumerate(rows):
            alone = classifier(tl.tensor(row.x[None]))[0].numpy()
            np.testing.assert_allclose(together[i, len(row) - 1], alone[0, -1], rtol=2e-5, atol=1e-6)


def test_the_two_poolings_are_what_they_say(tmp_path):
    rows = labelled(tmp_path).rows
    features = body().features(tl.tensor(rows[0].x[None])).detach().numpy()[0]  # (T, C)
    for pooling, expected in (("mean", features.mean(axis=0)), ("last", features[-1])):
        classifier = Classifier(body(), ["left", "right"], pooling).eval()
        weight, bias = classifier.score.weight.array, classifier.score.bias.array
        scores = classifier(tl.tensor(rows[0].x[None]))[0].detach().numpy()[0, -1]
        np.testing.assert_allclose(scores, weight @ expected + bias, rtol=1e-4, atol=1e-6)


def test_the_language_models_head_gets_no_gradient(tmp_path):
    model = build_model(GPTConfig(**{**CONFIG.__dict__, "tied_head": False}))
    classifier = Classifier(model, ["left", "right"])
    _, loss = classifier(*(tl.tensor(array) for array in pad_rows(labelled(tmp_path).rows)))
    loss.backward()
    assert model.lm_head.weight.grad is None
    assert classifier.score.weight.grad is not None
    assert model.wte.weight.grad is not None


def test_a_long_text_is_truncated_and_counted(tmp_path):
    data = labelled(tmp_path, [("abcdefgh", "x"), ("ab", "y")], block_size=4)
    assert TOKENIZER.decode(data.rows[0].x) == "abcd"
    assert data.cropped == 1


def test_predict_and_confusion():
    classifier = Classifier(body(), ["a", "b", "c"])
    rows = [Row(np.array([i % 8] * (1 + i % 3)), np.array([IGNORE] * (i % 3) + [i % 3])) for i in range(10)]
    assert np.array_equal(classifier.predict(rows, batch_size=3), classifier.predict(rows, batch_size=10))
    assert classifier.training, "in the mode that it was in"
    table = confusion_matrix(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0]), "abc")
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    text = format_confusion(table, ["a", "b", "c"])
    assert "accuracy 60.0% on 5 texts" in text
    assert "always the most frequent label: 40.0%" in text


def test_the_head_begins_with_small_weights_and_no_bias():
    score = Classifier(build_model(GPTConfig(vocab_size=5, block_size=8, n_layer=1, n_head=1, n_embd=512)), list("abcd")).score
    assert abs(score.weight.array.std() / 0.02 - 1) < 0.1  # of 2,048 numbers; the standard error is 1.6 %
    assert not score.bias.array.any()


def test_the_table_of_predictions_has_a_row_for_each_label():
    lines = format_confusion(np.array([[8, 2, 0], [1, 1_200, 3], [0, 0, 0]]), ["left", "right", "up"]).splitlines()
    assert lines[0] == "accuracy 99.5% on 1,214 texts held out for validation; always the most frequent label: 99.2%"
    assert [line.split() for line in lines[3:]] == [
        ["left", "8", "2", "0", "80%"],
        ["right", "1", "1,200", "3", "100%"],
        ["up", "0", "0", "0", "-"],
    ]


def test_probabilities_are_the_softmax_of_any_scores():
    classifier = Classifier(body(), ["a", "b", "c"])
    classifier.score.weight.array[...] = 0
    classifier.score.bias.array[...] = [1000, 1001, 999]  # exp of these is infinite
    odds = np.exp([-1.0, 0.0, -2.0])
    found = classifier.probabilities([Row(np.array([1, 2]), np.array([IGNORE, 0]))] * 3, batch_size=2)
    np.testing.assert_allclose(found, [odds / odds.sum()] * 3, rtol=1e-6)


def test_a_classifier_can_be_saved_and_loaded(tmp_path):
    classifier = Classifier(body(), ["left", "right"], "last").eval()
    save_model(tmp_path / "run", classifier.body, TOKENIZER)
    classifier.save(tmp_path / "run")
    again, tokenizer = load_classifier(tmp_path / "run")
    assert (again.labels, again.pooling, tokenizer) == (classifier.labels, "last", TOKENIZER)
    rows = labelled(tmp_path).rows
    x = tl.tensor(pad_rows(rows)[0])
    assert np.array_equal(again(x)[0].detach().numpy(), classifier(x)[0].detach().numpy())
    file = tmp_path / "run" / "classifier.safetensors"
    file.write_bytes(file.read_bytes().replace(b"left", b"lift"))
    with pytest.raises(CheckpointError, match="its checksum is not that of its contents"):
        load_classifier(tmp_path / "run")
    file.write_bytes(b"12345678{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(tmp_path / "run")
    file.unlink()
    with pytest.raises(CheckpointError, match="is no classifier"):
        load_classifier(tmp_path / "run")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "a"}, r"line 2 of .* has no label: .* but there is only 'text'"),
        ({"text": "a", "label": None}, "line 2 of .* has no label: .* got None"),
        ({"text": "a", "label": ""}, "line 2 of .* has no label: .* got ''"),
        ({"text": "", "label": "x"}, "line 2 of .*'text' must be a text that is not empty"),
        ({"label": "x"}, "line 2 of .* has no 'text'"),
        ({"text": "azq", "label": "x"}, r"'z' \(U\+007A, line 2\), 'q' \(U\+0071, line 2\)"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(tmp_path, line, message):
    with pytest.raises(RecordError, match=message):
        read_labelled_texts(write(tmp_path, {"text": "a", "label": "x"}, line, {"text": "b", "label": "y"}), TOKENIZER, 24)


def test_a_broken_table_is_reported_with_its_line(tmp_path):
    with pytest.raises(RecordError, match=r"line 3 of .* has 1 field, but the header names 2"):
        read_labelled_texts(write(tmp_path, "text,label", "a,x", "b", name="data.csv"), TOKENIZER, 24)
    with pytest.raises(RecordError, match="has no examples"):
        read_labelled_texts(write(tmp_path, "text,label", name="data.csv"), TOKENIZER, 24)
    with pytest.raises(RecordError, match=r"neither \.jsonl nor \.csv"):
        read_labelled_texts(write(tmp_path, "a", name="data.txt"), TOKENIZER, 24)


def test_a_single_label_is_refused(tmp_path):
    with pytest.raises(RecordError, match="the label 'x': there is nothing to classify"):
        labelled(tmp_path, [("a", "x"), ("b", "x")])


@pytest.mark.parametrize("how", [[], ["--lora-rank=2"], ["--train-only", "ln_f.*"]])
def test_it_learns_to_classify_texts(tmp_path, capsys, how):
    rng = np.random.default_rng(0)
    texts = [("".join(rng.choice(list(letters), 12)), label) for label, letters in (("low", "abcd"), ("high", "defg")) for _ in range(60)]
    data = write(tmp_path, *({"text": text, "label": label} for text, label in texts))
    save_model(tmp_path / "base", body(), TOKENIZER)
    options = ["--steps=40", "--learning-rate=0.01", "--warmup-steps=2", "--eval-iters=1", "--val-fraction=0.25", "--workers=1"]
    argv = [f"--checkpoint={tmp_path / 'base'}", f"--data={data}", f"--out={tmp_path / 'run'}", *options, *how]
    assert run_main(lambda: main(argv)) == 0
    out = capsys.readouterr().out
    accuracy = float(out.partition("accuracy ")[2].partition("%")[0])
    assert accuracy >= 90, out
    classifier, tokenizer = load_classifier(tmp_path / "run")
    held = [Row(tokenizer.encode(text).astype(np.int64), np.array([0])) for text in ("aabbccaabbcc", "ggffeeggffee")]
    assert [classifier.labels[i] for i in classifier.predict(held)] == ["low", "high"]
