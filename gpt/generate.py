"""Write text with a trained model:  python -m gpt.generate --checkpoint runs/tiny --prompt "The import statement"

The text appears as it is written, the prompt first. A prompt can also come from a file, or through a pipe. Without one the model
starts a new text (or a new line, or from its first token).
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Sequence

from data.corpus import clean_text
from data.files import explain
from data.paths import expand_path
from gpt.checkpoints.loading import open_model
from gpt.cli.arguments import Parser, add_model_options, add_sampling_options, check, check_context_keep
from gpt.errors import fail, run_main
from gpt.finetuning.classifier import refuse_classifier
from gpt.generation.stream import context_length, stream_texts, suitable_threads
from tensorlite import random


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model, write the samples to stdout.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can mend.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    sampling = check(parser, options, num_samples=1)
    prompt = _prompt(options)
    refuse_classifier(options.checkpoint)
    model, tokenizer, config = open_model(options.checkpoint, options.backend)
    check_context_keep(options, config.block_size)
    length = len(tokenizer.encode(prompt))
    if length > config.block_size:
        read = context_length(length, config.block_size, options.context_keep or config.block_size)
        print(f"note: the prompt has {length:,} tokens; the model reads the last {read:,}.", file=sys.stderr)
    steps = stream_texts(
        model,
        tokenizer,
        prompt,
        options.max_new_tokens,
        count=options.num_samples,
        # Each sample has a stream of its own: the third is the same whether or not the first two are asked for.
        generator=None if options.seed is None else [random.make_generator(options.seed, i) for i in range(options.num_samples)],
        stop=options.stop,
        context_keep=options.context_keep,
        use_cache=not options.no_cache,
        **sampling,
    )
    shown = "" if options.completion_only else prompt
    others: list[list[str]] = [[] for _ in range(options.num_samples - 1)]  # written at the same time, shown after the first
    print(shown, end="", flush=True)
    with suitable_threads(model):
        for first, *rest in steps:
            print(first, end="", flush=True)
            for pieces, piece in zip(others, rest, strict=True):
                pieces.append(piece)
    print()
    for pieces in others:
        print("-" * 80)
        print(shown + "".join(pieces))


def _prompt(options: argparse.Namespace) -> str:
    """From the option, the file, or the pipe, whichever there is."""
    if options.prompt is not None:
        return options.prompt.replace("\r\n", "\n")
    if options.prompt_file is None and not _is_piped():
        return ""
    try:
        raw = sys.stdin.buffer.read() if options.prompt_file in (None, "-") else expand_path(options.prompt_file).read_bytes()
        return clean_text(raw, "the prompt")  # as what the model has learnt from was cleaned
    except OSError as error:
        fail(f"the prompt cannot be read: {explain(error, options.prompt_file)}")


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file. Without either (a terminal, a program started by another) nobody is asked."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _parser() -> Parser:
    parser = Parser(prog="python -m gpt.generate", description="Write text with a trained model.")
    add_model_options(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--prompt", metavar="TEXT", help="what the text begins with (default: what comes through a pipe, or nothing)")
    source.add_argument("--prompt-file", metavar="FILE", help="the same from a file; - is standard input")
    add_sampling_options(parser, max_new_tokens=500)
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="how many texts to write (default: 1)")
    parser.add_argument("--completion-only", action="store_true", help="leave the prompt out")
    parser.add_argument("--no-cache", action="store_true", help="compute everything anew for each token: the same text, more slowly")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
