"""What presets and optimizers learn: validation loss by steps, by operations and by CPU time.

Each run trains a preset on the default text with one worker, so that its CPU time is that of its work. The evaluations between are not
timed. All runs are evaluated on the same batches of the validation text. A run is short, with a schedule of its own length: to compare at
equal time, give the slower side fewer steps.

    python -m benchmarks learning                                            tiny, modern and tiny with Muon, three seeds each
    python -m benchmarks learning --sides "tiny muon" --steps 180 --seeds 4  that run alone; the other results stay
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

from benchmarks import common
from benchmarks.common import options_of, save, spread, table
from data.dataset import open_dataset
from gpt.config import RandomStream, from_preset
from gpt.model import build_model
from gpt.training.trainer import Trainer
from tensorlite.memory import keep_freed_memory
from tensorlite.random import make_generator, use_generator

SIDES: dict[str, dict[str, Any]] = {
    "tiny": {"preset": "tiny"},
    "modern": {"preset": "modern"},
    "tiny muon": {"preset": "tiny", "optimizer": "muon"},
    "modern muon": {"preset": "modern", "optimizer": "muon"},
}
DEFAULT_SIDES = ("tiny", "modern", "tiny muon")
EVALUATION_SEED = 1
WARMUP = 100  # of the presets; a shorter run warms up for a fifth of its steps


def run(side: str, steps: int, seed: int, eval_iters: int, data: str | None = None) -> dict[str, float]:
    """One run: the CPU time of its steps, and the last validation loss."""
    settings = {**SIDES[side], "steps": steps, "seed": seed, "warmup_steps": min(WARMUP, steps // 5), "eval_iters": eval_iters}
    model_config, config = from_preset(settings.pop("preset"), workers=1, shards=1, **settings, **({"data": data} if data else {}))
    dataset = open_dataset(config.data, config.val_fraction)
    with use_generator(make_generator(seed, RandomStream.WEIGHTS)):
        model = build_model(replace(model_config, vocab_size=dataset.vocab_size))
    trainer = Trainer(model, config, dataset.train, dataset.val)
    with trainer.workers:
        start = time.process_time()
        for _ in range(steps):
            trainer.update()
        seconds = time.process_time() - start
        trainer.config = replace(config, seed=EVALUATION_SEED)
        loss = trainer.evaluate().val_loss
    return {"cpu_seconds": seconds, "val_loss": loss}


def measure(sides: list[str], steps: int, seeds: list[int], eval_iters: int, data: str | None = None) -> list[dict[str, Any]]:
    """All runs, seed by seed, so that the sides take turns."""
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for seed in seeds:
        for side in sides:
            runs[side].append(run(side, steps, seed, eval_iters, data))
            print(
                f"{side}, seed {seed}: validation loss {runs[side][-1]['val_loss']:.4f}, {runs[side][-1]['cpu_seconds']:.1f} s", flush=True
            )
    return [{"side": side, "steps": steps, "runs": dict(zip(map(str, seeds), own, strict=True))} for side, own in runs.items()]


def merge(known: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All runs, those with more steps first. A new run replaces one with the same side, steps and seed."""
    runs: dict[tuple[str, int], dict[str, dict[str, float]]] = {}
    for one in (*known, *new):
        runs.setdefault((one["side"], one["steps"]), {}).update(one["runs"])
    keys = sorted(runs, key=lambda key: (-key[1], key[0]))
    return [{"side": side, "steps": steps, "runs": dict(sorted(runs[side, steps].items()))} for side, steps in keys]


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each side and number of steps."""
    lines = []
    for one in results:
        loss, seconds = (spread([run[name] for run in one["runs"].values()]) for name in ("val_loss", "cpu_seconds"))
        lines.append(
            {
                "preset and optimizer": one["side"],
                "steps": f"{one['steps']:,}",
                "seeds": len(one["runs"]),
                "validation loss": f"{loss['median']:.3f} ({loss['min']:.3f} – {loss['max']:.3f})",
                "CPU time, s": f"{seconds['median']:.0f}",
            }
        )
    return lines


def main(argv: list[str]) -> None:
    """``python -m benchmarks learning [--sides …] [--steps N] [--seeds N …]``"""
    parser = options_of("learning", __doc__)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=DEFAULT_SIDES)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--eval-iters", type=int, default=100, help="batches in the evaluation")
    parser.add_argument("--data", help="a text (default: that of the presets)")
    options = parser.parse_args(argv)
    keep_freed_memory()
    new = measure(list(options.sides), options.steps, options.seeds, options.eval_iters, options.data)
    file = common.RESULTS / "learning.json"
    known = json.loads(file.read_text(encoding="utf-8"))["results"] if file.exists() else []
    results = merge(known, new)
    print(table(rows(results)))
    save("learning", results)
