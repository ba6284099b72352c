"""`python -m gpt.finetune` as a user meets it: what changes, what stays, what is reported, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.numpy

import tensorlite as tl
from data.errors import DataError
from data.prepare import Settings, prepare
from data.tokenizer import BpeTokenizer, CharTokenizer
from gpt.checkpoints.adapter import load_adapter
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.model_folder import load_model_folder, save_model
from gpt.checkpoints.weights import CheckpointError
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.finetune import main
from gpt.finetuning.tasks import read_tokens, text_loss, with_unknown_policy
from gpt.generation.decoder import supports
from gpt.model import build_model

OLD = "the quick brown fox jumps over the lazy dog.\n" * 40
NEW = "god yzal eht revo spmuj xof nworb kciuq eht.\n" * 40
TOKENIZER = CharTokenizer.train(OLD + "#:USERASSISTANTuserassistant\n ")
CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=32, n_layer=3, n_head=2, n_embd=16, bias=True)
QUICK = ["--steps=6", "--batch-size=4", "--warmup-steps=1", "--eval-interval=5", "--eval-iters=1", "--log-interval=3", "--workers=1"]


@pytest.fixture
def base(tmp_path):
    """A checkpoint as training leaves it, whose text is still there."""
    (tmp_path / "old.txt").write_text(OLD)
    (tmp_path / "new.txt").write_text(NEW)
    tl.manual_seed(0)
    training = TrainConfig(data=str(tmp_path / "old.txt"), learning_rate=0.02)
    return save_model(tmp_path / "base", build_model(CONFIG), TOKENIZER, training)


def finetune(base, *options, data="new.txt", out="run"):
    folder = base.parent
    return run_main(lambda: main([f"--checkpoint={base}", f"--data={folder / data}", f"--out={folder / out}", *QUICK, *options]))


def weights(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def changed(base, run):
    """The names of the weights that finetuning has changed."""
    before, after = weights(base), weights(run)
    assert before.keys() == after.keys()
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_it_reports_the_losses_on_new_and_old_text(base, capsys):
    assert finetune(base, "--learning-rate=0.01") == 0
    out = capsys.readouterr().out
    model, tokenizer, _ = load_model_folder(base)
    again, _, _ = load_model_folder(base.parent / "run")
    for name, text in (("new", NEW), ("old", OLD)):
        held = tokenizer.encode(text)[int(len(text) * 0.9) :]
        before, after = (text_loss(model, held), text_loss(again, held))
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name}: "))
        assert line.split()[-4:-1] == [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"], line
    record = json.loads((base.parent / "run" / "config.json").read_text())
    assert record["losses"]["new"]["after"] < record["losses"]["new"]["before"]
    assert record["task"] == "text"


def test_the_learning_rate_is_a_tenth_of_pretrainings(base, capsys):
    assert finetune(base) == 0
    assert "learning rate 0.002," in capsys.readouterr().out
    # and a second finetuning does not take a tenth of a tenth, nor another text for the old one
    assert finetune(base.parent / "run", out="again") == 0
    out = capsys.readouterr().out
    assert "learning rate 0.002," in out
    assert "old.txt, a token" in out


def test_all_weights_are_trained_by_default(base):
    assert finetune(base) == 0
    assert changed(base, base.parent / "run") == set(weights(base))


def test_frozen_blocks_do_not_change_a_bit(base):
    assert finetune(base, "--freeze-blocks=2") == 0
    free = {name for name in weights(base) if name.startswith(("h.2.", "ln_f."))}
    assert changed(base, base.parent / "run") == free


def test_only_the_named_parameters_are_trained(base):
    assert finetune(base, "--train-only", "*.ln_?.weight", "h.1.mlp.*") == 0
    names = set(weights(base))
    free = {name for name in names if name.endswith(("ln_1.weight", "ln_2.weight")) or name.startswith("h.1.mlp.")}
    assert changed(base, base.parent / "run") == free


def test_lora_is_saved_both_separately_and_merged(base, capsys):
    assert finetune(base, "--lora-rank=2", "--lora-targets=c_attn,mlp.c_proj", "--learning-rate=0.05") == 0
    run = base.parent / "run"
    assert changed(base, run) == {f"h.{i}.{name}.weight" for i in range(3) for name in ("attn.c_attn", "mlp.c_proj")}
    unmerged, tokenizer, _ = load_model_folder(base)
    load_adapter(run, unmerged)
    ids = tl.tensor(tokenizer.encode(NEW)[None, :32].astype(np.int64))
    with tl.no_grad():
        ours, theirs = unmerged(ids)[0].numpy(), load_model_folder(run)[0](ids)[0].numpy()
    assert abs(ours - theirs).max() <= 2e-6 * abs(ours).max()
    assert "of which 864 (" in capsys.readouterr().out  # 3 · 2 · (16 + 48 + 64 + 16)


def test_an_adapter_alone_is_merged_when_it_is_opened(base, capsys):
    """A folder with the two small files is enough: the model they belong to is found, and what comes out is an ordinary one."""
    assert finetune(base, "--lora-rank=2", "--learning-rate=0.05") == 0
    run, alone = base.parent / "run", base.parent / "alone"
    alone.mkdir()
    for name in ("adapter.json", "adapter.safetensors"):
        shutil.copy(run / name, alone / name)
    opened, tokenizer, _ = load_model(alone)
    whole, _, _ = load_model_folder(run)
    assert tokenizer == TOKENIZER
    assert supports(opened), "it is not written with quickly"
    assert opened.state_dict().keys() == whole.state_dict().keys()
    for name, tensor in opened.state_dict().items():
        assert np.array_equal(tensor.numpy(), whole.state_dict()[name].numpy()), name
    assert any(not np.array_equal(opened.state_dict()[name].numpy(), array) for name, array in weights(base).items())
    assert finetune(alone, out="further") == 0  # and goes where a checkpoint goes
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=f"there is no checkpoint {base}"):
        load_model(alone)


def test_answers_are_learnt_and_the_template_is_saved(base, capsys):
    lines = [{"prompt": f"the {a}", "response": a[::-1]} for a in ("dog", "fox", "lazy", "brown")]
    (base.parent / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert finetune(base, data="answers.jsonl") == 0
    assert "3 conversations, and 1 to validate with" in capsys.readouterr().out
    assert json.loads((base.parent / "run" / "template.json").read_text())["user"] == "### User:\n"
    (base.parent / "marks.json").write_text(json.dumps({"user": "ASS ", "assistant": "USER ", "end": "\n"}))
    assert finetune(base, f"--template={base.parent / 'marks.json'}", data="answers.jsonl", out="other") == 0
    assert json.loads((base.parent / "other" / "template.json").read_text())["user"] == "ASS "
    assert "\n\nASS the " in capsys.readouterr().out


def test_a_missing_old_text_only_omits_the_loss_on_it(base, capsys):
    (base.parent / "old.txt").rename(base.parent / "moved.txt")
    assert finetune(base) == 0
    assert "How much was forgotten is not known: there is no file" in capsys.readouterr().out
    assert finetune(base, f"--old-data={base.parent / 'moved.txt'}", out="again") == 0
    assert "moved.txt, a token" in capsys.readouterr().out


def test_unknown_characters_are_named_or_skipped(base, capsys):
    (base.parent / "strange.txt").write_text(NEW + "é ß\n" + NEW)
    assert finetune(base, data="strange.txt") == 2
    err = capsys.readouterr().err
    assert "strange.txt: the tokenizer never saw these characters" in err
    assert "'é' (U+00E9) at position" in err
    assert "'ß' (U+00DF)" in err
    assert "--unknown skip" in err
    assert not (base.parent / "run").exists()
    assert finetune(base, "--unknown=skip", data="strange.txt") == 0
    assert load_model_folder(base.parent / "run")[1] == TOKENIZER


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze-blocks=4"], "the model has 3 blocks"),
        (["--train-only", "h.7.*"], "no parameter is called 'h.7.*'"),
        (["--lora-rank=0"], "the rank must be at least 1"),
        (["--lora-rank=2", "--lora-targets=c_atn"], "there is no linear layer 'c_atn'"),
        (["--lora-alpha=2"], "--lora-alpha and --lora-targets need --lora-rank"),
        (["--lora-rank=2", "--freeze-blocks=1"], "--freeze-blocks and --lora-rank exclude each other"),
        (["--learning-rate=0"], "learning_rate must be a finite number above 0"),
        (["--steps=0"], "steps must be at least 1"),
        (["--task=clasify"], "unknown task 'clasify': did you mean 'classify'?"),
        (["--pooling=men"], "unknown pooling 'men': did you mean 'mean'?"),
        (["--unknown=skp"], "unknown way with unknown characters 'skp': did you mean 'skip'?"),
        (["--dropout=1"], "dropout must be at least 0 and below 1, got 1.0"),
        (["--freez-blocks=1"], "did you mean --freeze-blocks?"),
        (["--task=classify"], "neither .jsonl nor .csv"),
        (["--backend=numy"], "numy"),
        (["--old-data=nowhere.txt"], "there is no file nowhere.txt"),
    ],
)
def test_a_wrong_option_gets_one_sentence(base, capsys, options, message):
    assert finetune(base, *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (base.parent / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.txt", "", "is empty"),
        ("data.txt", "the", "too short"),
        ("data.jsonl", "", "has no examples"),
        ("data.jsonl", '{"prompt": "the", "response": "dog"}\n', "at least two are needed"),
        ("data.jsonl", '{"prompt": "the", "response": "dog"}\n\n', "line 2 of"),
        ("data.jsonl", '{"prompt": "the"\n', "line 1 of"),
        ("data.csv", "text,label\nthe,a\ndog\n", "line 3 of"),
        ("missing.jsonl", None, "there is no file"),
    ],
)
def test_unusable_data_is_refused(base, capsys, name, content, message):
    if content is not None:
        (base.parent / name).write_text(content)
    assert finetune(base, data=name) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (base.parent / "run").exists()


def test_a_stop_saves_and_ends_the_run(base, monkeypatch, capsys):
    from gpt.training.stopping import Stopped

    def stop(self):
        raise Stopped

    monkeypatch.setattr("gpt.training.stopping.StopRequest.check", stop)
    assert finetune(base, "--lora-rank=2") == 130
    assert "Stopped after step" in capsys.readouterr().out
    assert (base.parent / "run" / "adapter.safetensors").exists()
    load_model_folder(base.parent / "run")


def test_the_loss_of_a_text_is_the_mean_over_windows_side_by_side():
    """Two windows of T predictions in a text of 2 T + 1 tokens: the second begins where the first ends."""
    model, T = build_model(CONFIG), CONFIG.block_size
    tokens = np.random.default_rng(0).integers(CONFIG.vocab_size, size=2 * T + 1)
    with tl.no_grad():
        losses = [model(*(tl.tensor(part[None]) for part in (w[:-1], w[1:])))[1].item() for w in (tokens[: T + 1], tokens[T:])]
    np.testing.assert_allclose(text_loss(model, tokens, windows=2), np.mean(losses), rtol=1e-5)


def test_a_prepared_folder_must_have_the_models_tokenizer(tmp_path):
    (tmp_path / "old.txt").write_text(OLD)
    prepare(tmp_path / "old.txt", tmp_path / "folder", Settings())
    own = CharTokenizer.train(OLD)
    train, val = read_tokens(tmp_path / "folder", own, 0.1)
    assert own.decode(train[:20]) == OLD[:20]
    assert len(val) > 0
    with pytest.raises(DataError, match="tokenizer"):
        read_tokens(tmp_path / "folder", TOKENIZER, 0.1)


def test_only_a_tokenizer_of_characters_takes_a_policy_for_unknown_ones():
    other = BpeTokenizer.train("abab", 257)
    assert with_unknown_policy(other, "skip") is other
    assert with_unknown_policy(TOKENIZER, "error") is TOKENIZER
    assert with_unknown_policy(TOKENIZER, "skip").encode("a\N{SNOWMAN}").tolist() == TOKENIZER.encode("a").tolist()


@pytest.mark.parametrize("options", [[], ["--checkpoint=x"], ["--data=x"]])
def test_without_a_model_or_data_both_are_asked_for(options, capsys):
    assert run_main(lambda: main(options)) == 2
    assert "finetuning needs a model and data to train it on: --checkpoint DIR --data FILE." in capsys.readouterr().err


def test_the_same_seed_gives_the_same_weights(base):
    for out in ("one", "two"):
        assert finetune(base, "--lora-rank=2", "--seed=5", out=out) == 0
    assert not changed(base.parent / "one", base.parent / "two")


def test_a_checkpoint_inside_a_run_knows_its_training_text(base, capsys):
    from gpt.train import main as train

    old = base.parent / "old.txt"
    small = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--steps=2", "--sample-length=0", "--warmup-steps=0"]
    argv = [*small, f"--data={old}", f"--out={base.parent / 'trained'}", "--eval-iters=1", "--batch-size=2", "--learning-rate=0.01"]
    assert run_main(lambda: train(argv)) == 0
    (checkpoint, *_) = sorted((base.parent / "trained" / "checkpoints").iterdir())
    (base.parent / "more.txt").write_text("the lazy dog " * 40)
    capsys.readouterr()
    assert finetune(checkpoint, f"--data={base.parent / 'more.txt'}", f"--out={base.parent / 'run'}") == 0
    out = capsys.readouterr().out
    assert "learning rate 0.001," in out
    assert "old.txt, a token" in out


def test_a_shorter_context_is_for_rotary_positions(base, capsys):
    assert finetune(base, "--context=4") == 2
    assert "--context is for models with rotary positions" in capsys.readouterr().err
    assert finetune(base, "--context=9999") == 2
    assert "--context must be at most" in capsys.readouterr().err
