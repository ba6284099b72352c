"""Tokens a second that a model writes: one text, 256 new tokens, from a prompt of one.

Ours as `gpt.inference.stream_tokens` writes, torch in the loop of the course: crop to the last block_size tokens, predict, softmax,
draw, append. The weights are fresh: what is drawn does not change the work. The sides are processes that take turns.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.turns import Side, in_turn, serve, sides
from gpt.config import GPTConfig, from_preset

PRESETS = ("tiny", "course")
SIDES = ("ours", "book", "torch")
VOCABULARY = 65


def config_of(preset: str) -> GPTConfig:
    """A preset's model, with the 65 characters of tinyshakespeare."""
    return from_preset(preset, vocab_size=VOCABULARY)[0]


def our_writer(preset: str) -> Callable[[int], int]:
    """``write(n)`` writes n tokens and returns how many there are then, with the prompt."""
    import tensorlite as tl
    from gpt.inference import stream_tokens
    from gpt.model import GPT
    from tensorlite.memory import keep_freed_memory

    keep_freed_memory()
    tl.manual_seed(0)
    model = GPT(config_of(preset))
    model.eval()

    def write(count: int) -> int:
        return 1 + sum(1 for _ in stream_tokens(model, np.zeros(1, np.int64), count))

    return write


def torch_writer(preset: str) -> Callable[[int], int]:
    """The same in torch."""
    import torch

    from benchmarks.torch_gpt import TorchGPT
    from tensorlite.memory import keep_freed_memory
    from tensorlite.parallel import available_cores

    keep_freed_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    config = config_of(preset)
    model = TorchGPT(config)
    model.eval()

    @torch.no_grad()
    def write(count: int) -> int:
        ids = torch.zeros((1, 1), dtype=torch.long)
        for _ in range(count):
            logits, _ = model(ids[:, -config.block_size :])
            probabilities = torch.softmax(logits[:, -1], dim=-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, num_samples=1)], dim=1)
        return ids.shape[1]

    return write


def measure(preset: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Let the sides write in turn."""
    with sides([Side(name, "benchmarks.generate", name, preset) for name in SIDES]) as processes:
        for side in processes:
            side.ask(min(8, tokens))
        seconds = in_turn(processes, rounds, tokens)
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    return {
        "preset": preset,
        "new_tokens": tokens,
        "sides": {
            name: {
                "tokens_per_second": spread([tokens / time for time in times]),
                "peak_memory_mb": memory[name] / 2**20,
                "speed_relative_to_torch": spread([theirs / own for own, theirs in zip(times, seconds["torch"], strict=True)]),
            }
            for name, times in seconds.items()
        },
    }


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a side and preset, for people."""
    return [
        {
            "preset": result["preset"],
            "side": name,
            "tokens/s": float(side["tokens_per_second"]["median"]),
            "relative to torch": f"{side['speed_relative_to_torch']['median']:.2f}",
            "from - to": f"{side['speed_relative_to_torch']['min']:.2f} - {side['speed_relative_to_torch']['max']:.2f}",
            "peak memory, MB": float(side["peak_memory_mb"]),
        }
        for result in results
        for name, side in result["sides"].items()
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks generate [PRESET ...] [--rounds N] [--tokens N]``"""
    parser = options_of("generate", __doc__)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), help=f"default: {' '.join(PRESETS)}")
    parser.add_argument("--rounds", type=int, default=7, help="texts of each side")
    parser.add_argument("--tokens", type=int, default=256, help="new tokens in a text")
    options = parser.parse_args(argv)
    require_torch()
    results = [measure(preset, options.rounds, options.tokens) for preset in options.presets]
    print(table(rows(results)))
    save("generate", results)


if __name__ == "__main__":
    name, preset = sys.argv[1:]
    serve(torch_writer(preset) if name == "torch" else our_writer(preset))
