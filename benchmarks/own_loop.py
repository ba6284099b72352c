"""A model and a loop of one's own: the course's GPT, written out with a head for each module, in ours and in torch.

The class is the same text for both (`benchmarks.own_model`). It uses no named op for attention: each head has its own products, mask,
softmax and dropout. Each side is a process; in each round every side makes a block of steps, see `benchmarks.turns`.

    alone      a loop by hand: forward, backward, AdamW
    shared     the three lines: step = tl.parallel.shared(model, optimizer), with threads
    processes  the same with team="processes"
    torch      a loop by hand in torch, eager: the reference

    python -m benchmarks own_loop                  384 wide, 6 layers, 6 heads, 256 tokens, batch 8, dropout 0.2
    python -m benchmarks own_loop --width 128 …    another size
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.configurations import Size
from benchmarks.turns import Side, in_turn, serve, sides
from data.cores import available_cores
from tensorlite.memory import keep_freed_memory

SIDES = ("alone", "shared", "processes", "torch")
VOCABULARY = 65


def steps_of(side: str, size: Size) -> Callable[[int], float]:
    """``steps(n)`` makes n steps and returns the last loss."""
    generator = np.random.default_rng(0)

    def draw() -> tuple[np.ndarray, np.ndarray]:
        ids = generator.integers(0, VOCABULARY, (size.batch, size.context + 1))
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    os.environ["OWN_MODEL"] = "torch" if side == "torch" else "tensorlite"
    from benchmarks.own_model import GPT, torch  # torch or tensorlite

    if side == "torch":
        torch.set_num_threads(available_cores())
    keep_freed_memory()
    torch.manual_seed(0)
    model = GPT(VOCABULARY, size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    team = {"shared": "threads", "processes": "processes"}.get(side)
    shared = None if team is None else torch.parallel.shared(model, optimizer, team=team)

    def step() -> float:
        x, y = draw()
        if shared is not None:
            return shared(x, y).item()
        _, loss = model(torch.from_numpy(x), torch.from_numpy(y))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return lambda count: [step() for _ in range(count)][-1]


def main(argv: list[str]) -> None:
    """``python -m benchmarks own_loop [--layers N] [--width N] … [--rounds N] [--steps N]``"""
    parser = options_of("own_loop", __doc__)
    for name, value in Size()._asdict().items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each side")
    parser.add_argument("--steps", type=int, default=1, help="steps in a block")
    options = parser.parse_args(argv)
    require_torch()
    size = Size(*(getattr(options, name) for name in Size._fields))
    with sides([Side(side, "benchmarks.own_loop", side, *map(str, size)) for side in SIDES]) as processes:
        losses = {side.name: side.ask(1)["result"] for side in processes}  # warm-up
        blocks = in_turn(processes, options.rounds, options.steps)
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    seconds = {name: [time / options.steps for time in times] for name, times in blocks.items()}
    results = [
        {
            "side": name,
            **size._asdict(),
            "first_loss": losses[name],
            "seconds_per_step": spread(times),
            "speed_relative_to_torch": spread([reference / own for own, reference in zip(times, seconds["torch"], strict=True)]),
            "peak_memory_mb": memory[name] / 2**20,
        }
        for name, times in seconds.items()
    ]
    print(table(rows(results)))
    save("own_loop", results)


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each side."""
    return [
        {
            "side": one["side"],
            "seconds a step": f"{one['seconds_per_step']['median']:.2f}",
            "relative to torch": f"{one['speed_relative_to_torch']['median']:.2f} "
            f"({one['speed_relative_to_torch']['min']:.2f} – {one['speed_relative_to_torch']['max']:.2f})",
            "peak memory, MB": f"{one['peak_memory_mb']:,.0f}",
        }
        for one in results
    ]


if __name__ == "__main__":
    _, name, *numbers = sys.argv
    serve(steps_of(name, Size(*(kind(number) for kind, number in zip((int, int, int, int, int, float), numbers, strict=True)))))
