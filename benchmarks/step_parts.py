"""Where the time of a training step on a CPU goes, on one core: what the products take, and what the rest is made of.

One core makes a step with its share of the batch, as a worker of `tensorlite.parallel` does. The speed of the products is compared with
that of large squares (`benchmarks.matmul.sgemm_peak`, on one core), which are in the cache where those of a model are not.

    python -m benchmarks step_parts            A, B16 and C
    python -m benchmarks step_parts A          one of them
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from threadpoolctl import threadpool_limits

import tensorlite as tl
from benchmarks.common import options_of, save, table
from benchmarks.configurations import CONFIGURATIONS
from benchmarks.matmul import sgemm_peak
from benchmarks.side import LEARNING_RATE, batches
from data.cores import available_cores
from gpt.model import GPT
from tensorlite.memory import keep_freed_memory
from tensorlite.profile import Profile

DEFAULT = ("A", "B16", "C")
PARTS = {  # op -> the part that its time belongs to
    "linear": "products",
    "causal_self_attention": "attention",
    "gelu": "gelu",
    "gelu_tanh": "gelu",
    "layernorm": "layernorm",
    "cross_entropy": "cross-entropy, embedding",
    "embedding": "cross-entropy, embedding",
}


def measure(name: str, steps: int) -> dict[str, Any]:
    """The shares of one configuration."""
    configuration, cores = CONFIGURATIONS[name], available_cores()
    tl.manual_seed(0)
    model = GPT(configuration.model)
    optimizer = tl.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    draw, parameters, rows = batches(configuration, 0), list(model.parameters()), max(1, configuration.batch_size // cores)

    def gradient() -> None:
        x, y = (tl.from_numpy(ids[:rows]) for ids in draw())
        model(x, y)[1].backward()

    def update() -> None:
        optimizer.step(gradient_factor=tl.optim.clip_factor(parameters, 1.0)[1])
        optimizer.zero_grad()

    times: list[tuple[float, float]] = []
    with Profile() as profile:
        for _ in range(1 + steps):
            start = time.perf_counter()
            gradient()
            middle = time.perf_counter()
            update()
            times.append((middle - start, time.perf_counter() - middle))
            if len(times) == 1:
                profile.records.clear()  # the first step makes caches
    gradients, updates = zip(*times[1:], strict=True)
    seconds: dict[str, float] = {}
    for record in profile.records.values():
        part = PARTS.get(record.op, "other ops")
        seconds[part] = seconds.get(part, 0.0) + record.seconds / steps
    flops = sum(record.flops for record in profile.records.values() if record.op == "linear") / steps
    parts = {
        **seconds,
        "between the ops": statistics.mean(gradients) - sum(seconds.values()),
        "clipping and AdamW": statistics.mean(updates),
    }
    whole = sum(parts.values())
    return {
        "configuration": name,
        "rows": rows,
        "seconds_per_step": statistics.median(map(sum, times[1:])),
        "products_of_sgemm_peak": flops / seconds["products"] / sgemm_peak(),
        "shares": dict(sorted(((part, value / whole) for part, value in parts.items()), key=lambda item: -item[1])),
    }


def rows_of(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each part, and the speed of the products."""
    names = list(dict.fromkeys(part for one in results for part in one["shares"]))
    lines = [{"part": part, **{one["configuration"]: f"{one['shares'].get(part, 0.0):.1%}" for one in results}} for part in names]
    speeds = {one["configuration"]: f"{one['products_of_sgemm_peak']:.0%}" for one in results}
    return [*lines, {"part": "speed of the products, of the sgemm peak", **speeds}]


def main(argv: list[str]) -> None:
    """``python -m benchmarks step_parts [CONFIGURATION …] [--blocks N]``"""
    parser = options_of("step_parts", __doc__)
    parser.add_argument("configurations", nargs="*", help=f"some of {', '.join(CONFIGURATIONS)}; default: {', '.join(DEFAULT)}")
    parser.add_argument("--blocks", type=int, default=3, help="how many times the steps of a block of `train_step` are made")
    options = parser.parse_args(argv)
    keep_freed_memory()
    with threadpool_limits(1, user_api="blas"):
        results = [measure(name, options.blocks * CONFIGURATIONS[name].steps_in_a_block) for name in options.configurations or DEFAULT]
    print(table(rows_of(results)))
    save("step_parts", results)
