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
    """Reports a mistake in one sentence, without the usage, and names the nearest option when one is unknown."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Stop with ``message``.

        Raises:
            UserError: always.
        """
        if found := re.match(r"unrecognized arguments: (-[^\s=]+)(?:[=\s](\S+))?", message):
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            message = f"unknown option {found[1]}: {advice_for(found[1], known, found[2])}"
        elif found := re.match(r"unrecognized arguments: (\S+)", message):
            message = f"unexpected {found[1]!r}: options start with dashes, such as --checkpoint DIR; see --help."
        elif found := re.match(r"the following arguments are required: (?:-\w/)?(\S+)", message):
            message = f"{found[1]} is missing; see --help."
        fail(message)


def add_model_options(
    parser: argparse.ArgumentParser,
    folder: str = "a folder of gpt.train or gpt.finetune, a published one, a GGUF file, or smollm2",
) -> None:
    """Which model, and where it runs; ``folder`` says what the program takes."""
    parser.add_argument("-c", "--checkpoint", required=True, metavar="DIR", help=folder)
    parser.add_argument("--backend", default="numpy", help="numpy (the CPU) or cupy (an NVIDIA GPU) (default: numpy)")


def add_int8_option(parser: argparse.ArgumentParser) -> None:
    """For programs that only ask a model."""
    parser.add_argument("--int8", action="store_true", help="matrices in 8 bits: a quarter of the memory, but slower (Llama's family)")


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    """How the next token is chosen, and how many of them."""
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"length of the generated text, in tokens (default: {max_new_tokens})",
    )
    parser.add_argument(
        "-t", "--temperature", type=float, default=1.0, metavar="T",
        help="divides the logits: below 1 more predictable, above 1 more varied, 0 always the most likely token (default: 1)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="sample only from the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample only from the most likely tokens that add up to probability P")
    parser.add_argument("--min-p", type=float, metavar="P", help="sample only from tokens at least P times as likely as the likeliest")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R",
        help="above 1: make tokens that occurred before less likely (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--context-keep",
        type=int,
        metavar="N",
        help="when the context is full, keep its last N tokens and let it fill up again: several times as fast as the default, "
        "which drops one token at a time",
    )
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; may be given several times")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling: the same seed gives the same text")


def check_sampling(parser: argparse.ArgumentParser, options: argparse.Namespace, **least: int) -> dict[str, Any]:
    """Raise for a value out of its range; returns the settings of `gpt.generation.sampling.Sampling`.

    Raises:
        UserError: naming the option.
    """
    for name, smallest in {"max_new_tokens": 0, "seed": 0, "context_keep": 1, **least}.items():
        if getattr(options, name) is not None and getattr(options, name) < smallest:
            parser.error(f"--{name.replace('_', '-')} must be at least {smallest}, got {getattr(options, name)}.")
    if "" in getattr(options, "stop", []):
        parser.error("--stop must be a text that is not empty: every text begins with the empty one.")
    sampling = {name: getattr(options, name) for name in SAMPLING}
    try:
        Sampling(**sampling)
    except ValueError as error:
        fail(str(error))
    check_backend(options)
    return sampling


def check_backend(options: argparse.Namespace) -> None:
    """Raise for a backend that does not exist.

    Raises:
        UserError: naming those that do.
    """
    try:
        device = Device(options.backend)
    except ValueError as error:
        fail(str(error))
    if not options.backend.startswith(device.name):
        fail(f"{options.backend!r} is torch's name for a backend. Use {device.name!r}.")


def check_context_keep(options: argparse.Namespace, block_size: int) -> None:
    """Raise if more is to be kept than the model's context holds.

    Raises:
        UserError: naming the option.
    """
    if options.context_keep is not None and options.context_keep > block_size:
        fail(f"--context-keep must be at most {block_size:,}, the tokens that this model's context holds, got {options.context_keep:,}.")
