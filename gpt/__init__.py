"""A GPT on tensorlite: the model, how it is trained, and how it writes. Begin with `model`, then `training.trainer`.

config, model       what a model looks like; the model itself
training/           the loop, and a run as a whole: begun, stopped, resumed, saved
finetuning/         what a trained model can be taught next: another text, answers, classes; all of it, a part, or LoRA
generation/         one token at a time: keys and values remembered, a choice made, bytes put together to characters
checkpoints/        models and runs on disk: ours, and folders of GPT-2's published weights
plots/              curves and maps
cli/                the command line
errors              one sentence for a user's mistake, a traceback for ours

train, finetune, generate, chat, classify, plot      python -m gpt.train, and so on; python -m gpt --mode train is the same
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _require_own(*packages: str) -> None:
    """Refuse to go on where Python would take something of the user's, which it looks for in the current folder first, for our packages.

    Raises:
        ImportError: naming the file in the way. Of a program that is just being started, the user sees that sentence alone.
    """
    home = Path(__file__).resolve().parent.parent
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        found = Path(spec.origin or next(iter(spec.submodule_search_locations or ()))).resolve()
        if found == home / package / "__init__.py":
            continue
        message = (
            f"{found} is in the way of {package!r}, a package of tensorlite: rename it, or leave the current folder out with python -P."
        )
        if sys.argv[:1] != ["-m"]:
            raise ImportError(message)
        sys.stderr.write(f"error: {message}\n")  # `python -m` is on its way to one of our programs
        sys.exit(2)


_require_own("data", "tensorlite")
