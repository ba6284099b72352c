"""Measure what a model knows:  python -m gpt.evaluate --checkpoint runs/tiny

    python -m gpt.evaluate --checkpoint runs/tiny                                  small tasks made from a text on this machine
    python -m gpt.evaluate --checkpoint smollm2 --text book.txt                    perplexity, and bits a byte
    python -m gpt.evaluate --checkpoint smollm2 --cloze lambada.jsonl              the last word of each passage
    python -m gpt.evaluate --checkpoint smollm2 --choice hellaswag.jsonl           which of several texts follows
    python -m gpt.evaluate --checkpoint runs/a --compare runs/b results.json       several models in one table

docs/evaluate.md has the shapes of the files, and what the figures mean.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.corpus import load_corpus
from data.paths import expand_path
from data.tokenizer import Tokenizer
from gpt.checkpoints.loading import load_model
from gpt.cli.arguments import Parser, add_int8_option, add_model_options, check_backend
from gpt.errors import fail, run_main
from gpt.evaluation.examples import read_passages, read_questions
from gpt.evaluation.measures import Measurement, measure_choices, measure_cloze, measure_text
from gpt.evaluation.results import Results, format_table, read_results, write_results
from gpt.evaluation.samples import SAMPLES, sample_passages, sample_questions, sample_text
from gpt.finetuning.classifier import refuse_classifier
from gpt.finetuning.config import UNKNOWN
from gpt.finetuning.tasks import with_unknown_policy
from gpt.model import LanguageModel
from tensorlite.memory import keep_freed_memory


@dataclass(frozen=True)
class _Task:
    """A task with its data read.

    Attributes:
        name: in the table.
        source: what it is measured on, with a checksum, so that results on other data are not compared with it.
        measure: from a model and its tokenizer to figures.
    """

    name: str
    source: str
    measure: Callable[[LanguageModel, Tokenizer], Measurement]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and, if asked to, write the results.

    Raises:
        UserError, DataError, DeviceUnavailableError: for what the user can correct; a mistake in a file before a model is loaded.
    """
    options = _parse(argv)
    tasks = list(_tasks(options))
    several = []
    for name in [options.checkpoint, *options.compare]:
        if Path(name).suffix == ".json":
            several.append(read_results(name))
        else:
            several.append(_measure(name, tasks, options))
    print(format_table(several), flush=True)
    if options.out:
        print(f"written to {write_results(options.out, several[0])}", file=sys.stderr)


def _measure(checkpoint: str, tasks: Sequence[_Task], options: argparse.Namespace) -> Results:
    """All tasks for one model."""
    refuse_classifier(checkpoint)
    model, tokenizer, config = load_model(checkpoint, options.backend, options.int8)
    tokenizer = with_unknown_policy(tokenizer, options.unknown)
    measurements = []
    for task in tasks:
        begin = time.perf_counter()
        try:
            found = task.measure(model, tokenizer)
        except ValueError as error:
            fail(f"{checkpoint}: {error}")
        measurements.append(found)
        print(f"{checkpoint}: {task.name} took {time.perf_counter() - begin:.1f} s", file=sys.stderr)
        if found.cropped:
            what = f"{found.cropped:,} contexts of {task.name} are longer than the model's, {config.block_size:,} tokens"
            print(f"note: {what}, and have lost their beginning.", file=sys.stderr)
    return Results(checkpoint, model.num_parameters(), measurements, {task.name: task.source for task in tasks})


def _tasks(options: argparse.Namespace) -> Iterator[_Task]:
    """The tasks that the user has chosen, in the order of --help; without any, the samples."""
    chosen = options.text or options.cloze or options.choice or options.sample
    for name in options.text:
        yield _text_task(name, load_corpus(name).text, options)
    for name in options.cloze:
        yield _example_task(name, read_passages(name), measure_cloze, options)
    for name in options.choice:
        yield _example_task(name, read_questions(name), measure_choices, options)
    samples = options.sample if chosen else list(SAMPLES)
    for name in samples:
        if name == "pydoc-text":
            yield _text_task(name, sample_text(), options)
        elif name == "pydoc-cloze":
            yield _example_task(name, sample_passages(), measure_cloze, options)
        else:
            yield _example_task(name, sample_questions(), measure_choices, options)


def _text_task(name: str, text: str, options: argparse.Namespace) -> _Task:
    def measure(model: LanguageModel, tokenizer: Tokenizer) -> Measurement:
        return measure_text(model, tokenizer, text, name, options.context, options.stride)

    return _Task(name, f"{name}, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}", measure)


def _example_task(name: str, examples: list[Any], measure: Callable[..., Measurement], options: argparse.Namespace) -> _Task:
    examples = examples[: options.limit]
    content = json.dumps([asdict(example) for example in examples], sort_keys=True)
    source = f"{name}, SHA-256 {hashlib.sha256(content.encode()).hexdigest()}"
    return _Task(name, source, lambda model, tokenizer: measure(model, tokenizer, examples, name))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m gpt.evaluate", description="Measure what a model knows.", usage="%(prog)s -c DIR [options]")
    add_model_options(parser, "the model: a folder of gpt.train or gpt.finetune, a published one, a GGUF file, or smollm2")
    add_int8_option(parser)
    parser.add_argument("--text", action="append", default=[], metavar="FILE", help="perplexity and bits a byte of this text")
    parser.add_argument("--cloze", action="append", default=[], metavar="FILE", help="a .jsonl file of passages: predict the last word")
    parser.add_argument("--choice", action="append", default=[], metavar="FILE", help="a .jsonl file of questions with choices")
    parser.add_argument(
        "--sample", action="append", default=[], choices=SAMPLES,
        help="a small task made from a text on this machine (default: all of these, if nothing else is asked for)",
    )  # fmt: skip
    parser.add_argument("--compare", nargs="+", default=[], metavar="DIR", help="further models, or files of results, for the table")
    parser.add_argument("--out", metavar="FILE", help="write the results of --checkpoint, as JSON")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples of each file")
    parser.add_argument("--context", type=int, metavar="N", help="tokens in a window of a text (default: the model's, at most 1,024)")
    parser.add_argument("--stride", type=int, metavar="N", help="new tokens in each window (default: half of the context)")
    parser.add_argument(
        "--unknown", default="error", choices=UNKNOWN, help="what to do with characters that the tokenizer does not know (default: error)"
    )
    options = parser.parse_args(argv)
    check_backend(options)
    for name in ("limit", "context", "stride"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}.")
    files = [*options.text, *options.cloze, *options.choice, *options.sample]
    if twice := next((name for name in files if files.count(name) > 1), None):
        parser.error(f"{twice} is asked for twice.")
    if options.out and expand_path(options.checkpoint).suffix == ".json":
        parser.error("--out is for results that are measured now, and --checkpoint names a file of results.")
    return options


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(run_main(main))
