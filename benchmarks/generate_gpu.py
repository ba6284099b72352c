"""Tokens a second in generation on a GPU, in float32, greedy, after a prompt of 16 tokens; one text, and eight at once.

The weights are random, because the amount of work does not depend on the tokens. Two sides take turns in one process:
    ours           `gpt.generation.stream.stream_tokens`, whose step is recorded as a CUDA graph
    transformers   the same model of transformers, eager, with its cache of keys and values (scaled_dot_product_attention)
Both read every token on the host, as a program that prints them does.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import tensorlite as tl
from benchmarks.common import gpu_name, options_of, require_torch, save, spread, table
from benchmarks.configurations import CONFIGURATIONS
from gpt.config import GPTConfig
from gpt.generation.stream import stream_tokens
from gpt.model import GPT
from tensorlite.backend import Device

MODELS = ("gpt2", "smollm2")
TEXTS = (1, 8)
PROMPT, TOKENS = 16, 100


def our_writer(config: GPTConfig, texts: int) -> Callable[[int], None]:
    """``write(n)`` generates n tokens of each text."""
    tl.manual_seed(0)
    model = GPT(config).to("cupy").eval()
    ids = _prompt(config, texts)

    def write(count: int) -> None:
        for _ in stream_tokens(model, ids, count, temperature=0):
            pass

    return write


def their_writer(config: GPTConfig, texts: int) -> Callable[[int], None]:
    """The same with a model of transformers."""
    import torch

    transformers = importlib.import_module("transformers")
    sizes = {"vocab_size": config.vocab_size, "initializer_range": 0.02}
    if config.model == "llama":
        theirs = transformers.LlamaConfig(
            hidden_size=config.n_embd,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_key_value_heads=config.kv_heads,
            max_position_embeddings=config.block_size,
            tie_word_embeddings=True,
            **sizes,
        )
        model: Any = transformers.LlamaForCausalLM(theirs)
    else:
        theirs = transformers.GPT2Config(
            n_embd=config.n_embd, n_layer=config.n_layer, n_head=config.n_head, n_positions=config.block_size, **sizes
        )
        model = transformers.GPT2LMHeadModel(theirs)
    model = model.cuda().eval()
    prompt = torch.from_numpy(_prompt(config, texts)).to("cuda")

    @torch.inference_mode()
    def write(count: int) -> None:
        given, cache = prompt, transformers.DynamicCache(config=model.config)
        for _ in range(count):
            logits = model(given, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            given = logits[:, -1:].argmax(-1)
            given.tolist()

    return write


def measure(name: str, texts: int, rounds: int, tokens: int) -> dict[str, Any]:
    """Let both sides write ``tokens`` tokens of each text in turn."""
    config = CONFIGURATIONS[name].model
    writers = {"ours": our_writer(config, texts), "transformers": their_writer(config, texts)}
    seconds: dict[str, list[float]] = {side: [] for side in writers}
    for write in writers.values():
        write(min(tokens, 8))  # compiles, and records
    for round_ in range(rounds):
        for side in sorted(writers, reverse=round_ % 2 == 1):
            start = time.perf_counter()
            writers[side](tokens)
            seconds[side].append(time.perf_counter() - start)
    return {
        "model": name,
        "description": CONFIGURATIONS[name].description,
        "texts": texts,
        "tokens": tokens,
        "sides": {
            side: {
                "tokens_per_second": spread([texts * tokens / time for time in times]),
                "speed_relative_to_transformers": spread(
                    [theirs / own for own, theirs in zip(times, seconds["transformers"], strict=True)]
                ),
            }
            for side, times in seconds.items()
        },
    }


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each model and number of texts."""
    return [
        {
            "model": result["model"],
            "texts at once": result["texts"],
            "tokens/s": f"{result['sides']['ours']['tokens_per_second']['median']:,.0f}",
            "transformers": f"{result['sides']['transformers']['tokens_per_second']['median']:,.0f}",
            "ratio": "{median:.1f} ({min:.1f} – {max:.1f})".format(**result["sides"]["ours"]["speed_relative_to_transformers"]),
        }
        for result in results
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """``python -m benchmarks generate_gpu [MODEL ...]``"""
    parser = options_of("generate_gpu", __doc__)
    parser.add_argument("models", nargs="*", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    options = parser.parse_args(argv)
    require_torch()
    results = [measure(name, texts, options.rounds, options.tokens) for name in options.models or MODELS for texts in TEXTS]
    print(table(rows(results)))
    save("generate_gpu", results, gpu=gpu_name(Device("cupy").module))


def _prompt(config: GPTConfig, texts: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (texts, min(PROMPT, config.block_size // 2)))
