"""Writes the results into docs/performance.md, docs/scaling.md and docs/generation.md, and one table of them into README.md and
README.zh-TW.md.

In each document they are between ``<!-- benchmarks -->`` and ``<!-- /benchmarks -->``. They come only from ``benchmarks/results/*.json``,
with the machine and the versions that are recorded there. Without results a document is not changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import common, generate_gpu, learning, nanogpt_cpu, own_loop, scaling, serve, smollm2, step_parts
from benchmarks.common import options_of, table
from benchmarks.summary import CHINESE, ENGLISH, Words, summary

ROOT = Path(__file__).resolve().parent.parent
PERFORMANCE, SCALING, GENERATION = (ROOT / "docs" / f"{name}.md" for name in ("performance", "scaling", "generation"))
READMES: dict[Path, Words] = {ROOT / "README.md": ENGLISH, ROOT / "README.zh-TW.md": CHINESE}
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"


def train_step(results: list[dict[str, Any]]) -> str:
    """One line a configuration."""
    lines = []
    for result in results:
        sides = result["sides"]
        ours, torch = sides["ours"], sides["torch"]
        ratio = ours["speed_relative_to_torch"]
        line = {
            "whole training steps": f"{result['configuration']}: {result['description']}",
            "tokens/s": f"{ours['tokens_per_second']:,.0f}",
            "relative to torch": f"**{ratio['median']:.2f}** ({ratio['min']:.2f} – {ratio['max']:.2f})",
        }
        for side in ("torch untuned", "torch compiled"):
            if side in sides:
                line[f"to {side}"] = f"{ours['tokens_per_second'] / sides[side]['tokens_per_second']:.2f}"
        if "book" in sides:
            line["the book to torch"] = f"{sides['book']['speed_relative_to_torch']['median']:.2f}"
        line["share of sgemm peak"] = f"{100 * ours['share_of_sgemm_peak']:.0f}%"
        line["peak memory, MB (torch)"] = f"{ours['peak_memory_mb']:,.0f} ({torch['peak_memory_mb']:,.0f})"
        lines.append(line)
    pairs = results[0]["sides"]["ours"]["seconds_per_step"]["count"]
    return (
        "Training steps in float32: a batch, forward, backward, clipping, AdamW. Ours and torch are processes that take turns, and start "
        f"from the same weights; each ratio of tokens a second is the median over {pairs} neighbouring blocks (smallest – largest). "
        "*torch* is eager, with scaled_dot_product_attention, fused AdamW, a thread for each core, and malloc told to keep freed memory "
        "as ours is; *untuned* is the same with malloc as it comes. *The book* is ours with TENSORLITE_KERNELS=book: the pages in "
        "`tensorlite/ops` and nothing else. The sgemm peak is what large products of float32 matrices reach in NumPy on all cores: "
        f"{results[0]['sgemm_peak_gflops']:,.0f} GFLOP/s. The same products in torch, with the BLAS that it brings, reach "
        f"{results[0]['torch_sgemm_peak_gflops']:,.0f}: part of every ratio is the ratio of these two.\n\n{table(lines)}"
    )


def with_slower_products(results: list[dict[str, Any]]) -> str:
    """The same steps where NumPy's BLAS is no faster than torch's, which shows the lead that does not come from the BLAS."""
    lines = [
        {
            "configuration": result["configuration"],
            "relative to torch": f"{result['sides']['ours']['speed_relative_to_torch']['median']:.2f}",
            "share of sgemm peak": f"{100 * result['sides']['ours']['share_of_sgemm_peak']:.0f}%",
        }
        for result in results
    ]
    return (
        "The same with NumPy's BLAS held to AVX2 (`OPENBLAS_CORETYPE=Haswell`), where its products of large matrices are about as fast as "
        f"torch's, {results[0]['sgemm_peak_gflops']:,.0f} to {results[0]['torch_sgemm_peak_gflops']:,.0f} GFLOP/s:\n\n{table(lines)}"
    )


def on_another_machine(results: list[dict[str, Any]]) -> str:
    """The same steps on a machine where torch's BLAS is at least as fast as NumPy's, with both teams."""
    lines = []
    for result in results:
        sides = result["sides"]
        line = {"configuration": f"{result['configuration']}: {result['description']}"}
        for team, side in (("threads", sides["ours"]), ("processes", sides["processes"])):
            ratio = side["speed_relative_to_torch"]
            line[f"{team}, to torch"] = f"{ratio['median']:.2f} ({ratio['min']:.2f} – {ratio['max']:.2f})"
        shares = (f"{sides[side]['share_of_sgemm_peak']:.0%}" for side in ("processes", "torch"))
        line["share of NumPy's sgemm peak (torch)"] = "{} ({})".format(*shares)
        line["peak memory, MB (torch)"] = f"{sides['ours']['peak_memory_mb']:,.0f} ({sides['torch']['peak_memory_mb']:,.0f})"
        lines.append(line)
    return (
        "The same steps on another machine, with both teams. There NumPy's products of large matrices reach "
        f"{results[0]['sgemm_peak_gflops']:,.0f} GFLOP/s and torch's {results[0]['torch_sgemm_peak_gflops']:,.0f}:\n\n{table(lines)}"
    )


def whole_run(results: dict[str, Any]) -> str:
    """nanoGPT's run for a CPU."""
    return (
        f"nanoGPT's run for a CPU, {results['steps']:,} steps on {results['text']}, as one command from start to end, ours and a twin in "
        f"torch one after the other (median, and smallest – largest):\n\n{table(nanogpt_cpu.rows(results))}"
    )


def ops(results: list[dict[str, Any]]) -> str:
    """The ratios to book and torch: one line for each op, one column for each configuration."""
    lines: dict[str, dict[str, Any]] = {}
    for result in results:
        ratios = (result[f"speed_relative_to_{other}"]["median"] for other in ("book", "torch"))
        lines.setdefault(result["op"], {"op": result["op"]})[result["configuration"]] = " / ".join(f"{ratio:.2f}" for ratio in ratios)
    return (
        "Ops that have a faster pair, forward and backward on one thread, at the shapes of these configurations: speed relative to the "
        f"book / to torch's op.\n\n{table(list(lines.values()))}"
    )


def ops_on_a_gpu(results: list[dict[str, Any]]) -> str:
    """The ratio to torch: one line for each op, one column for each configuration and type."""
    found = {(result["op"], f"{result['configuration']}, {result['dtype']}"): result for result in results}
    columns = list(dict.fromkeys(column for _, column in found))
    lines = []
    for op in dict.fromkeys(op for op, _ in found):
        ratios = {column: found[op, column]["speed_relative_to_torch"]["median"] for column in columns if (op, column) in found}
        lines.append({"op": op, **{column: f"{ratios[column]:.2f}" if column in ratios else "" for column in columns}})
    return f"Ops on the GPU, forward and backward, each side as a CUDA graph: speed relative to torch's op.\n\n{table(lines)}"


def matmul(results: dict[str, Any]) -> str:
    """The fastest size of each setting."""
    best: dict[str, dict[str, Any]] = {}
    for result in results["products"]:
        if result["setting"] not in best or result["gflops"]["median"] > best[result["setting"]]["gflops"]["median"]:
            best[result["setting"]] = result
    speeds = "; ".join(f"{setting}: {one['gflops']['median']:,.0f} (n = {one['n']})" for setting, one in best.items())
    text = f"Products of square matrices, GFLOP/s at the best size: {speeds}."
    if "crossover" not in results:
        return text
    return f"{text}\n\nFrom which size on the GPU is faster than all cores of the CPU in float32:\n\n{table(results['crossover'])}"


def written(results: list[dict[str, Any]]) -> str:
    """Tokens a second for each text: ours, and its ratio to torch without and with a cache."""
    lines = []
    for result in results:
        own = result["sides"]["ours"]
        share = own["share_of_bandwidth"]
        lines.append(
            {
                "text": result["text"],
                "tokens/s": float(own["tokens_per_second"]["median"]),
                "relative to the course's loop in torch": f"{own['speed_relative_to_torch']['median']:.1f}",
                "to torch with a cache": f"{own['speed_relative_to_torch_cache']['median']:.2f}",
                "of the memory's bandwidth": "" if share is None else f"{share:.0%}",
            }
        )
    return (
        "A text written token by token, batch 1 (`benchmarks/generate.py` says what each row is; past its context a model with learned "
        f"positions must read the whole window again for each token, whoever computes it):\n\n{table(lines)}"
    )


def served(results: list[dict[str, Any]]) -> str:
    """Tokens a second of the server, by the number of clients."""
    beside = any(one["server"] == "llama.cpp" for result in results for one in result["servers"])
    rounds = results[0]["servers"][0]["tokens_per_second"]["count"]
    other = " *llama.cpp* is its own server, as the package xllamacpp brings it, on the same file: it reads 4 bits a weight, ours 32."
    return (
        "The server with one client and with several, who begin together and read their texts as they are written "
        f"(`benchmarks/serve.py`). The clients run on the same cores, and the servers take turns for {rounds} rounds (median, and "
        f"smallest – largest).{other if beside else ''} The memory is that of the server's process before the first request, and the "
        "largest since it was started, loading included."
        f"\n\n{table(serve.rows(results))}"
    )


def on_a_gpu(results: list[dict[str, Any]]) -> str:
    """Whole training steps on a GPU, a line for each configuration and precision."""
    lines = []
    for result in results:
        sides = result["sides"]
        ours, torch = sides["ours"], sides["torch"]
        ratio = ours["speed_relative_to_torch"]
        line = {
            "configuration": f"{result['configuration']}: {result['description']}",
            "precision": result["precision"],
            "tokens/s": f"{ours['tokens_per_second']:,.0f}",
            "relative to torch": f"**{ratio['median']:.2f}** ({ratio['min']:.2f} – {ratio['max']:.2f})",
        }
        for name, side in (("to torch compiled", "torch compiled"), ("to ours without a graph", "ours, no graph")):
            line[name] = f"{ours['tokens_per_second'] / sides[side]['tokens_per_second']:.2f}" if side in sides else ""
        line["share of product peak"] = f"{ours['share_of_product_peak']:.0%}"
        line["GPU memory, MB (torch)"] = f"{ours['gpu_memory_mb']:,.0f} ({torch['gpu_memory_mb']:,.0f})"
        lines.append(line)
    counts = sorted({result["sides"]["ours"]["seconds_per_step"]["count"] for result in results})
    return (
        "Training steps on a GPU: a batch, forward, backward, clipping, AdamW. Ours is recorded as a CUDA graph. *torch* is eager, with "
        "scaled_dot_product_attention, fused AdamW and autocast for the half precisions; *compiled* is the same under torch.compile. The "
        f"sides take turns as above; a ratio is the median over {' or '.join(map(str, counts))} neighbouring "
        "blocks (smallest – largest). The product peak is what large products in this precision reach there.\n\n" + table(lines)
    )


def on_a_gpu_before(results: list[dict[str, Any]]) -> str:
    """The same of earlier code on another GPU, which has what was not measured since."""
    return f"Earlier code on another GPU. {on_a_gpu(results)}"


def written_on_a_gpu(results: list[dict[str, Any]]) -> str:
    """Tokens a second on a GPU."""
    rounds = results[0]["sides"]["ours"]["tokens_per_second"]["count"]
    return (
        f"Generation on a GPU, in float32, greedy, {results[0]['tokens']} tokens after a prompt of 16, with random weights: one text, and "
        "eight at once. *transformers* is the same model there, eager, with its cache. The sides take turns; speeds are medians of "
        f"{rounds} rounds, and a ratio that of two neighbouring ones (smallest – largest).\n\n{table(generate_gpu.rows(results))}"
    )


def prepared(results: dict[str, Any]) -> str:
    """Decompression alone, and the whole preparation."""
    return (
        f"From an archive laid out like OpenWebText's, {results['characters'] / 1e6:,.0f} million characters in "
        f"{sum(results['documents'].values()):,} documents, to tokens; `xz -dc` alone decompresses it:\n\n{table(results['rows'])}"
    )


def learnt(results: list[dict[str, Any]]) -> str:
    """Validation losses of presets and optimizers."""
    return (
        "What presets and optimizers learn of the default text, with one worker; the median over the seeds (smallest – largest). The "
        "validation loss is in nats a character, over the same 100 batches for all. Each run has a schedule of its own length. A step of "
        "`modern` has as many operations as one of `tiny`; Muon's has more, for Newton–Schulz:\n\n"
        f"{table(learning.rows(results))}"
    )


def parts(results: list[dict[str, Any]]) -> str:
    """What a step is made of."""
    return (
        "What a step is made of, on one core with its share of the batch. The last line compares the products with those of large squares, "
        f"which are in the cache (`benchmarks/step_parts.py`):\n\n{table(step_parts.rows_of(results))}"
    )


def looped(results: list[dict[str, Any]]) -> str:
    """The steps of a model and a loop of one's own."""
    size = results[0]
    return (
        "The course's own class (a module for each head, softmax and mask by ops) in a loop by hand, beside the same text in torch eager: "
        f"{size['layers']} layers, {size['width']} wide, {size['context']} tokens, batch {size['batch']}, dropout {size['dropout']}. "
        "*shared* and *processes* are the three lines of `tl.parallel.shared`; the ratio is the median over "
        f"{size['seconds_per_step']['count']} neighbouring blocks (smallest – largest):\n\n{table(own_loop.rows(results))}"
    )


def on_ranks(results: list[dict[str, Any]]) -> str:
    """Steps on ranks of one machine."""
    first = results[0]
    return (
        f"Configuration {first['configuration']} of [performance.md](performance.md), N = {first['parameter_bytes'] / 1e6:.2f} MB, "
        f"{scaling.SHARDS} shards, one worker a rank; medians of {first['milliseconds']['count']} steps. The weights have the same SHA-256 "
        "in all rows. All ranks are on this machine and talk through its memory; more ranks than cores take turns:"
        f"\n\n{table(scaling.rows(results))}"
    )


def on_hosts(results: list[dict[str, Any]]) -> str:
    """Steps on ranks of two hosts, of which the last row has four."""
    by_model = 2.5 * results[-1]["parameter_bytes"] / 1e6
    return (
        "Two hosts: network namespaces of the same machine with a cable between them (`scripts/two_hosts.sh`), and the ranks by turns on "
        "one and the other. What a machine sends over its network is counted by Linux, with the headers of TCP and IP. Of four ranks two "
        "are on one host: two thirds of what these send in part 2 go to the other host, and all of part 4, which goes round the ranks in "
        f"their order; together 2.5 N = {by_model:.2f} MB.\n\n{table(scaling.rows(results))}"
    )


def on_a_link(results: list[dict[str, Any]]) -> str:
    """Steps over a link of known bandwidth."""
    bandwidth, latency, wire = results[0]["bandwidth"], results[0]["latency"], results[0]["wire"] / 1e6
    return (
        f"The same with a cable that is held to {8 * bandwidth:g} Mbit/s, {bandwidth:g} MB/s, and the time of the sum by the model below, "
        f"with a latency of {latency:g} ms (assumed). The {wire:.2f} MB on the wire alone take {1e3 * wire / bandwidth:.0f} ms."
        f"\n\n{table(scaling.rows(results))}"
    )


def conversed(results: dict[str, Any]) -> str:
    """SmolLM2 beside transformers and llama.cpp, several texts at once, and weights in fewer bits."""
    found = []
    if rounds := results["conversation"]:
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        found.append(
            f"A conversation with SmolLM2-135M-Instruct: a question of {results['prompt']} tokens, and {results['answer']} tokens of the "
            "answer, greedy. Each side is a process that may use all cores. They take turns; a speed is the median of "
            f"{len(rounds)} rounds (smallest – largest), and a ratio that of two speeds in the same round. *Products alone* are the matrix "
            f"products of ours in float32, {results['weights_mb']:,.0f} MB of weights: the bound for a token that reads all of them. "
            "*transformers* computes in float32, eager, with its cache and scaled_dot_product_attention. *llama.cpp* multiplies the 4 bits "
            "of the file as they are. The memory is the largest that the process had at any time, loading included. "
            f"Versions: {versions or 'neither is installed'}.\n\n{table(smollm2.rows(results))}"
        )
        found.append(smollm2.not_measured(results))
    if rounds := results["texts"]:
        found.append(
            "A step of ours in float32 that writes several texts at once reads the weights once for all of them "
            f"({len(rounds)} rounds):\n\n{table(smollm2.texts_rows(results))}"
        )
    if rounds := results["widened"]:
        found.append(
            "The products of a token when the weights are kept in fewer bits, and widened to float32 tile by tile in memory that stays in "
            f"a core's cache; several threads share the rows ({len(rounds)} rounds):\n\n{table(smollm2.widened_rows(results))}"
        )
    return "\n\n".join(filter(None, found))


def conversed_on_another_machine(results: dict[str, Any]) -> str:
    """The conversation on a machine where torch is faster, before the last changes."""
    rounds = len(results["conversation"])
    return (
        "The same conversation on another processor, where torch's products with a vector are faster, and with the code before two cores "
        f"read c_proj ({rounds} rounds):\n\n{table(smollm2.rows(results))}"
    )


SECTIONS: dict[str, Callable[[Any], str]] = {
    "train_step": train_step,
    "train_step_xeon": on_another_machine,
    "step_parts": parts,
    "own_loop": looped,
    "nanogpt_cpu": whole_run,
    "ops": ops,
    "generate": written,
    "serve": served,
    "prepare": prepared,
    "learning": learnt,
    "matmul": matmul,
    "matmul_gpu": matmul,
    "ops_gpu": ops_on_a_gpu,
    "train_step_gpu": on_a_gpu,
    "train_step_gpu_h200": on_a_gpu_before,
    "generate_gpu": written_on_a_gpu,
    "train_step_avx2": with_slower_products,
}

SCALING_SECTIONS: dict[str, Callable[[Any], str]] = {"scaling": on_ranks, "scaling_hosts": on_hosts, "scaling_link": on_a_link}
GENERATION_SECTIONS: dict[str, Callable[[Any], str]] = {"smollm2": conversed, "smollm2_xeon": conversed_on_another_machine}


def recorded(sections: Mapping[str, Callable[[Any], str]] = SECTIONS) -> list[tuple[str, str]]:
    """Every section for which there are results, each with the sentence about its machine, in the order of the document."""
    found = []
    for name, section in sections.items():
        path = common.RESULTS / f"{name}.json"
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            found.append((_measured_on(content["machine"]), section(content["results"])))
    return found


def report(sections: list[tuple[str, str]]) -> str:
    """The sections in one text. The machine is named where it differs from that of the section before."""
    before = ["", *(machine for machine, _ in sections)]
    return "\n\n".join(text if machine == last else f"{machine}\n\n{text}" for (machine, text), last in zip(sections, before, strict=False))


def cut(document: str) -> tuple[str, str, str]:
    """The text before the results in a document, the results, and the text after them.

    Raises:
        ValueError: unless each of the two comments occurs once, in order.
    """
    before, begin, rest = document.partition(BEGIN)
    inside, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}, once each and in this order.")
    return before, inside.strip("\n"), after


def updated(document: str, results: str) -> str:
    """``document`` with ``results`` between the two comments; unchanged if there are none."""
    before, _, after = cut(document)
    return f"{before}{BEGIN}\n{results}\n{END}{after}" if results else document


def is_recorded(document: str) -> bool:
    """Whether the report in ``document`` agrees with the recorded results; it need not contain all of them."""
    _, inside, _ = cut(document)
    return inside == report([(machine, text) for machine, text in recorded() if text in inside])


def main(argv: list[str]) -> None:
    """``python -m benchmarks report``"""
    options_of("report", __doc__).parse_args(argv)
    if not recorded():
        print("there are no results: run the other benchmarks first.")
        return
    contents = {
        PERFORMANCE: report(recorded()),
        SCALING: report(recorded(SCALING_SECTIONS)),
        GENERATION: report(recorded(GENERATION_SECTIONS)),
        **{path: summary(words) for path, words in READMES.items()},
    }
    for path, results in contents.items():
        old = path.read_text(encoding="utf-8")
        new = updated(old, results)
        path.write_text(new, encoding="utf-8")
        print(f"{path.name} is {'as it should be' if new == old else 'written'}.")


def _measured_on(machine: dict[str, Any]) -> str:
    """The machine and the versions in a sentence."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("numpy", "torch", "cupy-cuda12x", "cupy-cuda13x") if name in machine)
    return (
        f"Measured on {machine['date']} on {machine['cores']} cores of {machine['processor']}, {machine['system']}, with "
        f"Python {machine['python']}, {versions}; NumPy's BLAS is {', '.join(machine['blas'])}."
        + (f" GPU: {machine['gpu']}." if "gpu" in machine else "")
    )
