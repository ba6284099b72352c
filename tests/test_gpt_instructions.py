"""Instruction data: only the answer is a target, not the prompt and not the padding."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch

import tensorlite as tl
from data.tokenizer import CharTokenizer
from gpt.config import GPTConfig, TrainConfig
from gpt.finetuning.instructions import ResponseLoss, read_instructions, tokens_per_row
from gpt.finetuning.records import RecordError
from gpt.finetuning.tasks import InstructTask, rows_loss
from gpt.generation.chat_template import ChatTemplate, TemplateError, load_template
from gpt.model import build_model
from gpt.training.rows import IGNORE, Row, RowBatches, pack_rows, pad_rows
from tensorlite.parallel import BatchShards, Workers
from tensorlite.random import make_generator

TOKENIZER = CharTokenizer.train("".join(map(chr, range(32, 127))) + "\n")
MODEL = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=96, n_layer=2, n_head=2, n_embd=16)


def write(tmp_path, *lines):
    file = tmp_path / "data.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def rows_of(tmp_path, *lines, block_size=96):
    return read_instructions(write(tmp_path, *lines), TOKENIZER, block_size)


def gradients(model, x, y):
    """Loss and gradients of one batch."""
    model.zero_grad()
    _, loss = model(tl.tensor(x), tl.tensor(y))
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy().copy() for name, parameter in model.named_parameters()}


def model():
    tl.manual_seed(0)
    return build_model(MODEL)


LINES = ({"prompt": "Say hi.", "response": "Hi!"}, {"prompt": "And what is two and two?", "response": "Four, as ever."})


def test_only_the_answer_of_a_conversation_is_a_target(tmp_path):
    (row,) = rows_of(tmp_path, LINES[0])
    assert TOKENIZER.decode(row.x) == "### User:\nSay hi.\n\n### Assistant:\nHi!\n\n### User:"
    assert TOKENIZER.decode(row.y[row.y != IGNORE]) == "Hi!\n\n### User:\n"
    first = int(np.argmax(row.y != IGNORE))
    assert TOKENIZER.decode(row.x[: first + 1]) == ChatTemplate().prompt([{"role": "user", "content": "Say hi."}])


def test_both_forms_are_the_same(tmp_path):
    messages = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi!"}]
    (row,), (other,) = rows_of(tmp_path, LINES[0]), rows_of(tmp_path, {"messages": messages})
    assert np.array_equal(row.x, other.x)
    assert np.array_equal(row.y, other.y)


def test_the_answers_of_all_turns_are_targets(tmp_path):
    roles = ("system", "user", "assistant", "user", "assistant")
    (row,) = rows_of(tmp_path, {"messages": [{"role": role, "content": f"{role[0]}{i}"} for i, role in enumerate(roles)]})
    assert TOKENIZER.decode(row.y[row.y != IGNORE]) == "a2\n\n### User:\na4\n\n### User:\n"
    assert TOKENIZER.decode(row.x).startswith("### System:\ns0\n\n### User:\nu1\n\n### Assistant:\na2")


def test_neither_the_prompts_targets_nor_the_pads_change_the_gradient(tmp_path):
    """The model reads one prompt and is given the targets of another: whatever they are, and whatever is in the pads, each bit stays."""
    rows = rows_of(tmp_path, *LINES)
    # pads that occur in neither text: zeros added to the gradient of a letter of theirs may change how its sum is grouped
    x, y = pad_rows(rows, pad=int(TOKENIZER.encode("~")[0]))
    assert len(rows[0]) < len(rows[1]), "the first row is padded"
    wrapped = ResponseLoss(model(), tokens_per_row(rows))
    loss, gradient = gradients(wrapped, x, y)

    others = rows_of(tmp_path, *({**line, "prompt": line["prompt"].swapcase()} for line in LINES))
    assert all((row.x != other.x).any() for row, other in zip(rows, others, strict=True))
    pads, _ = pad_rows(rows, pad=int(TOKENIZER.encode("^")[0]))
    assert (pads != x).any()
    for other_x, other_y in ((x, pad_rows(others)[1]), (pads, y)):
        again, same = gradients(wrapped, other_x, other_y)
        assert again == loss
        assert all(np.array_equal(gradient[name], same[name]) for name in gradient)

    # written out by hand, the loss is that of the response alone
    logits, _ = wrapped(tl.tensor(x))
    log_p = tl.nn.functional.log_softmax(logits, -1)
    wrapped.zero_grad()
    losses = [-(log_p[i, t, int(y[i, t])]) for i, t in zip(*np.nonzero(y != IGNORE), strict=True)]
    by_hand = tl.stack(losses).sum() / sum(row.num_targets for row in rows)
    by_hand.backward()
    assert by_hand.item() == pytest.approx(loss, rel=1e-5)
    for name, parameter in wrapped.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), gradient[name], rtol=2e-3, atol=2e-6)

    # and the check can fail: a target of the *response* does change it
    first = tuple(np.argwhere(y != IGNORE)[0])
    changed = y.copy()
    changed[first] = (changed[first] + 1) % TOKENIZER.vocab_size
    _, different = gradients(wrapped, x, changed)
    assert any(not np.array_equal(gradient[name], different[name]) for name in gradient)


def test_the_gradient_depends_on_the_prompt(tmp_path):
    """The prompt is an input although it is not a target."""
    wrapped = ResponseLoss(model(), 10.0)
    (one,), (two,) = rows_of(tmp_path, LINES[0]), rows_of(tmp_path, {"prompt": "Say ho.", "response": "Hi!"})
    assert np.array_equal(one.y, two.y)
    assert gradients(wrapped, *pad_rows([one]))[0] != gradients(wrapped, *pad_rows([two]))[0]


def test_shards_do_not_change_the_weight_of_a_token(tmp_path):
    """A mean over each share would give the one short answer half of all the weight."""
    rows = rows_of(tmp_path, *LINES)
    x, y = pad_rows(rows)
    found = []
    for count in (1, 2):
        wrapped = ResponseLoss(model(), tokens_per_row(rows))
        optimizer = tl.optim.SGD(wrapped.parameters(), lr=0.1)
        shards = BatchShards(wrapped, optimizer.flats, count, Workers(1))
        loss = shards.forward_backward((tl.tensor(x), tl.tensor(y)), lambda shard: make_generator(0, shard))
        found.append((loss.item(), [p.grad.numpy().copy() for p in wrapped.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-6)


def test_in_eval_mode_the_loss_is_the_mean_over_response_tokens(tmp_path):
    rows = rows_of(tmp_path, *LINES)
    wrapped = ResponseLoss(model(), 1.0).eval()
    with tl.no_grad():
        _, loss = wrapped(*(tl.tensor(array) for array in pad_rows(rows)))
    assert loss.item() == pytest.approx(rows_loss(wrapped, rows), rel=1e-6)


def test_a_long_conversation_is_cut_at_its_beginning(tmp_path):
    (whole,), (row,) = rows_of(tmp_path, LINES[0]), rows_of(tmp_path, LINES[0], block_size=20)
    assert np.array_equal(row.x, whole.x[-20:])
    assert np.array_equal(row.y, whole.y[-20:])


def test_batches_give_each_row_once_an_epoch():
    rows = [Row(np.full(length, length), np.full(length, 1)) for length in range(1, 8)]
    batches = RowBatches(rows, 3, seed=0)
    drawn = [int(row[0]) for _ in range(7) for row in batches.next_batch()[0]]
    assert [sorted(drawn[i : i + 7]) for i in (0, 7, 14)] == [list(range(1, 8))] * 3
    assert drawn[:7] != drawn[7:14]


# --- packing ------------------------------------------------------------------------------------------

SHORT = ({"prompt": "Say hi.", "response": "Hi!"}, {"prompt": "Ho?", "response": "Ho."})


def rows_of_lengths(*lengths):
    """Rows that can be told apart: row i holds 100 i, 100 i + 1, …, of which all but the first is asked for."""
    ids = [100 * i + np.arange(length + 1) for i, length in enumerate(lengths)]
    return [Row(some[:-1], np.where(np.arange(len(some) - 1) > 0, some[1:], IGNORE)) for some in ids]


@pytest.mark.parametrize(
    "lengths", [(1,), (10, 10), (3, 9, 1, 7, 4, 6, 10), (2,) * 23, tuple(np.random.default_rng(0).integers(1, 11, 200))], ids=str
)
def test_packed_rows_hold_every_example_whole_and_once(lengths):
    rows = rows_of_lengths(*lengths)
    tight = pack_rows(rows, 10)
    assert all(len(row) <= 10 for row in tight)
    assert sum(row.num_targets for row in tight) == sum(row.num_targets for row in rows)
    pieces = []  # an example begins where its first id, a multiple of 100, stands
    for row in tight:
        starts = [*np.flatnonzero(row.x % 100 == 0), len(row)]
        pieces += [(tuple(row.x[a:b]), tuple(row.y[a:b])) for a, b in itertools.pairwise(starts)]
    assert sorted(pieces) == sorted((tuple(row.x), tuple(row.y)) for row in rows)
    assert len(tight) <= 1.25 * math.ceil(sum(lengths) / 10) + 1


def test_no_target_of_a_packed_row_lies_in_another_example():
    (row,) = pack_rows(rows_of_lengths(4, 3, 2), 10)
    asked = row.y != IGNORE
    assert np.array_equal(row.y[asked] // 100, row.x[asked] // 100)


def test_a_packed_example_has_the_same_loss_and_weight_as_alone(tmp_path):
    """The first one in a row has no past: its losses are to the rounding those of a row of its own. And each token weighs the same."""
    rows = rows_of(tmp_path, *SHORT)
    (together,) = pack_rows(rows, 96)
    first = max(rows, key=len)
    assert np.array_equal(together.x[: len(first)], first.x)
    with tl.no_grad():
        one, other = (model()(tl.tensor(x[None]))[0].numpy()[0, : len(first)] for x in (first.x, together.x))
    np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)

    wrapped = ResponseLoss(model(), tokens_per_row([together]))
    x, y = pad_rows([together])
    loss, _ = gradients(wrapped, x, y)
    with tl.no_grad():
        log_p = tl.nn.functional.log_softmax(model()(tl.tensor(x))[0], -1).numpy()[0]
    asked = np.flatnonzero(together.y != IGNORE)
    assert loss == pytest.approx(-log_p[asked, together.y[asked]].mean(), rel=1e-5)


def test_the_gradient_of_a_packed_batch_comes_only_from_responses(tmp_path):
    """The gradient of a packed batch is that of its response tokens alone: written out by hand, one after the other."""
    (row,) = pack_rows(rows_of(tmp_path, *SHORT), 96)
    wrapped = ResponseLoss(model(), float(row.num_targets))
    _, gradient = gradients(wrapped, *pad_rows([row]))
    log_p = tl.nn.functional.log_softmax(wrapped(tl.tensor(row.x[None]))[0], -1)
    wrapped.zero_grad()
    tl.stack([-log_p[0, int(t), int(row.y[t])] for t in np.flatnonzero(row.y != IGNORE)]).mean().backward()
    for name, parameter in wrapped.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), gradient[name], rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", r"line 2 of .* is empty"),
        ('{"prompt": "a", "resp', r"line 2 of .* is no JSON object \(unterminated string"),
        ("[1, 2]", "line 2 of .* is no JSON object but list"),
        ('{"prompt": "a", "response": "\\uD83D"}', r"line 2 of .* has half a surrogate pair, U\+D83D, which is no character"),
        ({"prompt": "a"}, "line 2 of .* has no 'response', only 'prompt'"),
        ({"prompt": "a", "response": ""}, "line 2 of .*'response' must be a text that is not empty, got ''"),
        ({"prompt": 3, "response": "a"}, "line 2 of .*'prompt' must be a text that is not empty, got 3"),
        ({"messages": []}, "line 2 of .*'messages' must be a list that is not empty"),
        ({"messages": [{"role": "user", "content": "a"}]}, "line 2 of .* the last message is the user's"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "line 2 of .* got 'tool'"),
        ({"messages": [{"role": "user"}]}, "line 2 of .* must have a 'role' and a 'content'"),
        ({"prompt": "né", "response": "🙂"}, r"'é' \(U\+00E9, line 2\), '🙂' \(U\+1F642, line 2\)"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(tmp_path, line, message):
    with pytest.raises(RecordError, match=message):
        rows_of(tmp_path, LINES[0], line, LINES[1])


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(RecordError, match="has no examples"):
        rows_of(tmp_path)


def test_a_template_is_saved_with_the_model(tmp_path):
    assert load_template(tmp_path) is None
    template = ChatTemplate(user="Q: ", assistant="A: ", end="\n")
    template.save(tmp_path)
    assert load_template(tmp_path) == template
    assert template.prompt([{"role": "user", "content": "Who?"}]) == "Q: Who?\nA: "
    assert template.stop == ("Q:", "### System:", "A:")
    for broken in ('{"user": 3}', "[]", "{", '{"usr": "a"}', '{"user": ""}'):
        (tmp_path / "template.json").write_text(broken)
        with pytest.raises(TemplateError):
            load_template(tmp_path)


# --- the validation loss ------------------------------------------------------------------------------


def evaluations(tmp_path, **settings):
    """What a trainer measures before its first step, on answers of very different lengths; and the trainer."""
    lines = [{"prompt": "p" * (i % 5 + 1), "response": "ab" * (1 + 7 * (i % 4))} for i in range(40)]
    task = InstructTask(model(), TOKENIZER, str(write(tmp_path, *lines)), val_fraction=0.5, seed=3)
    for batch_size in (1, 3, 7, 64):
        trainer = task.trainer(task.model, TrainConfig(batch_size=batch_size, **settings), task.train, task.val)
        yield trainer.evaluate(), trainer


def test_the_validation_loss_does_not_depend_on_the_batch_size(tmp_path):
    """It is the mean over all answer tokens, as torch has it for all rows in one batch."""
    for evaluation, trainer in evaluations(tmp_path):
        x, y = pad_rows(trainer.tokens["validation text"])
        logits, _ = trainer.model.eval()(tl.tensor(x))
        expected = torch.nn.functional.cross_entropy(
            torch.from_numpy(logits.detach().numpy()).flatten(0, 1).double(), torch.from_numpy(y).flatten(), ignore_index=IGNORE
        )
        assert evaluation.val_loss == pytest.approx(expected.item(), rel=1e-5)


def test_a_partial_evaluation_uses_the_same_rows_for_any_batch_size(tmp_path):
    measured = [evaluation for evaluation, _ in evaluations(tmp_path, eval_iters=1)]
    for evaluation in measured[1:]:
        assert evaluation.train_loss == pytest.approx(measured[0].train_loss, rel=1e-5)
        assert evaluation.val_loss == pytest.approx(measured[0].val_loss, rel=1e-5)
