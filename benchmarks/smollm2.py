"""Tokens a second of SmolLM2-135M-Instruct: reading a question, and writing its answer

One conversation, greedy, as gpt.chat has it. Each side is a process with all cores; they take turns, and a round is one answer of each:
    products alone  the matrix products of ours in float32, without anything between them: the bound
    ours            float32, as gpt.chat loads it
    transformers    the reference: the same file, widened to float32; eager, with its cache and scaled_dot_product_attention, and malloc
                    told to keep freed memory, which makes it a little faster
    llama.cpp       through the package xllamacpp or, without that, llama_cpp; it multiplies the 4 bits of the file as they are
    ours --int8     its matrices in 8 bits

transformers (with torch and accelerate) and llama.cpp are optional. A side that is not installed, or stops, is named with the reason.

Two more parts: the time of a step that writes several *texts* at once, and that of a token's products when the weights are kept in fewer
bits and are *widened* tile by tile. For that only the head is multiplied, and its time is scaled to all weights.

    python -m benchmarks smollm2                             everything
    python -m benchmarks smollm2 --parts texts --add         one part; its rounds are added to those that are recorded
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import islice
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import common
from benchmarks.common import median_and_range, options_of, save, spread, table
from benchmarks.turns import Side, serve, sides
from data.cores import available_cores
from gpt.checkpoints.gguf_model import SMOLLM2, chat_template, path_of_gguf, read_gguf
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.weights import weight_shapes
from gpt.config import GPTConfig
from gpt.errors import fail
from gpt.generation.jinja_template import JinjaTemplate
from gpt.generation.llama_decoder import apply_weight
from gpt.generation.memory_order import order_for_a_vector, order_for_one_text, pad_for_two_threads, with_padding
from gpt.generation.stream import stream_tokens
from gpt.int8 import Int8Matrix
from tensorlite.memory import keep_freed_memory

BOUND = "products alone"
SIDES = (BOUND, "ours", "transformers", "llama.cpp", "ours --int8")  # in this order, so what is compared with ours are its neighbours
OPTIONAL = {"transformers": [("transformers", "torch", "accelerate", "gguf")], "llama.cpp": [("xllamacpp",), ("llama_cpp",)]}
PACKAGES = {"transformers": "transformers", "xllamacpp": "xllamacpp", "llama_cpp": "llama-cpp-python"}  # module -> what pip calls it
PARTS = ("conversation", "texts", "widened")
QUESTION = (
    "A friend of mine has never seen the sea. Next month we will travel together by train to a small town on the coast, and stay there "
    "for a week. The beach is long and flat, the water is cold, and the tide comes in quickly. In the evening the fishing boats return "
    "to the harbour, and one can buy what they have caught. What should I tell my friend about the tide before we go?"
)
TEXTS = (1, 2, 5, 8)  # at once
TILE = 2**17  # numbers that are widened at once: 512 KB, which stay in a core's cache

Work = Callable[[int], dict[str, Any]]  # writes so many tokens, and returns the seconds of its parts


# --- the sides ----------------------------------------------------------------------------------------


def our_work(checkpoint: str, ids: list[int], int8: bool = False) -> Work:
    """An answer of ours."""
    model, _, _ = load_model(checkpoint, int8=int8)
    order_for_one_text(model)  # as gpt.chat does
    return lambda count: timed(stream_tokens(model, ids, count, temperature=0))


def transformers_work(checkpoint: str, ids: list[int]) -> Work:
    """An answer of transformers, without what its `generate` does between two tokens."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    keep_freed_memory()
    torch.set_num_threads(available_cores())
    file = path_of_gguf(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()

    @torch.inference_mode()
    def write(count: int) -> Iterator[int]:
        given, cache = torch.tensor([ids]), DynamicCache(config=model.config)
        for _ in range(count):
            given = model(given, None, None, cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)  # the cache grows
            yield int(given)

    return lambda count: timed(write(count))


def xllamacpp_work(checkpoint: str, ids: list[int]) -> Work:
    """An answer of llama.cpp, by its server without HTTP."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(path_of_gguf(checkpoint))
    parameters.n_ctx, parameters.n_parallel = 2048, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = available_cores()
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)

    def work(count: int) -> dict[str, Any]:
        request = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False, "stream": True}
        pieces: list[tuple[float, Any]] = []

        def receive(piece: Any) -> bool:
            pieces.append((time.perf_counter(), piece))
            return False  # it is not to stop

        began = time.perf_counter()
        server.handle_completions(request, receive)
        (first, _), (last, end) = pieces[0], pieces[-1]
        usage = end["usage"]
        if (usage["prompt_tokens"], usage["completion_tokens"]) != (len(ids), count):
            raise RuntimeError(f"llama.cpp was to read {len(ids)} tokens and to write {count}, and did this: {usage}.")
        return {"prompt": first - began, "answer": last - first}

    return work


def llama_cpp_work(checkpoint: str, ids: list[int]) -> Work:
    """An answer of llama.cpp, by llama-cpp-python."""
    import llama_cpp

    threads = {"n_threads": available_cores(), "n_threads_batch": available_cores()}
    model = llama_cpp.Llama(str(path_of_gguf(checkpoint)), n_ctx=2048, verbose=False, **threads)

    def write(count: int) -> Iterator[int]:
        model.reset()
        yield from islice(model.generate(ids, temp=0.0, top_k=1), count)

    return lambda count: timed(write(count))


def products_work(checkpoint: str, ids: list[int]) -> Work:
    """The products of ours alone: of all rows of the prompt in the blocks and of the last one in the head, then of one row a token."""
    weights = [with_padding(pad_for_two_threads(order_for_a_vector(weight))) for weight in random_weights(config_of(checkpoint))]

    def multiply(rows: int) -> float:
        matrices = [np.ones((rows, weight.shape[1]), np.float32) for weight in weights]
        start = time.perf_counter()
        for weight, x in zip(weights, matrices, strict=True):
            apply_weight(x[-1:] if weight is weights[-1] else x, weight)
        return time.perf_counter() - start

    return lambda count: {"prompt": multiply(len(ids)), "answer": sum(multiply(1) for _ in range(count - 1))}


def several_texts(checkpoint: str, ids: list[int]) -> Work:
    """The seconds of a step of ours that writes so many texts at once."""
    model, _, _ = load_model(checkpoint)
    return lambda count: {
        str(texts): timed(stream_tokens(model, np.tile(ids, (texts, 1)), count, temperature=0))["answer"] / (count - 1) for texts in TEXTS
    }


def timed(tokens: Iterator[Any]) -> dict[str, float]:
    """The seconds until the first token, and from there to the last."""
    began = time.perf_counter()
    next(tokens)
    first = time.perf_counter()
    for _ in tokens:
        pass
    return {"prompt": first - began, "answer": time.perf_counter() - first}


def config_of(checkpoint: str) -> GPTConfig:
    """The model's config; no weight is kept."""
    return read_gguf(path_of_gguf(checkpoint), pack=lambda matrix: None)[0]


def random_weights(config: GPTConfig) -> list[np.ndarray]:
    """Matrices (out, in) of the shapes of all weights that a token is multiplied with, in order. They are one array, as the model's are."""
    shapes = dict(weight_shapes(config))
    shapes["lm_head.weight"] = shapes.pop("wte.weight")
    shapes = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    ends = np.cumsum([rows * columns for rows, columns in shapes.values()])
    parts = np.split(np.random.default_rng(0).random(ends[-1], np.float32), ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes.values(), strict=True)]


# --- fewer bits ---------------------------------------------------------------------------------------


class InFewerBits:
    """A matrix (out, in) of float32, and what gives a tile of its rows back out of fewer bits, widened."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight, self.step = weight, max(1, TILE // weight.shape[1])
        self.blocks = Int8Matrix(weight)
        self.row_scales = abs(weight).max(axis=1) / np.float32(127)
        self.whole = np.rint(weight / self.row_scales[:, None]).astype(np.int8)
        self.half = weight.astype(np.float16)
        self.brain = (weight.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16: the upper half of a float32

    def product(self, kind: str, x: np.ndarray, y: np.ndarray, rows: range) -> None:
        """y = weight · x for some of the rows."""
        buffer = np.empty((self.step, x.size), np.float32)
        for start in rows[:: self.step]:
            tile = slice(start, min(start + self.step, rows.stop))
            np.dot(self._widen(kind, tile, buffer[: tile.stop - start]), x, out=y[tile])
            if kind == "8 bits, a scale for each row":
                y[tile] *= self.row_scales[tile]

    def _widen(self, kind: str, tile: slice, buffer: np.ndarray) -> np.ndarray:
        if kind == "float32":
            return self.weight[tile]
        if kind == "8 bits, a scale for 32 numbers":
            return self.blocks[tile]
        if kind == "bfloat16":
            np.left_shift(self.brain[tile], 16, out=buffer.view(np.uint32), dtype=np.uint32)
        else:
            np.copyto(buffer, (self.half if kind == "float16" else self.whole)[tile])
        return buffer


KINDS = ("float32", "bfloat16", "8 bits, a scale for each row", "8 bits, a scale for 32 numbers", "float16")


def widened(config: GPTConfig, rounds: int) -> list[dict[str, dict[str, float]]]:
    """In each round, the seconds of a token's products by kind of weight and number of threads, which share the rows of a matrix."""
    *blocks, head = random_weights(config)
    scale = 1 + sum(weight.size for weight in blocks) / head.size
    del blocks
    bits, x, y = InFewerBits(head), np.ones(head.shape[1], np.float32), np.empty(head.shape[0], np.float32)

    def seconds(kind: str, threads: int) -> float:
        shares = [range(len(y) * i // threads, len(y) * (i + 1) // threads) for i in range(threads)]
        start = time.perf_counter()
        list(pool.map(lambda rows: bits.product(kind, x, y, rows), shares))
        return scale * (time.perf_counter() - start)

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(available_cores()) as pool:
        found = [
            {kind: {str(threads): seconds(kind, threads) for threads in sorted({1, available_cores()})} for kind in KINDS}
            for _ in range(rounds + 1)
        ]
    return found[1:]


# --- the measurement ----------------------------------------------------------------------------------


def why_missing(side: str) -> str:
    """Why a side cannot be started; empty if it can."""
    choices = OPTIONAL.get(side, [()])
    lacking = [[module for module in modules if importlib.util.find_spec(module) is None] for modules in choices]
    if not all(lacking):
        return ""
    return f"{' or '.join(', '.join(modules) for modules in lacking)} is not installed"


def question(checkpoint: str) -> tuple[GPTConfig, list[int]]:
    """The model's config, and the conversation in tokens, as the model reads it before it answers.

    Raises:
        UserError: for a file without a chat template.
        CheckpointError: for a file that cannot be read.
    """
    config, _, tokenizer = read_gguf(path_of_gguf(checkpoint), pack=lambda matrix: None)
    found = chat_template(checkpoint)
    if found is None:
        fail(f"{checkpoint} has no chat template, and this measures a conversation.")
    template = JinjaTemplate(found.source, found.special_tokens, **found.names)
    return config, template.tokenizer(tokenizer).encode(template.prompt([{"role": "user", "content": QUESTION}])).tolist()


def measure(checkpoint: str, parts: Sequence[str], rounds: int, tokens: int) -> dict[str, Any]:
    """Measure some of `PARTS`: for each the seconds of every round."""
    config, ids = question(checkpoint)
    found: dict[str, Any] = {
        "prompt": len(ids),
        "answer": tokens,
        "weights_mb": sum(weight.nbytes for weight in random_weights(config)) / 1e6,
        "versions": {name: metadata.version(name) for module, name in PACKAGES.items() if importlib.util.find_spec(module)},
        "missing": {},
        "peak_memory_mb": {},
        **{part: [] for part in PARTS},
    }

    def start(name: str) -> Side:
        return Side(name, "benchmarks.smollm2", name, checkpoint, json.dumps(ids))

    if "conversation" in parts:
        missing = {side: reason for side in SIDES if (reason := why_missing(side))}
        with sides([start(name) for name in SIDES if name not in missing]) as processes:
            for side in processes:
                try:
                    side.ask(2)
                except RuntimeError as error:
                    if side.name not in OPTIONAL:
                        raise
                    missing[side.name] = str(error).rstrip(".")
            running = [side for side in processes if side.name not in missing]
            for round_ in range(rounds):
                turns = running if round_ % 2 == 0 else running[::-1]
                found["conversation"].append({side.name: side.ask(tokens)["result"] for side in turns})
            found["missing"] = missing
            found["peak_memory_mb"] = {side.name: side.ask(0)["peak_memory"] / 2**20 for side in running if side.name != BOUND}
    if "texts" in parts:
        with sides([start("several texts")]) as (side,):
            side.ask(2)
            found["texts"] = [side.ask(tokens)["result"] for _ in range(rounds)]
    if "widened" in parts:
        found["widened"] = widened(config, rounds)
    return found


def merge(known: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The rounds of both, the larger memory, and as missing what is in no round.

    Raises:
        UserError: unless both measured the same.
    """
    for name in ("prompt", "answer", "weights_mb"):
        if known[name] != new[name]:
            fail(f"these rounds cannot be added: {name} was {known[name]}, and is {new[name]} now. Measure without --add.")
    rounds = {part: known[part] + new[part] for part in PARTS}
    there = {side for round_ in rounds["conversation"] for side in round_}
    memory = [each["peak_memory_mb"] for each in (known, new)]
    return {
        **new,
        **rounds,
        "versions": known["versions"] | new["versions"],
        "missing": {side: reason for side, reason in (known["missing"] | new["missing"]).items() if side not in there},
        "peak_memory_mb": {side: max(each.get(side, 0.0) for each in memory) for side in SIDES if any(side in each for each in memory)},
    }


# --- tables -------------------------------------------------------------------------------------------


def rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each side. Only what multiplies float32 is compared with the products in float32."""
    lines = []
    for side in SIDES:
        own = [round_ for round_ in results["conversation"] if side in round_]
        if not own:
            continue
        line: dict[str, Any] = {"side": side}
        for part, tokens in (("prompt", results["prompt"]), ("answer", results["answer"] - 1)):
            line[f"{part}, tokens/s"] = _range([tokens / round_[side][part] for round_ in own])
            line[f"{part}, to transformers"] = "" if side in ("transformers", BOUND) else _ratio(own, side, "transformers", part, ".2f")
        line["answer, of the products alone"] = _ratio(own, side, BOUND, "answer", ".0%") if side in ("ours", "transformers") else ""
        line["peak memory, MB"] = f"{results['peak_memory_mb'][side]:,.0f}" if side in results["peak_memory_mb"] else ""
        lines.append(line)
    return lines


def texts_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each number of texts."""
    found = {texts: [1e3 * round_[str(texts)] for round_ in results["texts"]] for texts in TEXTS if results["texts"]}
    return [
        {
            "texts at once": texts,
            "ms a step": _range(milliseconds, ".0f"),
            "tokens/s": _range([1e3 * texts / one for one in milliseconds], ".0f"),
        }
        for texts, milliseconds in found.items()
    ]


def widened_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each kind of weight."""
    rounds = results["widened"]
    return [
        {
            "weights in memory": kind,
            **{
                f"ms, {threads} thread{'s' * (threads != '1')}": _range([1e3 * round_[kind][threads] for round_ in rounds], ".0f")
                for threads in rounds[0][kind]
            },
        }
        for kind in (rounds[0] if rounds else ())
    ]


def not_measured(results: dict[str, Any]) -> str:
    """The sides that are missing, in a sentence; empty if all are there."""
    missing = [f"{side} ({reason})" for side, reason in results["missing"].items()]
    return f"Not measured: {', '.join(missing)}." if missing else ""


def _ratio(rounds: list[dict[str, dict[str, float]]], side: str, other: str, part: str, form: str) -> str:
    """The speed of one side relative to another's in the same rounds; empty if there are none."""
    ratios = [round_[other][part] / round_[side][part] for round_ in rounds if other in round_]
    return _range(ratios, form) if ratios else ""


def _range(values: list[float], form: str = "") -> str:
    return median_and_range(spread(values), form)


def main(argv: list[str]) -> None:
    """``python -m benchmarks smollm2 [--parts …] [--rounds N] [--tokens N] [--add] [--checkpoint FILE]``"""
    parser = options_of("smollm2", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: everything)")
    parser.add_argument("--rounds", type=int, default=7, help="answers of each side (default: 7)")
    parser.add_argument("--tokens", type=int, default=32, help="of an answer (default: 32)")
    parser.add_argument("--add", action="store_true", help="add the rounds to those that are recorded")
    parser.add_argument("--checkpoint", default=SMOLLM2, help="another GGUF file with a chat template (default: smollm2)")
    options = parser.parse_args(argv)
    if options.tokens < 2:
        parser.error("an answer needs two tokens: the first one ends the time of the prompt.")
    results = measure(options.checkpoint, options.parts, options.rounds, options.tokens)
    file = common.RESULTS / "smollm2.json"
    if options.add and file.exists():
        results = merge(json.loads(file.read_text(encoding="utf-8"))["results"], results)
    print(
        *filter(None, (table(rows(results)), table(texts_rows(results)), table(widened_rows(results)), not_measured(results))), sep="\n\n"
    )
    save("smollm2", results)


if __name__ == "__main__":
    name, checkpoint, ids = sys.argv[1:]
    works: dict[str, Callable[[str, list[int]], Work]] = {
        "ours": our_work,
        "ours --int8": lambda checkpoint, ids: our_work(checkpoint, ids, int8=True),
        "transformers": transformers_work,
        "llama.cpp": xllamacpp_work if importlib.util.find_spec("xllamacpp") else llama_cpp_work,
        BOUND: products_work,
        "several texts": several_texts,
    }
    serve(works[name](checkpoint, json.loads(ids)))
