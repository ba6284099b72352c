"""All programs under one name:  python -m gpt --mode train|generate|chat|finetune|classify|evaluate|plot|look|serve [its options]

The same as ``python -m gpt.train`` and so on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from gpt.config import closest_name
from gpt.errors import fail, leave, run_main

USAGE = "All programs under one name:  python -m gpt --mode train|generate|chat|finetune|classify|evaluate|plot|look|serve [its options]"
MODES = {
    "train": "train a model on a text",
    "generate": "generate text with a trained model",
    "chat": "talk to a trained model",
    "finetune": "train a model further: on another text, to answer, or to classify texts",
    "classify": "classify texts with a finetuned model",
    "evaluate": "measure what a model knows",
    "plot": "draw a run, a model's attention, or the activation functions",
    "look": "look at what a model does with a text",
    "serve": "answer in a browser, and to other programs",
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Hand everything but ``--mode`` on to the program of that name.

    Raises:
        UserError: if there is no such mode.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    mode = _take_mode(arguments)
    if mode is None:
        if arguments in (["--help"], ["-h"]):
            print(USAGE, *(f"  {name.ljust(9)} {what}" for name, what in MODES.items()), sep="\n")
            return 0
        fail(f"--mode is missing: it is one of {', '.join(MODES)}.")
    if mode not in MODES:
        meant = closest_name(mode, MODES)
        fail(f"there is no mode {mode!r}: " + (f"did you mean {meant}?" if meant else f"it is one of {', '.join(MODES)}."))
    return importlib.import_module(f"gpt.{mode}").main(arguments)  # each of them has its own libraries


def _take_mode(arguments: list[str]) -> str | None:
    """Take ``--mode X`` or ``--mode=X`` out of the arguments."""
    for i, argument in enumerate(arguments):
        if argument.startswith("--mode="):
            del arguments[i]
            return argument.removeprefix("--mode=")
        if argument == "--mode" and i + 1 < len(arguments):
            return [arguments.pop(i), arguments.pop(i)][1]
    return None


if __name__ == "__main__":
    leave(run_main(main))
