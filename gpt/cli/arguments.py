"""The options that `gpt.generate`, `gpt.chat` and `gpt.classify` share, and a parser that complains in one sentence."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from gpt.cli.synonyms import advice_for
from gpt.errors import fail
from gpt.generation.sampling import Sampling
from tensorlite.backend import Device

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class Parser(argparse.ArgumentParser):
    """Complains in one sentence, without the usage, and names the nearest option when one is unknown."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Stop with ``message``.

        Raises:
            UserError: always.
        """
        if found := re.match(r"unrecognized arguments: (-[^\s=]+)(?:[=\s](\S+))?", message):
            message = f"unknown option {found[1]}: {advice_for(found[1], self._option_string_actions, found[2])}"
        fail(message)


def add_model_options(
    parser: argparse.ArgumentParser, folder: str = "a folder that python -m gpt.train has written, or a GPT-2 of Hugging Face's"
) -> None:
    """Which model, and where it runs; ``folder`` says what the program takes."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help=folder)
    parser.add_argument("--backend", default="numpy", help="numpy (the CPU) or cupy (an NVIDIA GPU) (default: numpy)")


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """How the next token is chosen, and how many of them."""
    parser.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help=f"how much to write (default: {max_new_tokens})"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="below 1 safer, above 1 bolder, 0 greedy (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw only from the likeliest tokens that add up to probability P")
    parser.add_argument("--min-p", type=float, metavar="P", help="draw only from tokens at least P times as likely as the likeliest")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: avoid tokens that were there already (default: 1)"
    )
    parser.add_argument(
        "--context-keep",
        type=int,
        metavar="N",
        help="once the context is full, go on with the last N tokens and let it fill up again: much faster than the course's way, "
        "which drops one token at a time (default: that)",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; can be given several times")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")


def check(parser: argparse.ArgumentParser, options: argparse.Namespace, **least: int) -> dict[str, Any]:
    """Refuse what is out of its range; returns the settings of `gpt.generation.sampling.Sampling`.

    Raises:
        UserError: naming the option.
    """
    for name, smallest in {"max_new_tokens": 0, "seed": 0, "context_keep": 1, **least}.items():
        if getattr(options, name) is not None and getattr(options, name) < smallest:
            parser.error(f"--{name.replace('_', '-')} must be at least {smallest}, got {getattr(options, name)}.")
    sampling = {name: getattr(options, name) for name in SAMPLING}
    try:
        Sampling(**sampling)
    except ValueError as error:
        fail(str(error))
    check_backend(options)
    return sampling


def check_backend(options: argparse.Namespace) -> None:
    """Refuse a backend that does not exist.

    Raises:
        UserError: naming those that do.
    """
    try:
        Device(options.backend)
    except ValueError as error:
        fail(str(error))


def check_context_keep(options: argparse.Namespace, block_size: int) -> None:
    """Refuse to keep more than the model's context holds.

    Raises:
        UserError: naming the option.
    """
    if options.context_keep is not None and options.context_keep > block_size:
        fail(f"--context-keep must be at most {block_size:,}, the tokens that this model's context holds, got {options.context_keep:,}.")
