"""The command line of training and finetuning: one option for each field of some dataclasses, and a few that are no settings.

A setting is looked up in this order: the command line, a YAML file (``--config``), the preset, the dataclass.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import textwrap
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gpt.cli.synonyms import advice_for
from gpt.config import PRESET_SUMMARIES, GPTConfig, TrainConfig, from_preset
from gpt.errors import fail

if TYPE_CHECKING:  # imported when a command line is read: a program without one can do without it
    from jsonargparse import ArgumentParser

# Options that are no settings: what argparse needs to know of each.
ACTIONS: dict[str, dict[str, Any]] = {
    "config": {"metavar": "FILE", "help": "a YAML file with any of these settings, one a line, such as n_layer: 6"},
    "print_config": {"action": "store_true", "help": "print all settings as they would be used, as such a file, and exit"},
    "resume": {
        "type": str, "nargs": "?", "const": "", "metavar": "DIR",
        "help": "continue the run in DIR (or in the folder that --out names) from its newest complete checkpoint",
    },
    "profile": {
        "type": int, "nargs": "?", "const": 5, "metavar": "N",
        "help": "train nothing, but print where the time of N steps goes, op by op (default: 5)",
    },
}  # fmt: skip
PRINTS_NEW = "--print-config shows the settings of a new run; those of a run that exists are in its config.json."
SHORT = {
    "data": "-d", "preset": "-p", "steps": "-n", "batch_size": "-b", "learning_rate": "-l", "out": "-o", "checkpoint": "-c", "resume": "-r",
}  # fmt: skip
METAVARS = {
    "data": "TEXT", "old_data": "TEXT", "out": "DIR", "checkpoint": "DIR", "template": "FILE", "learning_rate": "RATE",
    "min_learning_rate": "RATE", "time_limit": "MINUTES", "memory_limit": "GIB", "train_only": "PATTERN", "lora_targets": "NAMES",
}  # fmt: skip
METAVAR_OF_TYPE = {int: "N", float: "X", bool: "BOOL", str: "NAME"}
IN_WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a word"}
TRAINING_TOPICS: Mapping[str, Sequence[str]] = {
    "optimizer": (
        "optimizer", "accumulation", "min_learning_rate", "warmup_steps", "schedule", "beta1", "beta2", "momentum", "weight_decay",
        "grad_clip", "seed",
    ),
    "when to stop": ("patience", "time_limit"),
    "evaluation, samples and checkpoints": (
        "eval_interval", "eval_iters", "log_interval", "sample_interval", "sample_length", "checkpoint_interval", "keep_last",
        "tensorboard",
    ),
    "machine": ("backend", "precision", "cuda_graph", "memory_limit", "workers", "team", "shards", "attention_recompute"),
    "several ranks of MPI": ("zero", "rank_limit"),
}  # fmt: skip


@dataclass(frozen=True)
class Program:
    """The options of a program.

    Args:
        name: as in ``python -m gpt.train``.
        description: what it does, in a sentence.
        configs: the dataclasses whose fields are options; a field that two of them have is one option.
        topics: titles in ``--help``, each with the options below it; a name is a field's or one of `ACTIONS`.
        without: fields that are no options of this program.
        defaults: what ``--help`` shows instead of a field's own default.
        epilog: what ``--help`` ends with.
    """

    name: str
    description: str
    configs: Sequence[type]
    topics: Mapping[str, Sequence[str]]
    without: Collection[str] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    epilog: str = ""

    @property
    def actions(self) -> list[str]:
        """Those of `ACTIONS` that it has."""
        return [name for names in self.topics.values() for name in names if name in ACTIONS]

    @property
    def types(self) -> dict[str, Any]:
        """The type of each field that is an option."""
        hints = [hint for config in self.configs for hint in typing.get_type_hints(config).items()]
        return {name: kind for name, kind in reversed(hints) if name not in self.without}  # of two fields the first one's

    def settings(self, *configs: Any) -> str:
        """The values of ``configs`` as a file for ``--config``, in the order of ``--help``."""
        values: dict[str, Any] = {}
        for config in reversed(configs):
            values |= vars(config)
        lines = []
        for title, names in self.topics.items():
            here = [f"{name}: {json.dumps(values[name], ensure_ascii=False)}" for name in names if name in values]  # JSON is YAML
            lines += [f"# {title}", *here] if here else []
        return "\n".join(lines)


def _describe_presets() -> str:
    lines = ["presets (the defaults above are those of tiny):"]
    for name, summary in PRESET_SUMMARIES.items():
        lines += textwrap.wrap(summary, 78, initial_indent=f"  {name:<8}", subsequent_indent=" " * 10)
    return "\n".join(lines)


TRAINING = Program(
    "gpt.train",
    "Train a GPT on a text, and read what it writes.",
    (TrainConfig, GPTConfig),
    {
        "most common": ("data", "preset", "steps", "batch_size", "learning_rate", "n_layer", "n_head", "n_embd", "block_size", "out"),
        "runs and settings": ("resume", "config", "print_config", "profile"),
        "text": ("tokenizer", "vocab_size", "val_fraction"),
        "model": (
            "model",
            "n_inner",
            "dropout",
            "bias",
            "layer_norm_epsilon",
            "activation",
            "positions",
            "tied_head",
            "head_bias",
            "scaled_init",
        ),
        "model llama": ("n_kv_head", "rope_theta", "qk_norm"),
        **TRAINING_TOPICS,
    },
    epilog=_describe_presets(),
)


def parse_settings(argv: Sequence[str] | None, program: Program = TRAINING) -> dict[str, Any]:
    """What the user has said, by name, and nothing else. ``--help`` prints and exits, as usual.

    Raises:
        UserError: for an unknown option (with the nearest known one), or a value of the wrong type.
    """
    parser = _parser(program)
    argv = [_with_dashes(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        given = parser.parse_args(argv, defaults=False).as_dict()
    except argparse.ArgumentError as error:
        fail(_explain(error.message, parser, program))
    given.pop("config", None)
    return given


def make_configs(given: Mapping[str, Any]) -> tuple[GPTConfig, TrainConfig]:
    """Both configs, with the preset's values where the user has said nothing.

    Raises:
        UserError: for an unknown preset or name, or a value that cannot work.
    """
    given = {"preset": "tiny", **given}
    try:
        return from_preset(given.pop("preset"), **given)
    except ValueError as error:
        fail(str(error))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)  # an option's name stays whole


def _parser(program: Program) -> ArgumentParser:
    try:
        from jsonargparse import ActionConfigFile, ArgumentParser
    except ImportError:
        fail("reading options needs the package jsonargparse, which is not installed: pip install jsonargparse.")
    parser = ArgumentParser(
        prog=f"python -m {program.name}",
        usage="%(prog)s [options]",
        description=program.description,
        epilog=program.epilog,
        formatter_class=_HelpFormatter,
        print_config=None,
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
    )
    options = {option.name: option for config in reversed(program.configs) for option in fields(config)}
    types = program.types
    for number, (title, names) in enumerate(program.topics.items()):
        group = parser.add_argument_group(title)
        for name in names:
            flags = [flag for flag in (SHORT.get(name), "--" + name.replace("_", "-")) if flag]
            if name in ACTIONS:
                takes = ACTIONS[name] | ({"action": ActionConfigFile} if name == "config" else {})
            else:
                default = program.defaults.get(name, options[name].default)
                takes = _takes(types[name]) | {"metavar": METAVARS.get(name, _metavar(types[name])), "default": default}
                text = options[name].metadata["help"].replace("%", "%%")
                if name in program.defaults:
                    text = re.sub(r" \(default: .*\)$", "", text)  # that of another program
                takes["help"] = text + _shown(default)
            group.add_argument(*flags, **takes)
        if number == 0:
            group.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


def _takes(kind: Any) -> dict[str, Any]:
    """How jsonargparse is to read a value of a field's type."""
    if kind == str | None:
        return {"type": str}  # a name is what it says: as an optional text, null, ~ and #x would be YAML for nothing
    if kind == Sequence[str] | None:
        return {"type": str, "nargs": "+"}  # several words, as in a shell, and no brackets
    return {"type": kind}


def _metavar(kind: Any) -> str:
    return METAVAR_OF_TYPE[_plain_type(kind)]


def _plain_type(kind: Any) -> type:
    """The type of a field without None and the like: of ``bool | str``, str; of ``float | None``, float."""
    kinds = [one for one in typing.get_args(kind) or (kind,) if one in METAVAR_OF_TYPE]
    return kinds[-1] if kinds else str


def _shown(default: Any) -> str:
    """The default as ``--help`` shows it."""
    if default is None or default is MISSING:
        return ""
    return f" (default: {str(default).lower() if isinstance(default, bool) else default})"


def _with_dashes(argument: str) -> str:
    """``--batch_size=8`` is ``--batch-size=8``: both spellings are common."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _explain(message: str, parser: ArgumentParser, program: Program) -> str:
    """The parser's complaint as one sentence, with the nearest option where one is unknown."""
    message = " ".join(message.split()).rstrip(".")
    known = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if found := re.match(r"unrecognized arguments: ([^\s=]+)(?:[=\s](\S+))?", message):
        name, value = found.groups()
        if not name.startswith("-"):
            return f"unexpected {name!r}: options start with two dashes; see --help."
        return f"unknown option {name}: {advice_for(name, known, value)}"
    if found := re.match(r"Option '(\S+)' is not accepted", message):  # in a file, where names have no dashes
        return f"unknown option {found[1]}: {advice_for(found[1], [name.removeprefix('--').replace('-', '_') for name in known])}"
    if found := re.match(r"Parser key \"config\": (?:File does not exist|Path is not a file): '(.*)'", message):
        return f"--config names a YAML file, and {found[1]} is none."
    if found := re.match(r"Problems parsing config: (.*)|Unexpected config: (.*)", message):
        return f"the file of --config is no YAML with a setting on each line, such as n_layer: 6 ({found[1] or found[2]})."
    if found := re.match(r"Parser key \"(\w+)\": .*(?:Got|Given) value: (.*)", message):
        wanted = IN_WORDS[_plain_type(program.types.get(found[1], ACTIONS.get(found[1], {}).get("type")))]
        return f"{found[1]} must be {wanted}, got {found[2]}."
    if found := re.match(r"argument (?:-\w/)?(\S+): expected (?:one|at least one) argument", message):
        return f"{found[1]} needs a value; see --help."
    return message + "."
