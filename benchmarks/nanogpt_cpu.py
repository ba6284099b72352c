"""nanoGPT's run for a CPU from start to end: ours as a user starts it, and the same run in torch, one after the other.

A run is a process. Its time is measured from before its start until its end, so it includes the interpreter, imports, reading the text,
training, evaluations and saving. Its result is the last validation loss in its metrics.jsonl, over the same batches on both sides.
Run i of both sides has the same seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.configurations import NANOGPT_MODEL, NANOGPT_TRAINING
from gpt.config import TrainConfig


def our_command(training: TrainConfig) -> list[str]:
    """``python -m gpt.train`` with every setting spelled out, so that no change of a default changes what is measured."""
    settings = asdict(NANOGPT_MODEL) | asdict(training)  # vocab_size is in both; training takes it from the text
    return ["gpt.train", *(f"--{name.replace('_', '-')}={_plain(value)}" for name, value in settings.items() if value is not None)]


def torch_command(training: TrainConfig) -> list[str]:
    """The same run in torch, which has the other settings in its code."""
    varied = ("data", "out", "steps", "eval_iters", "seed")
    return ["benchmarks.torch_train", *(f"--{name.replace('_', '-')}={getattr(training, name)}" for name in varied)]


COMMANDS = {"ours": our_command, "torch": torch_command}


def run(side: str, training: TrainConfig) -> dict[str, float]:
    """One run: its wall time, and its last validation loss.

    Raises:
        SystemExit: if it failed, with its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", *COMMANDS[side](replace(training, out=str(out)))], capture_output=True, encoding="utf-8"
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(f"the run of {side} failed with exit code {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [record for record in records if "val_loss" in record][-1]
    if last["step"] != training.steps:
        sys.exit(f"the last evaluation of {side} was after step {last['step']}, not {training.steps}.")
    return {"seconds": seconds, "train_loss": last["train_loss"], "val_loss": last["val_loss"]}


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each side, for the screen."""
    return [
        {
            "side": name,
            "wall time, s": f"{side['seconds']['median']:.1f} ({side['seconds']['min']:.1f} - {side['seconds']['max']:.1f})",
            "validation loss": f"{side['val_loss']['median']:.4f} ({side['val_loss']['min']:.4f} - {side['val_loss']['max']:.4f})",
            "speed relative to torch": f"{side['speed_relative_to_torch']['median']:.2f}",
            "runs": side["seconds"]["count"],
        }
        for name, side in results["sides"].items()
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks nanogpt_cpu --data FILE [--rounds N] [--steps N]``"""
    parser = options_of("nanogpt_cpu", __doc__)
    parser.add_argument("--data", required=True, help="a UTF-8 text file; nanoGPT takes tinyshakespeare")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=NANOGPT_TRAINING.steps)
    parser.add_argument("--eval-iters", type=int, default=NANOGPT_TRAINING.eval_iters, help="batches in an evaluation, of each half")
    options = parser.parse_args(argv)
    require_torch()
    training = replace(NANOGPT_TRAINING, data=options.data, steps=options.steps, eval_iters=options.eval_iters)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in COMMANDS}
    for round_ in range(options.rounds):
        for side in COMMANDS:
            runs[side].append(run(side, replace(training, seed=training.seed + round_)))
            print(f"{side}: {runs[side][-1]['seconds']:.1f} s, validation loss {runs[side][-1]['val_loss']:.4f}", flush=True)
    reference = [one["seconds"] for one in runs["torch"]]
    results = {
        "steps": options.steps,
        "text": Path(options.data).name,
        "sides": {
            side: {
                **{key: spread([one[key] for one in own]) for key in ("seconds", "train_loss", "val_loss")},
                "speed_relative_to_torch": spread([theirs / one["seconds"] for one, theirs in zip(own, reference, strict=True)]),
            }
            for side, own in runs.items()
        },
    }
    print(table(rows(results)))
    save("nanogpt_cpu", results)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
