"""Draw a training run, a model's attention, or the activation functions:

    python -m gpt.plot runs/tiny                                            loss, learning rate, gradients: runs/tiny/curves.png
    python -m gpt.plot runs/tiny runs/wide --out both.svg                   several runs in one picture
    python -m gpt.plot runs/tiny --attention --prompt "The import "         attention in every head: runs/tiny/attention.png
    python -m gpt.plot --activations                                        the activation functions and their derivatives

PNG or SVG, by the ending of --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import explain
from data.paths import expand_path
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser
from gpt.errors import fail, run_main
from gpt.model import GPT
from gpt.plots.activation_curves import plot_activations
from gpt.plots.attention_maps import attention_weights, plot_attention
from gpt.plots.curves import plot_runs
from gpt.plots.figure import FORMATS, HOW_TO_GET_IT, can_plot
from gpt.training.metrics import METRICS, read_metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the options ask for, and print the path of the picture.

    Raises:
        UserError, DataError: for what the user can correct.
    """
    options = _parse(argv)
    if not can_plot():
        fail(f"a picture {HOW_TO_GET_IT}")
    path = _path(options)
    try:
        if options.activations:
            plot_activations(path)
        elif options.attention:
            _attention(options.runs[0], options.prompt, path)
        else:
            plot_runs(_named({run: _records(run) for run in options.runs}), path)
    except OSError as error:
        fail(f"the picture cannot be written: {explain(error, path)}")
    print(path)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, each of them possible in itself."""
    parser = Parser(
        prog="python -m gpt.plot",
        description="Draw a training run, a model's attention, or the activation functions.",
        usage="%(prog)s [RUN …] [options]",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders that gpt.train or gpt.finetune has written")
    parser.add_argument("--attention", action="store_true", help="draw the attention weights of the model in RUN for a prompt")
    parser.add_argument("--prompt", metavar="TEXT", help="with --attention: the text that the model reads")
    parser.add_argument("--activations", action="store_true", help="draw the activation functions and their derivatives")
    parser.add_argument("-o", "--out", metavar="FILE", help="the picture, .png or .svg (default: in the folder of the run)")
    options = parser.parse_args(argv)
    if options.activations and (options.attention or options.runs):
        fail("--activations draws functions, not a run: give it alone.")
    if not options.activations and not options.runs:
        fail("there is nothing to draw: name a run, such as runs/tiny, or give --activations.")
    if options.attention and (len(options.runs) > 1 or not options.prompt):
        fail("--attention draws one model for one text: name one run, and a --prompt that is not empty.")
    if options.prompt is not None and not options.attention:
        fail("--prompt belongs to --attention.")
    return options


def _path(options: argparse.Namespace) -> Path:
    """Where the picture goes."""
    if options.out:
        path = expand_path(options.out)
        if path.suffix not in FORMATS:
            fail(f"a picture is {' or '.join(FORMATS)}, by its ending, got {path.name!r}.")
        return path
    name = "activations" if options.activations else "attention" if options.attention else "curves"
    folder = expand_path(options.runs[0]) if len(options.runs) == 1 else Path()
    return (folder if folder.is_dir() else folder.parent) / f"{name}.png"


def _records(run: str) -> list[dict[str, Any]]:
    """What a run has logged."""
    file = expand_path(run) / METRICS
    try:
        records = [record for record in read_metrics(file) if isinstance(record.get("step"), int)]
    except (FileNotFoundError, NotADirectoryError):
        fail(f"{run} is not a run: there is no {file}.")
    except OSError as error:
        fail(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.")
    if not records:
        fail(f"{file} has nothing to draw yet: the training has not logged a loss.")
    return records


def _named(runs: dict[str, Any]) -> dict[str, Any]:
    """Runs by the names of their folders, or by their paths where two names are the same."""
    names = {run: expand_path(run).resolve().name for run in runs}
    return {names[run] if list(names.values()).count(names[run]) == 1 else run: records for run, records in runs.items()}


def _attention(run: str, prompt: str, path: Path) -> None:
    model, tokenizer, config = load_model(run)
    if not isinstance(model, GPT):
        fail(f"{run} has no attention to draw: its model is a bigram table.")
    ids = tokenizer.encode(prompt).astype("int64")
    if len(ids) > config.block_size:
        fail(f"the prompt has {len(ids):,} tokens, more than the {config.block_size:,} that the model reads at once: shorten it.")
    plot_attention(attention_weights(model, ids), [tokenizer.decode([token]) for token in ids], path, title=f"{Path(run).name}: {prompt!r}")


if __name__ == "__main__":
    sys.exit(run_main(main))
