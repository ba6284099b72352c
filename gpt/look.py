"""Look at what a model does with a text:  python -m gpt.look runs/tiny --prompt "The import statement"

How surprised it is by each token, what it would say next, what it would say already after each block, where each head looks, and which
token mattered for its guess. ``--html look.html`` writes the same as one page for a browser, with the attention on hover.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data.files import explain, write_atomically
from data.paths import expand_path
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser
from gpt.errors import fail, run_main
from gpt.generation.sampling import Sampling
from gpt.microscope.page import page
from gpt.microscope.reading import influence, read, visible
from gpt.microscope.screen import Terminal, lines_of, named
from gpt.model import GPT

PROMPT = "The value of "


def main(argv: Sequence[str] | None = None) -> None:
    """Print what there is to see, or write the page.

    Raises:
        UserError, DataError: for what the user can correct.
    """
    parser = Parser(prog="python -m gpt.look", description="Look at what a trained model does with a text.")
    parser.add_argument("run", metavar="RUN", help="a folder that gpt.train or gpt.finetune has written, or a GPT-2 of Hugging Face's")
    parser.add_argument("-p", "--prompt", default=PROMPT, metavar="TEXT", help=f"the text (default: {PROMPT!r})")
    parser.add_argument("-t", "--temperature", type=float, default=1.0, metavar="T", help="of sampling (default: 1)")
    parser.add_argument("--top-k", type=int, metavar="K", help="sample only from the K most likely tokens")
    parser.add_argument("--top-p", type=float, metavar="P", help="sample only from the most likely tokens that add up to probability P")
    parser.add_argument("--html", metavar="FILE", help="write one page for a browser")
    options = parser.parse_args(argv)
    try:
        sampling = Sampling(options.temperature, options.top_k, options.top_p)
    except ValueError as error:
        fail(str(error))
    model, tokenizer, _ = load_model(options.run)
    if not isinstance(model, GPT):
        fail(f"{options.run} has no blocks to look into: its model is a bigram table.")
    reading = read(model, tokenizer, options.prompt)
    effects = influence(model, reading.ids, int(reading.logits[-1].argmax()))
    if options.html is None:
        texts = {token: visible(tokenizer.decode([token])) for token in named(reading, sampling)}
        print(*lines_of(reading, sampling, effects, texts, Terminal.of_stdout()), sep="\n")
        return
    path = expand_path(options.html)
    title = f"{Path(options.run).name}: {model.config.n_layer} blocks, {model.config.n_head} heads, {model.num_parameters():,} parameters"
    try:
        write_atomically(path, page(reading, sampling, effects, lambda token: tokenizer.decode([token]), title))
    except OSError as error:
        fail(f"the page cannot be written: {explain(error, path)}")
    print(path)


if __name__ == "__main__":
    sys.exit(run_main(main))
