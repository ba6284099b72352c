"""The command line of training and finetuning: one option for each field of some dataclasses, and nothing more.

A setting is looked up in this order: the command line, a YAML file (``--config``), the preset, the dataclass.
"""

from __future__ import annotations

import re
import sys
import typing
from argparse import ArgumentError
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from gpt.cli.synonyms import meant
from gpt.config import GPTConfig, TrainConfig, from_preset
from gpt.errors import fail

if TYPE_CHECKING:  # imported when a command line is read: whoever brings a dataclass of their own can do without it
    from jsonargparse import ArgumentParser

# No settings of a run, but what to do with it: type, value when it stands alone, help.
ACTIONS: dict[str, tuple[type, Any, str]] = {
    "resume": (str, "", "go on with the run in this folder (or in the one that --out names) from its newest whole checkpoint"),
    "profile": (int, 5, "train nothing, but say where the time of this many steps goes, op by op (5 if no number is given)"),
}


@dataclass(frozen=True)
class Group:
    """The fields of a dataclass as options, under a title in ``--help``.

    Args:
        defaults: what ``--help`` says instead of the dataclass's own.
        without: fields that are no options here.
    """

    title: str
    config: type
    defaults: Mapping[str, Any] = field(default_factory=dict)
    without: Collection[str] = ()


TRAINING = (
    Group("training (the defaults shown are those of the preset tiny)", TrainConfig),
    Group("model (the defaults shown are those of the preset tiny)", GPTConfig, without={"vocab_size"}),  # it is in both
)


def parse_options(argv: Sequence[str] | None, prog: str, description: str) -> tuple[GPTConfig, TrainConfig]:
    """Both configs as the user wants them. ``--help`` prints and exits, as usual.

    Raises:
        UserError: for an unknown option, preset or name (with the nearest known one), or a value that cannot work.
    """
    return configs_of(parse_settings(argv, prog, description))


def parse_settings(
    argv: Sequence[str] | None, prog: str, description: str, actions: Sequence[str] = (), groups: Sequence[Group] = TRAINING
) -> dict[str, Any]:
    """What the user has said, by name, and nothing else.

    Args:
        actions: those of `ACTIONS` that the program knows.
        groups: where its options come from.

    Raises:
        UserError: for an unknown option, or a value of the wrong type.
    """
    parser = _parser(prog, description, actions, groups)
    argv = [_with_dashes(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    try:
        given = parser.parse_args(argv, defaults=False).as_dict()
    except ArgumentError as error:
        fail(_explain(error.message, parser))
    given.pop("config", None)
    return given


def configs_of(given: Mapping[str, Any]) -> tuple[GPTConfig, TrainConfig]:
    """Both configs, with the preset's values where the user has said nothing.

    Raises:
        UserError: for an unknown preset, or a value that cannot work.
    """
    given = {"preset": "tiny", **given}
    try:
        return from_preset(given.pop("preset"), **given)
    except ValueError as error:
        fail(str(error))


def _parser(prog: str, description: str, actions: Sequence[str], groups: Sequence[Group]) -> ArgumentParser:
    try:
        from jsonargparse import ActionConfigFile, ArgumentParser
    except ImportError:
        fail("reading options needs the package jsonargparse, which is not installed: pip install jsonargparse.")
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with any of these settings, one a line: n_layer: 6")
    for action in actions:
        kind, alone, text = ACTIONS[action]
        parser.add_argument(f"--{action}", type=kind, nargs="?", const=alone, help=text)
    for group in groups:
        add = parser.add_argument_group(group.title).add_argument
        types = typing.get_type_hints(group.config)
        for option in fields(group.config):
            if option.name in group.without:
                continue
            takes: dict[str, Any] = {"type": types[option.name]}
            if takes["type"] == str | None:
                takes = {"type": str}  # a name is what it says: as an optional text, null, ~ and #x would be YAML for nothing
            elif takes["type"] == Sequence[str] | None:
                takes = {"type": str, "nargs": "+"}  # several words, as in a shell, and no brackets
            default = group.defaults.get(option.name, option.default)
            add("--" + option.name.replace("_", "-"), **takes, default=default, help=option.metadata["help"])
    return parser


def _with_dashes(argument: str) -> str:
    """``--batch_size=8`` is ``--batch-size=8``: both spellings are common."""
    if not argument.startswith("--") or argument.startswith("--print_config"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _explain(message: str, parser: ArgumentParser) -> str:
    """The parser's complaint as one sentence, with the nearest option where one is unknown."""
    message = " ".join(message.split()).rstrip(".")
    message = re.sub(r"^Parser key \"(.+?)\": Expected an? <class '(\w+)'>. Got value: (.*)", r"\1 must be of type \2, got \3", message)
    known = [action.option_strings[-1] for action in parser._actions if action.option_strings]
    if found := re.match(r"unrecognized arguments: ([^\s=]+)", message):
        if not found[1].startswith("--"):
            return f"unexpected {found[1]!r}: options start with two dashes; see --help."
    elif found := re.match(r"Option '(\S+)' is not accepted", message):  # in a file, where names have no dashes
        known = [name.removeprefix("--").replace("-", "_") for name in known]
    else:
        return message + "."
    advice = meant(found[1], known)
    return f"unknown option {found[1]}: " + (f"did you mean {advice}?" if advice else "see --help.")
