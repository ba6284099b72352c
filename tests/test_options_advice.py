"""Unknown options: advice by what other programs of the field call them. Names of files are names, whatever YAML would make of them."""

from __future__ import annotations

import pytest

from gpt import classify, finetune, generate, plot, train
from gpt.cli.options import TRAINING, parse_settings
from gpt.cli.synonyms import SYNONYMS, advice_for
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import run_main
from gpt.finetuning.config import FINETUNING, FinetuneConfig


@pytest.mark.parametrize(
    ("program", "unknown", "advice"),
    [
        (train, ["--lr", "1e-3"], "--learning-rate"),
        (train, ["--lr=1e-3"], "--learning-rate"),
        (train, ["--device", "cuda"], "--backend cupy"),
        (train, ["--device=cpu"], "--backend numpy"),
        (train, ["--device", "here"], "--backend"),
        (train, ["--dtype=bf16"], "--precision bfloat16"),
        (train, ["--init_from", "resume"], "--resume"),
        (train, ["--n-layers", "3"], "--n-layer"),
        (train, ["--heads", "3"], "--n-head"),
        (train, ["--threads", "3"], "--workers"),
        (train, ["--temp", "1"], None),
        (train, ["--verbose"], None),
        (train, ["--wandb"], None),
        (train, ["--gpu"], "--backend cupy"),
        (train, ["--max_iters=5000"], "--steps"),
        (train, ["--epochs", "3"], "--steps"),
        (train, ["--bf16"], "--precision bfloat16"),
        (train, ["--out_dir=x"], "--out"),
        (train, ["--text", "a.txt"], "--data"),
        (train, ["--stepz", "3"], "--steps"),
        (train, ["--zzz"], None),
        (finetune, ["--rank", "8"], "--lora-rank"),
        (finetune, ["--base-model", "x"], "--checkpoint"),
        (generate, ["--device", "cuda"], "--backend cupy"),
        (generate, ["--text", "a"], "--prompt"),
        (generate, ["--max-tokens=5"], "--max-new-tokens"),
        (generate, ["--temp", "1"], "--temperature"),
        (classify, ["--input", "a"], "--file"),
        (plot, ["--output", "a.png"], "--out"),
    ],
)
def test_an_unknown_option_gets_the_right_advice(program, unknown, advice, capsys):
    needed = ["--checkpoint", "x"] if program in (generate, classify) else []
    assert run_main(lambda: program.main([*needed, *unknown])) == 2
    name = unknown[0].partition("=")[0].replace("_", "-")
    assert capsys.readouterr().err == f"error: unknown option {name}: " + (f"did you mean {advice}?\n" if advice else "see --help.\n")


def test_a_file_of_settings_gets_the_same_advice():
    assert advice_for("max_iters", ["n_layer", "steps", "n_head"]) == "did you mean steps?"
    assert advice_for("lr", ["learning_rate"]) == "did you mean learning_rate?"
    assert advice_for("qqq", ["learning_rate"]) == "see --help."


def test_no_synonym_is_an_option_of_the_same_program():
    """Otherwise its advice could never be given."""
    training = {*TrainConfig.__dataclass_fields__, *GPTConfig.__dataclass_fields__}
    known = {name.replace("_", "-") for name in training}
    for advice, elsewhere in SYNONYMS.items():
        if advice.split()[0] in known:
            assert not known & set(elsewhere.split()), advice


@pytest.mark.parametrize("name", ["null", "~", "#x", "true", "1", "[a]", "a: b", "a #b", "2020-01-01", "'q'"])
@pytest.mark.parametrize("option", ["out", "data", "tokenizer", "checkpoint", "template", "old_data"])
def test_an_option_with_a_name_is_parsed_unchanged(option, name):
    program = FINETUNING if option in FinetuneConfig.__dataclass_fields__ else TRAINING
    assert parse_settings([f"--{option.replace('_', '-')}", name], program) == {option: name}


@pytest.mark.parametrize(
    ("out", "sentence"),
    [("~", "the home folder is no run's: name one for the run, such as --out ~/runs/mine."), ("", "out must be the name of a folder")],
)
def test_a_run_folder_in_use_or_unusable_is_refused(tmp_path, capsys, out, sentence):
    (tmp_path / "fox.txt").write_text("the quick brown fox " * 50)
    assert run_main(lambda: train.main([f"--data={tmp_path / 'fox.txt'}", "--block-size=8", f"--out={out}"])) == 2
    assert sentence in capsys.readouterr().err


def test_a_file_of_settings_may_contain_null(tmp_path):
    (tmp_path / "a.yaml").write_text("out: null\nsteps: 3\n")
    assert parse_settings(["--config", str(tmp_path / "a.yaml")]) == {"out": None, "steps": 3}
