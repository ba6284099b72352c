"""Tokens a second in generation: one text, from a prompt of one token.

The weights are random, because the amount of work does not depend on the sampled tokens. The sides are processes that take turns:
    ours           `gpt.generation.stream.stream_tokens`, with its cache of keys and values
    ours, no cache the same with use_cache=False: the model itself, asked for every token
    torch          the loop of the course, without a cache: crop to the last block_size tokens, predict, softmax, draw, append
    torch cache    the same with keys and values kept in tensors made beforehand; when the context is cropped the window is encoded
                   again, as ours is
torch uses one thread or one for each core, whichever is faster for this text.

The texts:
    tiny, 64            fits into the context: every token finds the keys and values of those before it
    tiny, 256           the course's crop: the preset reads 64 tokens, so three quarters are written with a window that slides. Each
                        crop shifts every position, and all 64 rows go through the model again, whoever computes it
    tiny, 256, keep 32  the same with context_keep=32: one crop in 33 tokens. All sides follow it
    course, 256         the larger model of the lecture, within its context

"Products alone" is the time of the text's matrix products with a cache, without attention, layer norms, activations and
sampling. Within its context a model reads all weights for each token: "share of bandwidth" compares this rate with the rate of
only reading the weights, measured in the same run.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.common import options_of, require_torch, save, spread, table
from benchmarks.turns import Side, in_turn, serve, sides
from data.cores import available_cores
from gpt.config import GPTConfig, from_preset
from gpt.generation.stream import context_length

SIDES = ("ours", "ours, no cache", "torch", "torch cache")
VOCABULARY = 65  # the characters of tinyshakespeare


@dataclass(frozen=True)
class Text:
    """A text to generate, and its model: ``keep`` is context_keep, 0 for the course's crop."""

    preset: str
    tokens: int
    keep: int = 0

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.preset}, {self.tokens}" + (f", keep {self.keep}" if self.keep else "")

    @property
    def config(self) -> GPTConfig:
        """The model's."""
        return from_preset(self.preset, vocab_size=VOCABULARY)[0]

    def shown(self) -> Callable[[int], int]:
        """How many of the tokens so far the model sees."""
        block_size = self.config.block_size
        return lambda tokens: context_length(tokens, block_size, self.keep or block_size)

    def rows(self) -> list[int]:
        """How many rows go through the model for each token with a cache: one, or after a crop the whole window."""
        shown = [self.shown()(tokens) for tokens in range(self.tokens + 1)]
        return [1 if now == before + 1 else now for before, now in pairwise(shown)]


TEXTS = {text.name: text for text in (Text("tiny", 64), Text("tiny", 256), Text("tiny", 256, 32), Text("course", 256))}


def our_writer(text: Text, use_cache: bool = True) -> Callable[[int], int]:
    """``write(n)`` generates n tokens and returns the number of tokens with the prompt."""
    import tensorlite as tl
    from gpt.generation.stream import limit_threads, stream_tokens
    from gpt.model import GPT
    from tensorlite.memory import keep_freed_memory

    keep_freed_memory()
    tl.manual_seed(0)
    model = GPT(text.config)
    model.eval()

    def write(count: int) -> int:
        with limit_threads(model):
            tokens = stream_tokens(model, np.zeros(1, np.int64), count, use_cache=use_cache, context_keep=text.keep or None)
            return 1 + sum(1 for _ in tokens)

    return write


def torch_writer(text: Text) -> Callable[[int], int]:
    """The loop of the course in torch."""
    import torch

    model, shown = _torch_model(text.config), text.shown()

    @torch.no_grad()
    def write(count: int) -> int:
        ids = torch.zeros((1, 1), dtype=torch.long)
        for _ in range(count):
            logits, _ = model(ids[:, -shown(ids.shape[1]) :])
            probabilities = torch.softmax(logits[:, -1], dim=-1)
            ids = torch.cat([ids, torch.multinomial(probabilities, num_samples=1)], dim=1)
        return ids.shape[1]

    return _with_the_better_threads(write)


def caching_torch_writer(text: Text) -> Callable[[int], int]:
    """The same in torch with a cache."""
    import torch
    from torch.nn import functional as F

    config, shown = text.config, text.shown()
    model = _torch_model(config)
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

    @torch.inference_mode()
    def write(count: int) -> int:
        ids = torch.zeros((1, 1), dtype=torch.long)
        known = 0
        for _ in range(count):
            before, known = known, shown(ids.shape[1])
            new = 1 if known == before + 1 else known
            logits = advance(ids[:, -new:], known - new)
            ids = torch.cat([ids, torch.multinomial(torch.softmax(logits, dim=-1), num_samples=1)], dim=1)
        return ids.shape[1]

    return _with_the_better_threads(write)


def _torch_model(config: GPTConfig) -> Any:
    import torch

    from benchmarks.torch_gpt import TorchGPT
    from tensorlite.memory import keep_freed_memory

    keep_freed_memory()
    torch.manual_seed(0)
    return TorchGPT(config).eval()


def _with_the_better_threads(write: Callable[[int], int]) -> Callable[[int], int]:
    """``write``, after torch was set to the number of threads that generates a few dozen tokens fastest."""
    import torch

    seconds = {}
    for threads in sorted({1, available_cores()}):
        torch.set_num_threads(threads)
        write(8)
        seconds[threads] = _seconds(lambda: write(64))
    torch.set_num_threads(min(seconds, key=lambda threads: seconds[threads]))
    return write


def weights_of(config: GPTConfig) -> list[np.ndarray]:
    """Matrices (in, out) of the shapes of all weights with which a token is multiplied, in order."""
    C, rng = config.n_embd, np.random.default_rng(0)
    shapes = [(C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)] * config.n_layer + [(C, config.vocab_size)]
    return [rng.random(shape, np.float32) for shape in shapes]


def bandwidth(weights: list[np.ndarray]) -> float:
    """Bytes a second when all weights are only read, one after the other, on one core or on all."""

    def read() -> None:
        for weight in weights:
            weight.reshape(-1).dot(weight.reshape(-1))

    return sum(weight.nbytes for weight in weights) / _best(read)


def products_alone(text: Text, weights: list[np.ndarray]) -> float:
    """Seconds of the matrix products for a text with a cache, on one core or on all."""

    def multiply(rows: int) -> None:
        for i, (weight, x, out) in enumerate(zip(weights, arguments[rows], results[rows], strict=True)):
            last = 1 if i > len(weights) - 5 else rows  # of the last block only keys and values need all rows
            np.dot(x[:last], weight, out=out[:last])

    rows = Counter(text.rows())
    arguments = {count: [np.ones((count, weight.shape[0]), np.float32) for weight in weights] for count in rows}
    results = {count: [np.empty((count, weight.shape[1]), np.float32) for weight in weights] for count in rows}
    return sum(times * _best(lambda count=count: multiply(count)) for count, times in rows.items())


def _best(work: Callable[[], object]) -> float:
    """The shortest time of fifty runs, half of them on one thread, in seconds."""
    seconds = []
    for threads in sorted({1, available_cores()}):
        with threadpool_limits(threads, user_api="blas"):
            seconds += [_seconds(work) for _ in range(25)]
    return min(seconds)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(text: Text, rounds: int) -> dict[str, Any]:
    """Measure the sides in turn."""
    weights = weights_of(text.config)
    reachable, alone = bandwidth(weights), products_alone(text, weights)
    read = sum(weight.nbytes for weight in weights)
    one_by_one = set(text.rows()) == {1}
    arguments = [text.preset, str(text.tokens), str(text.keep)]
    with sides([Side(name, "benchmarks.generate", name, *arguments) for name in SIDES]) as processes:
        for side in processes:
            side.ask(min(8, text.tokens))
        seconds = in_turn(processes, rounds, text.tokens)
        memory = {side.name: side.ask(0)["peak_memory"] for side in processes}
    return {
        "text": text.name,
        **asdict(text),
        "block_size": text.config.block_size,
        "weights_mb": read / 1e6,
        "bandwidth_gb": reachable / 1e9,
        "products_alone_tokens_per_second": text.tokens / alone,
        "sides": {
            name: {
                "tokens_per_second": spread([text.tokens / time for time in times]),
                "peak_memory_mb": memory[name] / 2**20,
                "share_of_bandwidth": (
                    read * text.tokens / float(np.median(times)) / reachable if one_by_one and name in ("ours", "torch cache") else None
                ),
                "speed_relative_to_torch": spread([theirs / own for own, theirs in zip(times, seconds["torch"], strict=True)]),
                "speed_relative_to_torch_cache": spread([theirs / own for own, theirs in zip(times, seconds["torch cache"], strict=True)]),
            }
            for name, times in seconds.items()
        },
    }


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each side and text, for the screen."""
    return [
        {
            "text": result["text"],
            "side": name,
            "tokens/s": float(side["tokens_per_second"]["median"]),
            "relative to torch": f"{side['speed_relative_to_torch']['median']:.2f}",
            "from - to": f"{side['speed_relative_to_torch']['min']:.2f} - {side['speed_relative_to_torch']['max']:.2f}",
            "to torch with a cache": f"{side['speed_relative_to_torch_cache']['median']:.2f}",
            "products alone, tokens/s": float(result["products_alone_tokens_per_second"]),
            "share of bandwidth": "" if side["share_of_bandwidth"] is None else f"{100 * side['share_of_bandwidth']:.0f}%",
            "peak memory, MB": float(side["peak_memory_mb"]),
        }
        for result in results
        for name, side in result["sides"].items()
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks generate [TEXT ...] [--rounds N] [--tokens N]``"""
    parser = options_of("generate", __doc__)
    parser.add_argument("texts", nargs="*", default=list(TEXTS), metavar="TEXT", help=f"some of {'; '.join(TEXTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="texts of each side")
    parser.add_argument("--tokens", type=int, help="new tokens in a text (default: as many as its name says)")
    options = parser.parse_args(argv)
    for name in options.texts:
        if name not in TEXTS:
            parser.error(f"there is no text {name!r}: there are {'; '.join(TEXTS)}.")
    require_torch()
    texts = [TEXTS[name] for name in options.texts]
    results = [measure(replace(text, tokens=options.tokens or text.tokens), options.rounds) for text in texts]
    print(table(rows(results)))
    save("generate", results)


if __name__ == "__main__":
    side, preset, tokens, keep = sys.argv[1:]
    text = Text(preset, int(tokens), int(keep))
    writers: dict[str, Callable[[Text], Callable[[int], int]]] = {
        "ours": our_writer,
        "ours, no cache": lambda text: our_writer(text, use_cache=False),
        "torch": torch_writer,
        "torch cache": caching_torch_writer,
    }
    serve(writers[side](text))
