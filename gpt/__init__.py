"""A GPT on tensorlite: the model, how it is trained, and how it generates text. Begin with `model`, then `training.trainer`.

    from gpt import load_model, generate_text
    model, tokenizer, config = load_model("runs/tiny")
    print(generate_text(model, tokenizer, "The import statement", max_new_tokens=200))

config, model       the shape of a model and how it is trained; the model itself
llama               the parts of the family after GPT-2
training/           the loop, the three steppers, and a run as a whole: begun, stopped, resumed, saved
finetuning/         training that begins with a trained model: another text, answers, classes; all weights, a part, or LoRA
generation/         from a prompt to text, one token at a time: sampling, the cache of keys and values, the detokenizer
checkpoints/        models and runs on disk: ours, and folders of published weights
plots/              curves and attention maps
evaluation/         what a model knows, in figures: perplexity, cloze, multiple choice
microscope/         what a model does with a text, token by token
serving/            a model behind HTTP: many clients at once, OpenAI's protocol, and a page
cli/                the command line
errors              one sentence for a user's mistake, a traceback for ours

train, finetune, generate, chat, classify, evaluate, plot, look, serve      the programs: python -m gpt.train, or python -m gpt --mode train
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt.checkpoints.loading import load_model
    from gpt.checkpoints.model_folder import save_model
    from gpt.config import GPTConfig, TrainConfig, from_preset
    from gpt.generation.stream import generate_text, stream_text, stream_texts, stream_tokens
    from gpt.model import GPT, BigramLanguageModel, LanguageModel, build_model

__all__ = [
    "GPT", "BigramLanguageModel", "GPTConfig", "LanguageModel", "TrainConfig", "build_model", "from_preset", "generate_text", "load_model",
    "save_model", "stream_text", "stream_texts", "stream_tokens",
]  # fmt: skip

_MODULES = {
    "gpt.model": ("GPT", "BigramLanguageModel", "LanguageModel", "build_model"),
    "gpt.config": ("GPTConfig", "TrainConfig", "from_preset"),
    "gpt.checkpoints.loading": ("load_model",),
    "gpt.checkpoints.model_folder": ("save_model",),
    "gpt.generation.stream": ("generate_text", "stream_text", "stream_texts", "stream_tokens"),
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: a program imports this package first, and needs only some of its modules."""
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _require_own(*packages: str) -> None:
    """Stop if Python finds another package of that name first: it looks in the current folder before it looks for ours.

    Raises:
        ImportError: naming the file in the way. If a program is just being started, only that sentence is printed.
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
