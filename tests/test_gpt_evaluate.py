"""gpt.evaluate: the figures are transformers', whatever the batches; standard errors; the shapes of files; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt import evaluate
from gpt.checkpoints.adapter import save_adapter
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.errors import run_main
from gpt.evaluation.examples import Passage, Question, read_passages, read_questions
from gpt.evaluation.measures import Figure, _error_of_ratio, measure_choices, measure_cloze, measure_text
from gpt.evaluation.results import ResultsError, read_results
from gpt.evaluation.samples import sample_passages, sample_questions
from gpt.finetuning.lora import add_lora
from gpt.finetuning.records import RecordError
from gpt.model import GPT, build_model
from gpt.training.rows import IGNORE, Row
from gpt.training.scoring import score_rows
from tests.test_gpt_llama import their_model

TOKEN = CharTokenizer("abcdefghijklmnopqrstuvwxyz .\n")
T = 24  # the context of the models below
TEXT = "the cat sat on the mat. the rat ate the hat of the cat.\n" * 2
PASSAGES = [
    Passage(1, "the cat sat on the", " mat"),
    Passage(2, "a", " b"),
    Passage(3, "the rat ate the hat of the fat", " cat."),  # longer than the context
    Passage(4, "x y", " z"),
]
QUESTIONS = [
    Question(1, "the cat", [" sat on the mat.", " ate."], 0),
    Question(2, "", ["a", "bb", "ccc"], 1),
    Question(3, "the rat ate the hat of the fat cat and", [" sat", " ran."], 1),
    Question(4, "a", [" rat sat on the mat and ate the hat of the fat cat.", " b"], 0),  # longer than the context
]


def their_gpt2():
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=29, n_positions=T, n_embd=16, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=["gpt2", "llama"])
def both(request: pytest.FixtureRequest, tmp_path: Path):
    """A random model of transformers, and the same one of ours, both in float64."""
    theirs = their_gpt2() if request.param == "gpt2" else their_model()
    theirs.save_pretrained(tmp_path)
    return theirs, GPT.from_pretrained(tmp_path)


def their_scores(theirs, ids: list[int], first: int, context: int, stride: int) -> tuple[list[float], list[bool]]:
    """log p of each id from number ``first`` on, and whether it is the likeliest: window by window, one at a time."""
    log_probs, likeliest = [], []
    while first < len(ids):
        end = min(len(ids), max(first + stride, context + 1))
        begin = max(0, end - 1 - context)
        with torch.no_grad():
            table = theirs(torch.tensor([ids[begin : end - 1]])).logits[0].log_softmax(-1)
        for i in range(first, end):
            log_probs.append(table[i - 1 - begin, ids[i]].item())
            likeliest.append(table[i - 1 - begin].argmax().item() == ids[i])
        first = end
    return log_probs, likeliest


def their_continuation(theirs, context: str, after: str) -> tuple[float, bool]:
    start = [] if context else TOKEN.encode("\n").tolist()
    ids, first = start + TOKEN.encode(context + after).tolist(), len(start) + len(context)
    log_probs, likeliest = their_scores(theirs, ids, first, T, T if len(ids) - first <= T else T // 2)
    return sum(log_probs), all(likeliest)


def assert_value(figure: Figure, expected: float) -> None:
    assert abs(figure.value - expected) <= 1e-9 * abs(expected)


@pytest.mark.parametrize("context, stride", [(None, None), (24, 24), (9, 2)])
def test_a_text_has_transformers_perplexity(both, context: int | None, stride: int | None):
    theirs, ours = both
    found = measure_text(ours, TOKEN, TEXT, context=context, stride=stride)
    assert found.settings == {"context": context or T, "stride": stride or T // 2}
    ids = TOKEN.encode("\n" + TEXT).tolist()
    log_probs, _ = their_scores(theirs, ids, 1, **found.settings)
    assert found.count == len(log_probs) == len(TEXT)
    assert_value(found.figures["perplexity"], math.exp(-sum(log_probs) / len(TEXT)))
    assert_value(found.figures["bits a byte"], -sum(log_probs) / math.log(2) / len(TEXT))


def test_last_words_are_those_of_transformers(both):
    theirs, ours = both
    found = measure_cloze(ours, TOKEN, PASSAGES)
    expected = [their_continuation(theirs, one.before, one.word) for one in PASSAGES]
    assert found.figures["accuracy"].value == np.mean([right for _, right in expected])
    assert_value(found.figures["perplexity of the word"], math.exp(-np.mean([log_prob for log_prob, _ in expected])))
    assert found.cropped == 1


def test_the_likeliest_word_is_right(both):
    """A word that the model itself writes, letter by letter."""
    theirs, ours = both
    ids = TOKEN.encode("the ").astype(np.int64)[None]
    written = ours.generate(tl.tensor(ids), 3, temperature=0).numpy()[0]
    passages = [Passage(1, "the ", TOKEN.decode(written[4:])), Passage(2, "the ", TOKEN.decode([*written[4:6], (written[6] + 1) % 29]))]
    assert [their_continuation(theirs, one.before, one.word)[1] for one in passages] == [True, False]
    assert measure_cloze(ours, TOKEN, passages).figures["accuracy"] == Figure(0.5, 0.5)


def test_choices_are_those_of_transformers(both):
    theirs, ours = both
    found = measure_choices(ours, TOKEN, QUESTIONS)
    sums = [np.array([their_continuation(theirs, one.context, choice)[0] for choice in one.choices]) for one in QUESTIONS]
    lengths = [np.array([len(choice.strip()) for choice in one.choices]) for one in QUESTIONS]
    assert found.figures["accuracy"].value == np.mean([s.argmax() == q.answer for s, q in zip(sums, QUESTIONS, strict=True)])
    by_length = [(s / n).argmax() == q.answer for s, n, q in zip(sums, lengths, QUESTIONS, strict=True)]
    assert found.figures["accuracy by length"].value == np.mean(by_length)


def test_batches_change_nothing_but_rounding(both):
    _, ours = both
    rng = np.random.default_rng(0)
    rows = [Row(ids[:-1], np.where(rng.random(len(ids) - 1) < 0.4, IGNORE, ids[1:])) for ids in
            (rng.integers(29, size=n) for n in (2, 24, 5, 9, 24, 3, 17))]  # fmt: skip
    ours.train()
    alone, together = score_rows(ours, rows, batch_tokens=1), score_rows(ours, rows)
    assert ours.training
    for row, one, other in zip(rows, alone, together, strict=True):
        assert len(one.log_probs) == row.num_targets
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-10)
        np.testing.assert_array_equal(one.is_likeliest, other.is_likeliest)


# --- figures that are known -----------------------------------------------------------------------------


def uniform() -> GPT:
    """Gives every character the same chance."""
    tl.manual_seed(0)
    model = build_model(GPTConfig(vocab_size=29, block_size=8, n_layer=1, n_head=1, n_embd=8)).eval()
    assert isinstance(model, GPT)
    model.ln_f.weight.array[...] = 0
    return model


def test_of_equal_chances_the_perplexity_is_their_number():
    figures = measure_text(uniform(), TOKEN, TEXT).figures
    np.testing.assert_allclose([figures["perplexity"].value, figures["bits a byte"].value], [29, math.log2(29)], rtol=1e-6)
    np.testing.assert_allclose([figures["perplexity"].error, figures["bits a byte"].error], 0, atol=1e-5)


def test_a_sum_prefers_what_is_short_and_a_mean_does_not():
    long_right = [Question(1, "a", [" bc", " bcdefg"], 1), Question(2, "a", [" bcdefg", " bc"], 0)]
    figures = measure_choices(uniform(), TOKEN, long_right).figures
    assert figures["accuracy"].value == 0
    assert figures["accuracy by length"].value == 1  # log 29 · -3/2 against -7/6: the space is a token, and no part of the length


def test_standard_errors():
    figures = measure_choices(uniform(), TOKEN, [Question(i, "a", [" b", " bc"], int(i > 3)) for i in range(5)]).figures
    assert figures["accuracy"].value == 0.8
    assert figures["accuracy"].error == pytest.approx(math.sqrt(0.8 * 0.2 / 4))
    sums, counts = np.array([6.0, 2.0, 4.0]), np.array([3.0, 1.0, 1.0])  # ratio 12/5; residuals -1.2, -0.4, 1.6
    assert _error_of_ratio(sums, counts) == pytest.approx(math.sqrt((1.44 + 0.16 + 2.56) / 6) / (5 / 3))
    assert _error_of_ratio(sums[:1], counts[:1]) is None
    assert measure_choices(uniform(), TOKEN, QUESTIONS[:1]).figures["accuracy"].error is None


def test_a_bigram_model_is_measured():
    model = build_model(GPTConfig(model="bigram", vocab_size=29)).eval()
    table = model.wte.weight.array - np.log(np.exp(model.wte.weight.array).sum(axis=1, keepdims=True))
    ids = TOKEN.encode("\n" + TEXT)
    expected = -table[ids[:-1], ids[1:]].mean()
    assert measure_text(model, TOKEN, TEXT).figures["perplexity"].value == pytest.approx(math.exp(expected), rel=1e-5)


def test_the_samples_are_questions_with_one_right_answer():
    passages, questions = sample_passages(), sample_questions()
    assert len(passages) > 20 and len(questions) > 100
    assert all(one.word.strip() in one.before.split() for one in passages)
    assert all(len(set(one.choices)) == 4 for one in questions)
    assert {one.answer for one in questions} == {0, 1, 2, 3}
    assert questions == sample_questions()


# --- files ----------------------------------------------------------------------------------------------


def written(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_three_shapes_of_a_question(tmp_path: Path):
    texts = ["Water", "Air"]
    options = [{"text": text, "label": label} for text, label in zip(texts, "AB", strict=True)]
    file = written(
        tmp_path / "a.jsonl",
        {"context": "Ice is", "choices": texts, "answer": 0},
        {"ctx": "Ice is\n", "endings": texts, "label": "1", "ind": 3, "activity_label": "Ice"},
        {"question": "What is ice?", "choices": {"text": texts, "label": ["A", "B"]}, "answerKey": "A", "id": "x"},
        {"question": {"stem": "What is ice?", "choices": options}, "answerKey": "B"},
    )
    spaced = [" Water", " Air"]
    assert read_questions(file) == [
        Question(1, "Ice is", spaced, 0), Question(2, "Ice is\n", texts, 1),
        Question(3, "Question: What is ice?\nAnswer:", spaced, 0), Question(4, "Question: What is ice?\nAnswer:", spaced, 1),
    ]  # fmt: skip


def test_a_passage_is_cut_before_its_last_word(tmp_path: Path):
    file = written(tmp_path / "a.jsonl", {"text": "He put it\ninto his pocket "}, {"text": "a\n b", "domain": None})
    assert read_passages(file) == [Passage(1, "He put it\ninto his", " pocket"), Passage(2, "a", "\n b")]


GOOD = {"context": "a", "choices": ["b", "c"], "answer": 0}


@pytest.mark.parametrize(
    "record, message",
    [
        ([], "is no JSON object but list"),
        ({**GOOD, "choices": ["b"]}, "has one choice: at least two are needed"),
        ({**GOOD, "choices": []}, "has no choices: at least two are needed"),
        ({**GOOD, "choices": ["b", 3]}, "the choices must be a list of texts that are not empty"),
        ({**GOOD, "answer": ""}, "has no answer"),
        ({**GOOD, "answer": None}, "has no answer"),
        ({**GOOD, "answer": 2}, "the answer is exactly one of 0, 1, got 2"),
        ({**GOOD, "answer": True}, "the answer is exactly one of 0, 1, got True"),
        ({**GOOD, "answer": [0]}, "the answer is exactly one of 0, 1, got [0]"),
        ({"context": "a", "choices": ["b", "c"]}, "has no 'answer', only 'context', 'choices'"),
        ({**GOOD, "chioces": 1}, "has an unknown field 'chioces': did you mean 'choices'?"),
        ({**GOOD, "context": 1}, "'context' must be a text, got 1"),
        ({"ctx": "a", "endings": ["b", "c"], "label": "2"}, "the answer is exactly one of 0, 1, got 2"),
        ({"question": "a", "choices": ["b"], "answerKey": "A"}, "'choices' must have two lists"),
        ({"question": "a", "choices": {"text": ["b", "c"], "label": ["A"]}, "answerKey": "A"}, "has 2 choices, but 1 of their labels"),
        ({"question": "a", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": 2}, "one of '1', '2', got 2"),
        ({"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "A"]}, "answerKey": "A"}, "one of 'A', 'A', got 'A'"),
        ({"question": {"stem": "a", "choices": 3}, "answerKey": "A"}, "has no choices"),
        ({"question": {}, "answerKey": "A"}, "'question' must be a text that is not empty, got None"),
    ],
)
def test_questions_that_are_refused(record: object, message: str, tmp_path: Path):
    with pytest.raises(RecordError) as refusal:
        read_questions(written(tmp_path / "a.jsonl", GOOD, record))
    assert str(refusal.value).startswith(f"line 2 of {tmp_path / 'a.jsonl'}")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "one"}\n', "has a single word, 'one'"),
        ('{"txt": "a b"}\n', "has no 'text', only 'txt'"),
        ('{"text": "a b", "label": 3}\n', "has an unknown field 'label': a passage has 'text'"),
        ('{"text": ""}\n', "must be a text that is not empty"),
        ('{"text": "a b"\n', "is no JSON object"),
        ("", "has no examples"),
    ],
)
def test_passages_that_are_refused(content: str, message: str, tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(RecordError, match=message):
        read_passages(tmp_path / "a.jsonl")


def test_a_word_of_unknown_characters_is_refused():
    with pytest.raises(RecordError, match=r"'É' \(U\+00C9, line 7\)"):
        measure_cloze(uniform(), TOKEN, [Passage(7, "a", " É")])
    with pytest.raises(RecordError, match="line 7 of cloze: of 'É' the tokenizer leaves nothing"):
        measure_cloze(uniform(), CharTokenizer(TOKEN.characters, "skip"), [Passage(7, "a", "É")])


# --- the program ----------------------------------------------------------------------------------------


def run(*options: object) -> int:
    return run_main(lambda: evaluate.main([str(option) for option in options]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", uniform(), TOKEN)
    (tmp_path / "text.txt").write_text(TEXT)
    written(tmp_path / "c.jsonl", {"text": "a b"}, {"text": "c d"})
    written(tmp_path / "q.jsonl", GOOD, {**GOOD, "choices": ["bb", "b"], "answer": 1})
    return tmp_path


def test_several_models_in_one_table(folder: Path, capsys: pytest.CaptureFixture):
    model = uniform()
    add_lora(model, rank=1)
    save_adapter(folder / "adapter", model, finetuned_from=str(folder / "model"))
    tasks = ["--text", folder / "text.txt", "--cloze", folder / "c.jsonl", "--choice", folder / "q.jsonl"]
    assert run("-c", folder / "model", *tasks, "--out", folder / "new" / "r.json") == 0
    first = capsys.readouterr().out
    assert run("-c", folder / "model", *tasks, "--context", 8, "--compare", folder / "new" / "r.json", folder / "adapter") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == [str(folder / "model"), str(folder / "model"), str(folder / "adapter")]
    assert table[3].split() == ["perplexity", *(["29.000", "±", "0.000"] * 3)]
    assert len(first.splitlines()) == len(table)
    assert ["accuracy", *(["100.0%", "±", "0.0%"] * 3)] in [line.split() for line in table]
    results = read_results(folder / "new" / "r.json")
    assert results.parameters == model.num_parameters() - sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [one.count for one in results.measurements] == [len(TEXT), 2, 2]
    (folder / "text.txt").write_text(TEXT + "a")
    assert run("-c", folder / "model", "--text", folder / "text.txt", "--limit", 1, "--compare", folder / "new" / "r.json") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[3].split() == ["perplexity", "29.000", "±", "0.000", "-"], "of another text"


def test_figures_are_shown_although_their_file_cannot_be_written(folder: Path, capsys: pytest.CaptureFixture):
    assert run("-c", folder / "model", "--cloze", folder / "c.jsonl", "--out", folder / "c.jsonl" / "r.json") != 0
    printed = capsys.readouterr()
    assert "accuracy" in printed.out
    assert "the results cannot be written" in printed.err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--context", 9], "the context goes from 1 to 8 tokens, the model's own, got 9"),
        (["--stride", 9], "the stride goes from 1 to the context, 8 tokens, got 9"),
        (["--limit", 0], "--limit must be at least 1, got 0"),
        (["--choice", "q.csv"], "q.csv is no .jsonl file"),
        (["--compare", "none.json"], "none.json cannot be read: no such file or directory"),
        (["--sample", "pydoc-text", "--sample", "pydoc-text"], "pydoc-text is asked for twice"),
        (["--tasks", "a"], "unknown option --tasks"),
    ],
)
def test_a_wrong_option_gets_one_sentence(folder: Path, options: list, message: str, capsys: pytest.CaptureFixture):
    text = [] if "--choice" in options or "--sample" in options else ["--text", folder / "text.txt"]
    assert run("-c", folder / "model", *text, *options) == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 1, "parameters": 1e999, "measurements": [], "sources": {}}', "[" * 10**5])
def test_results_that_are_none(content: str, tmp_path: Path):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(ResultsError, match="is no file of results"):
        read_results(tmp_path / "r.json")


@pytest.mark.parametrize("damage", ["a setting", "a source", "a figure"])
def test_damaged_results_are_refused_or_leave_a_gap(damage: str, folder: Path, capsys: pytest.CaptureFixture):
    file, task = folder / "r.json", ["--text", folder / "text.txt"]
    assert run("-c", folder / "model", *task, "--out", file) == 0
    record = json.loads(file.read_text())
    measured = record["measurements"][0]
    if damage == "a setting":
        measured["settings"]["context"] = "eight"
    else:
        (record["sources"] if damage == "a source" else measured["figures"]).popitem()
    file.write_text(json.dumps(record))
    capsys.readouterr()
    code = run("-c", folder / "model", *task, "--compare", file)
    printed = capsys.readouterr()
    if damage == "a figure":
        assert code == 0
        assert any(line.endswith(" -") for line in printed.out.splitlines())
    else:
        assert code == 2
        assert "is no file of results" in printed.err.splitlines()[-1]
