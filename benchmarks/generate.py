"""Tokens a second that a model writes: one text, 256 new tokens, from a prompt of one.

The weights are fresh: what is drawn does not change the work. The sides are processes that take turns:
    ours         `gpt.inference.stream_tokens`, with its cache of keys and values
    book         the same with TENSORLITE_KERNELS=book
    torch        the loop of the course, without a cache: crop to the last block_size tokens, predict, softmax, draw, append
    torch cache  the same with keys and values kept in tensors made beforehand; beyond block_size the window is encoded again, as ours is

The preset tiny reads 64 tokens: three quarters of the text are written with a window that slides, where no cache helps, because
each crop shifts every position. "tiny, 512" is the same model with room for the whole text.

A model that writes one text reads all its weights for each token. "Share of bandwidth" is how much that is of what products of
matrices and vectors reach that do nothing else.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.turns import Side, in_turn, serve, sides
from gpt.config import GPTConfig, from_preset

PRESETS = ("tiny", "tiny, 512", "course")
SIDES = ("ours", "book", "torch", "torch cache")
VOCABULARY = 65


def config_of(preset: str) -> GPTConfig:
    """A preset's model, with the 65 characters of tinyshakespeare, and with another block_size after a comma."""
    name, _, block_size = preset.partition(", ")
    config = from_preset(name, vocab_size=VOCABULARY)[0]
    return replace(config, block_size=int(block_size)) if block_size else config


def our_writer(preset: str) -> Callable[[int], int]:
    """``write(n)`` writes n tokens and returns how many there are then, with the prompt."""
    import tensorlite as tl
    from gpt.inference import stream_tokens, suitable_threads
    from gpt.model import GPT
    from tensorlite.memory import keep_freed_memory

    keep_freed_memory()
    tl.manual_seed(0)
    model = GPT(config_of(preset))
    model.eval()

    def write(count: int) -> int:
        with suitable_threads(model):
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


def caching_torch_writer(preset: str) -> Callable[[int], int]:
    """The same in torch with a cache."""
    import torch
    from torch.nn import functional as F

    from benchmarks.torch_gpt import TorchGPT
    from tensorlite.memory import keep_freed_memory
    from tensorlite.parallel import available_cores

    keep_freed_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(0)
    config = config_of(preset)
    model = TorchGPT(config)
    model.eval()
    C, H, room = config.n_embd, config.n_head, config.block_size
    activations = {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
    activation = activations[config.activation]
    kept = torch.zeros(config.n_layer, 2, 1, H, room, C // H)

    def advance(ids: torch.Tensor, start: int) -> torch.Tensor:
        T = ids.shape[1]
        x = model.wte(ids) + model.wpe.weight[start : start + T]
        for block, (keys, values) in zip(model.h, kept, strict=True):
            q, k, v = (part.view(1, T, H, C // H).transpose(1, 2) for part in block.attn.c_attn(block.ln_1(x)).split(C, dim=2))
            keys[:, :, start : start + T], values[:, :, start : start + T] = k, v
            y = F.scaled_dot_product_attention(q, keys[:, :, : start + T], values[:, :, : start + T], is_causal=T > 1)
            x = x + block.attn.c_proj(y.transpose(1, 2).reshape(1, T, C))
            x = x + block.mlp.c_proj(activation(block.mlp.c_fc(block.ln_2(x))))
        return model.lm_head(model.ln_f(x[:, -1]))

    @torch.no_grad()
    def write(count: int) -> int:
        ids = torch.zeros((1, 1), dtype=torch.long)
        for _ in range(count):
            known = ids.shape[1] - 1
            logits = advance(ids[:, -1:], known) if known < room else advance(ids[:, -room:], 0)
            ids = torch.cat([ids, torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)], dim=1)
        return ids.shape[1]

    return write


def bandwidth(preset: str) -> float:
    """Bytes a second that products of the preset's weights and one vector read, the best of many goes."""
    config = config_of(preset)
    C = config.n_embd
    rng = np.random.default_rng(0)
    weights = [rng.random(shape, np.float32) for _ in range(config.n_layer) for shape in ((3 * C, C), (C, C), (4 * C, C), (C, 4 * C))]
    vectors = [rng.random(weight.shape[1], np.float32) for weight in weights]
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        for weight, vector in zip(weights, vectors, strict=True):
            weight @ vector
        seconds.append(time.perf_counter() - start)
    return sum(weight.nbytes for weight in weights) / min(seconds)


def bytes_of_weights(config: GPTConfig) -> int:
    """What is read for each token: every matrix, and of the embeddings a row."""
    return 4 * (config.n_layer * 12 * config.n_embd**2 + config.vocab_size * config.n_embd)


def measure(preset: str, rounds: int, tokens: int) -> dict[str, Any]:
    """Let the sides write in turn."""
    reachable = bandwidth(preset)
    with sides([Side(name, "benchmarks.generate", name, preset) for name in SIDES]) as processes:
        for side in processes:
            side.ask(min(8, tokens))
        seconds = in_turn(processes, rounds, tokens)
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    return {
        "preset": preset,
        "new_tokens": tokens,
        "bandwidth_gb": reachable / 1e9,
        "sides": {
            name: {
                "tokens_per_second": spread([tokens / time for time in times]),
                "peak_memory_mb": memory[name] / 2**20,
                "share_of_bandwidth": bytes_of_weights(config_of(preset)) * tokens / float(np.median(times)) / reachable,
                "speed_relative_to_torch": spread([theirs / own for own, theirs in zip(times, seconds["torch"], strict=True)]),
                "speed_relative_to_torch_cache": spread([theirs / own for own, theirs in zip(times, seconds["torch cache"], strict=True)]),
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
            "to torch with a cache": f"{side['speed_relative_to_torch_cache']['median']:.2f}",
            "share of bandwidth": f"{100 * side['share_of_bandwidth']:.0f}%",
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
    writers = {"torch": torch_writer, "torch cache": caching_torch_writer}
    serve(writers.get(name, our_writer)(preset))
