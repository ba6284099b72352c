"""The settings: the presets have the stated sizes, and impossible settings are refused with advice."""

from __future__ import annotations

import dataclasses
import re

import pytest

from gpt import finetune, train
from gpt.cli.options import TRAINING, _describe_presets, make_configs, parse_settings
from gpt.config import PRESET_SUMMARIES, PRESETS, GPTConfig, TrainConfig, from_preset
from gpt.errors import UserError
from gpt.finetuning.config import DEFAULTS, FINETUNING
from gpt.finetuning.run import resolve_settings
from gpt.model import build_model

SMALL = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8}


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"n_embd": 128, "n_head": 3}, "128 is not divisible by 3 (n_head 2 would do)"),
        ({"n_layer": 0}, "n_layer must be at least 1, got 0."),
        ({"n_head": -2}, "n_head must be at least 1, got -2."),
        ({"block_size": 0}, "block_size must be at least 1, got 0."),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0."),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0."),
        ({"dropout": float("nan")}, "dropout must be at least 0 and below 1, got nan."),
        ({"activation": "gleu"}, "unknown activation 'gleu': did you mean 'gelu'?"),
        ({"positions": "rotary"}, "unknown positions 'rotary': it is one of learned, sinusoidal."),
        ({"model": "bigrams"}, "unknown model 'bigrams': did you mean 'bigram'?"),
        ({"positions": "sinusoidal", "n_embd": 9, "n_head": 3}, "n_embd must be even, got 9."),
    ],
)
def test_an_impossible_model_is_refused(settings, sentence):
    with pytest.raises(ValueError) as caught:
        GPTConfig(**settings)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0."),
        ({"batch_size": -12}, "batch_size must be at least 1, got -12."),
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0."),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number above 0, got nan."),
        ({"learning_rate": 1e-5}, "min_learning_rate must not be above learning_rate"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin': did you mean 'cosine'?"),
        ({"beta2": 1.0}, "beta2 must be at least 0 and below 1, got 1.0."),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1."),
        ({"grad_clip": -1.0}, "grad_clip must be at least 0, got -1.0."),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1, got 0.0."),
        ({"seed": -1}, "seed must be at least 0, got -1."),
        ({"preset": "curse"}, "unknown preset 'curse': did you mean 'course'?"),
    ],
)
def test_an_impossible_training_is_refused(settings, sentence):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**settings)
    assert sentence in str(caught.value)


def test_every_field_has_a_help_text():
    for config in (GPTConfig, TrainConfig):
        assert all(len(field.metadata["help"]) > 10 for field in dataclasses.fields(config))


# --- presets ------------------------------------------------------------------------------------------


def test_tiny_is_nanogpts_small_model():
    config, _ = from_preset("tiny", vocab_size=65)
    assert build_model(config).num_parameters() == 65 * 128 + 64 * 128 + 4 * (12 * 128**2 + 2 * 128) + 128


@pytest.fixture
def undrawn(monkeypatch):
    """Models are made without drawing their weights: only the shapes matter."""
    for name in ("normal_", "uniform_"):
        monkeypatch.setattr(f"tensorlite.nn.init.{name}", lambda tensor, *args, **options: tensor)


@pytest.mark.usefixtures("undrawn")
def test_course_is_the_model_of_the_lecture():
    """The lecture's own count is 10,788,929: there only q, k and v have no bias, which makes 6 · 3 · 384 fewer."""
    config, training = from_preset("course", vocab_size=65)
    assert build_model(config).num_parameters() == 10_788_929 + 6 * 3 * 384
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size, config.dropout) == (6, 6, 384, 256, 0.2)
    assert (config.activation, config.positions, config.tied_head, config.head_bias) == ("relu", "learned", False, True)
    assert (training.batch_size, training.steps, training.learning_rate) == (64, 5000, 3e-4)
    assert (training.eval_interval, training.eval_iters) == (500, 200)
    assert (config.bias, config.scaled_init) == (True, False)
    assert (training.schedule, training.warmup_steps, training.beta2, training.weight_decay) == ("constant", 0, 0.999, 0.01)
    assert training.grad_clip == 0


@pytest.mark.usefixtures("undrawn")
def test_gpt2_has_as_many_parameters_as_gpt2():
    config, _ = from_preset("gpt2")
    assert build_model(config).num_parameters() == 124_439_808
    assert config.tied_head
    assert config.bias
    assert config.activation == "gelu_tanh"


def test_bigram_is_one_table():
    config, _ = from_preset("bigram", vocab_size=65)
    assert build_model(config).num_parameters() == 65**2


@pytest.mark.parametrize("name", PRESETS)
def test_changes_override_the_preset(name):
    config, training = from_preset(name, dropout=0.5, steps=7)
    assert (config.dropout, training.steps, training.preset) == (0.5, 7, name)


def test_an_unknown_setting_gets_the_nearest_name():
    with pytest.raises(ValueError, match=r"unknown setting 'n_layers': did you mean 'n_layer'\?"):
        from_preset("tiny", n_layers=3)


# --- the command line ---------------------------------------------------------------------------------


def parse(*argv):
    return make_configs(parse_settings(argv))


def test_no_options_mean_the_preset_tiny():
    assert parse() == from_preset("tiny")


def test_what_a_run_does_only_if_it_is_asked_to():
    config = TrainConfig()
    assert (config.patience, config.sample_interval, config.checkpoint_interval) == (0, 0, 0)
    assert (config.time_limit, config.memory_limit, config.tensorboard, config.attention_recompute) == (None, None, False, False)


def test_the_defaults_of_finetuning():
    assert DEFAULTS == {
        "steps": 300, "warmup_steps": 20, "schedule": "cosine", "eval_interval": 100, "sample_length": 200, "out": "runs/finetuned",
    }  # fmt: skip


def test_options_override_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("preset: course\nn_layer: 3\ndropout: 0.1\nlearning_rate: 1e-2\n")
    config, training = parse("--config", str(file), "--dropout", "0", "--batch_size=5")
    assert (config.n_embd, config.n_layer, config.dropout) == (384, 3, 0.0)
    assert (training.steps, training.learning_rate, training.batch_size) == (5000, 0.01, 5)


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (["--stepz", "3"], "unknown option --stepz: did you mean --steps?"),
        (["--learning_rat=3"], "unknown option --learning-rat: did you mean --learning-rate?"),
        (["--qqqq"], "unknown option --qqqq: see --help."),
        (["text.txt"], "unexpected 'text.txt': options start with two dashes; see --help."),
        (["--preset", "tinny"], "unknown preset 'tinny': did you mean 'tiny'?"),
        (["--batch-size", "0"], "batch_size must be at least 1, got 0."),
        (["--batch-size", "-1"], "batch_size must be at least 1, got -1."),
        (["--batch-size", "many"], "batch_size must be a whole number, got many."),
        (["--learning-rate", "nan"], "learning_rate must be a finite number, got nan."),
        (["--learning-rate", ".nan"], "learning_rate must be a finite number above 0, got nan."),
        (["--time-limit", "nan"], "time_limit must be a finite number, got nan."),
        (["--bias", "maybe"], "bias must be true or false, got maybe."),
        (["--profile", "x"], "profile must be a whole number, got x."),
        (["--learning-rate"], "--learning-rate needs a value; see --help."),
        (["-n"], "--steps needs a value; see --help."),
        (["--n-head", "5"], "128 is not divisible by 5"),
        (["--config", "/nowhere/my.yaml"], "--config names a YAML file, and /nowhere/my.yaml is none."),
        (["--vocab-size", "0"], "vocab_size must be at least 1, got 0."),
    ],
)
def test_an_invalid_command_line_gets_one_sentence(argv, sentence):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_setting_in_a_file_gets_the_nearest_name(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("n_layr: 3\n")
    with pytest.raises(UserError, match=r"unknown option n_layr: did you mean n_layer\?"):
        parse("--config", str(file))


def help_of(program, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_settings(["--help"], program)
    assert caught.value.code == 0
    return capsys.readouterr().out


PROGRAMS = [TRAINING, FINETUNING]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_help_shows_every_option_with_its_text(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(program, capsys)
    assert all(len(line) <= 80 for line in shown.splitlines())
    words = " ".join(shown.split())
    texts = {field.name: field.metadata["help"] for config in reversed(program.configs) for field in dataclasses.fields(config)}
    for name in texts.keys() - set(program.without):
        assert "--" + name.replace("_", "-") in words
        assert texts[name].partition(" (default")[0] in words


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_setting_is_one_option(program):
    listed = [name for names in program.topics.values() for name in names if name not in program.actions]
    assert sorted(listed) == sorted({*program.types})
    assert len(listed) == len(set(listed))


def test_help_begins_with_what_people_set_first(capsys):
    shown = help_of(TRAINING, capsys)
    assert re.findall(r"--([\w-]+)", shown.partition("--help")[0]) == [
        "data", "preset", "steps", "batch-size", "learning-rate", "n-layer", "n-head", "n-embd", "block-size", "out",
    ]  # fmt: skip


def test_short_options():
    long = [
        "--data",
        "a",
        "--preset",
        "course",
        "--steps",
        "5",
        "--batch-size",
        "2",
        "--learning-rate",
        "0.5",
        "--out",
        "b",
        "--resume",
        "c",
    ]
    short = ["-d", "a", "-p", "course", "-n5", "-b", "2", "-l", "0.5", "-o", "b", "-r", "c"]
    assert parse_settings(short) == parse_settings(long)
    assert parse_settings(["-c", "runs/tiny"], FINETUNING) == {"checkpoint": "runs/tiny"}


def test_the_descriptions_of_presets_stand_in_a_column():
    first, *lines = _describe_presets().splitlines()
    assert first == "presets (the defaults above are those of tiny):"
    for line in lines:
        assert re.match(r"(  \w+ +| {10})\S", line)
        assert len(re.match(r"  \w* +", line)[0]) == 10
        assert len(line) <= 78


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", PRESETS)
def test_help_describes_the_presets_as_they_are(name, capsys):
    shown = " ".join(help_of(TRAINING, capsys).rpartition("presets")[2].split())
    assert PRESET_SUMMARIES[name] in shown
    config, training = from_preset(name)
    assert f"{training.steps:,} steps" in PRESET_SUMMARIES[name]
    if config.model == "gpt":
        assert f"{config.n_layer} layers, {config.n_embd} wide, context {config.block_size:,}" in PRESET_SUMMARIES[name]
    text_vocabulary = config.vocab_size if name == "gpt2" else 103  # that of the default text
    count = build_model(dataclasses.replace(config, vocab_size=text_vocabulary)).num_parameters()
    number, unit = re.search(r"([\d.]+) (thousand|million) parameters", PRESET_SUMMARIES[name]).groups()
    assert float(number) == pytest.approx(count / {"thousand": 1e3, "million": 1e6}[unit], rel=0.05)


@pytest.mark.parametrize("preset", PRESETS)
def test_printed_settings_are_complete_and_can_be_read_again(preset, tmp_path, capsys):
    assert train.main(["--preset", preset, "--steps", "7", "--print-config"]) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    model, training = parse("--config", str(tmp_path / "printed.yaml"))
    wanted_model, wanted_training = parse("--preset", preset, "--steps", "7")
    assert training == wanted_training
    assert dataclasses.replace(model, vocab_size=1) == dataclasses.replace(wanted_model, vocab_size=1)  # a model's comes from the tokenizer
    assert {line.partition(":")[0] for line in printed.splitlines() if not line.startswith("#")} == {*TRAINING.types}


def test_finetuning_prints_its_settings_too(tmp_path, capsys):
    options = ["-c", str(tmp_path), "-d", "a.txt", "--lora-rank", "4", "--print-config"]
    assert finetune.main(options) == 0
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    again = resolve_settings(parse_settings(["--config", str(tmp_path / "printed.yaml")], FINETUNING))
    assert again == resolve_settings(parse_settings(options, FINETUNING))
    assert {line.partition(":")[0] for line in printed.splitlines() if not line.startswith("#")} == {*FINETUNING.types}


def test_print_config_is_refused_for_a_run_that_is_resumed(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        train.main(["--resume", str(tmp_path), "--print-config"])
