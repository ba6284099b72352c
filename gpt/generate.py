"""Write text with a trained model:  python -m gpt.generate --checkpoint runs/tiny --prompt "The import statement"

The text appears as it is written, the prompt first. Without a prompt the model starts a new line (or from its first token, if
it never saw a line end).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpt.pretrained import open_model
from gpt.config import nearest
from gpt.errors import fail, run_main
from gpt.inference import stream_text
from gpt.sampling import Sampling
from tensorlite import random
from tensorlite.backend import Device


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, write the samples to stdout.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend.
    """
    options = _parse(argv)
    model, tokenizer, _ = open_model(options.checkpoint, options.backend)
    for number in range(options.num_samples):
        pieces = stream_text(
            model,
            tokenizer,
            options.prompt,
            options.max_new_tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            # Each sample has a stream of its own: the third is the same whether or not the first two are asked for.
            generator=None if options.seed is None else random.make_generator(options.seed, number),
        )
        if number:
            print("-" * 80)
        print(options.prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, each of them possible in itself."""
    parser = _Parser(prog="python -m gpt.generate", description="Write text with a trained model.", allow_abbrev=False)
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="a folder that python -m gpt.train has written, runs/<name>")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with (default: a new line)")
    parser.add_argument("--max-new-tokens", type=int, default=500, metavar="N", help="how much to write (default: 500)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="below 1 safer, above 1 bolder, 0 greedy (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw only from the K likeliest tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="draw only from the likeliest tokens that add up to probability P")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="how many texts to write (default: 1)")
    parser.add_argument("--backend", default="numpy", help="numpy (the CPU) or cupy (an NVIDIA GPU) (default: numpy)")
    options = parser.parse_args(argv)
    for name, least in (("max_new_tokens", 0), ("num_samples", 1), ("seed", 0)):
        if getattr(options, name) is not None and getattr(options, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(options, name)}.")
    try:
        Sampling(options.temperature, options.top_k, options.top_p)
        Device(options.backend)
    except ValueError as error:
        fail(str(error))
    return options


class _Parser(argparse.ArgumentParser):
    """Complains in one sentence, without the usage, and names the nearest option when one is unknown."""

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()[0]
        if message.startswith("unrecognized") and unknown.startswith("-"):
            meant = nearest(unknown, self._option_string_actions)
            message = f"unknown option {unknown}: " + (f"did you mean {meant}?" if meant else "see --help.")
        fail(message)


if __name__ == "__main__":
    sys.exit(run_main(main))
