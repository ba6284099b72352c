"""Generate text with a trained model:  python -m gpt.generate --checkpoint runs/tiny --prompt "The import statement"

The text appears while it is generated, the prompt first. A prompt can also come from a file, or through a pipe. Without a prompt the model
begins a new text (or a new line, or with its first token).
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
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser, add_int8_option, add_model_options, add_sampling_options, check_context_keep, check_sampling
from gpt.errors import fail, run_main
from gpt.finetuning.classifier import refuse_classifier
from gpt.finetuning.find_template import find_template
from gpt.generation.memory_order import order_for_one_text
from gpt.generation.stream import context_length, limit_threads, stream_texts
from tensorlite import random


def main(argv: Sequence[str] | None = None) -> None:
    """Load the model and print the samples.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    sampling = check_sampling(parser, options, num_samples=1)
    prompt = _prompt(options)
    refuse_classifier(options.checkpoint)
    model, tokenizer, config = load_model(options.checkpoint, options.backend, options.int8)
    check_context_keep(options, config.block_size)
    if options.num_samples == 1:
        order_for_one_text(model)
    if find_template(options.checkpoint):
        print(f"note: this model was finetuned on conversations, and here it continues a text as it stands; "
              f"to ask it: python -m gpt.chat --checkpoint {options.checkpoint}", file=sys.stderr)  # fmt: skip
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
        # Each sample has its own stream of random numbers: the third is the same with or without the first two.
        generator=None if options.seed is None else [random.make_generator(options.seed, i) for i in range(options.num_samples)],
        stop=options.stop,
        context_keep=options.context_keep,
        use_cache=not options.no_cache,
        **sampling,
    )
    shown = "" if options.completion_only else prompt
    others: list[list[str]] = [[] for _ in range(options.num_samples - 1)]  # generated at the same time, shown after the first
    print(shown, end="", flush=True)
    with limit_threads(model):
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
        return clean_text(raw, "the prompt")  # as the training text was cleaned
    except OSError as error:
        fail(f"the prompt cannot be read: {explain(error, options.prompt_file)}")


def _is_piped() -> bool:
    """Whether standard input is a pipe or a file."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _parser() -> Parser:
    parser = Parser(prog="python -m gpt.generate", description="Generate text with a trained model.", usage="%(prog)s -c DIR [options]")
    add_model_options(parser)
    add_int8_option(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("-p", "--prompt", metavar="TEXT", help="the beginning of the text (default: what comes through a pipe)")
    source.add_argument("--prompt-file", metavar="FILE", help="the prompt from a file; - is standard input")
    add_sampling_options(parser, max_new_tokens=500)
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="number of texts (default: 1)")
    parser.add_argument("--completion-only", action="store_true", help="do not print the prompt")
    parser.add_argument("--no-cache", action="store_true", help="compute the whole context for each token: the same text, only slower")
    return parser


if __name__ == "__main__":
    sys.exit(run_main(main))
