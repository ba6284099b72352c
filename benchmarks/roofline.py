"""The least time that a training step can take on a GPU, op by op: its launches, bytes and operations, and what these take at best.

The step is that of `gpt.training`, run without a GPU on a stand-in for CuPy that computes nothing here and notes what it is given:
each launch, the arrays that it reads and writes (each once, as if the caches were perfect), and the multiplications and additions of
matrix products. A GPU cannot take less time than its memory needs for the bytes, nor than its tensor cores need for the operations. How
much more it takes is measured by ``python -m benchmarks gpu_kernels``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import options_of, table
from benchmarks.configurations import CONFIGURATIONS, Configuration
from benchmarks.gpu_side import training
from tensorlite.op import Pair, observe
from tensorlite.precision import PRECISIONS
from tensorlite.random import use_generator
from tests.standin.machine import Work

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "gpu.md"
BEGIN, END = "<!-- roofline: begin -->", "<!-- roofline: end -->"


@dataclass(frozen=True)
class Gpu:
    """What the maker promises: bytes a second from the memory, and operations a second of dense products that add in float32."""

    name: str
    bytes_per_second: float
    half: float
    tf32: float
    float32: float

    def operations_per_second(self, precision: str) -> float:
        return {"tf32": self.tf32, "float32": self.float32}.get(precision, self.half)


# NVIDIA's data sheet of the H100 SXM (its figures for tensor cores are with sparsity, twice these); the whitepaper of the Ada architecture,
# appendix A, for the 4090; for the 3060 its specification (192 bits at 15 Gbit/s, 28 multiprocessors, 1.777 GHz), and the rates of a
# multiprocessor from the whitepaper of GA102: 256 products and sums a clock in half precision, 128 in tf32 and in float32.
GPUS = (
    Gpu("H100", 3.35e12, 989e12, 495e12, 67e12),
    Gpu("4090", 1.008e12, 165.2e12, 82.6e12, 82.6e12),
    Gpu("3060", 0.360e12, 25.5e12, 12.7e12, 12.7e12),
)
PRODUCTS_OF_ATTENTION = {"attention_forward": 2, "attention_backward_q": 3, "attention_backward_kv": 4}
OUTSIDE = {"adamw": "AdamW", "adamw_rates": "AdamW", "sum_squares": "clipping", "clip_coefficient": "clipping", "scale": "clipping"}


@dataclass
class Row:
    """What one op has launched in one direction."""

    name: str
    launches: int = 0
    bytes: int = 0
    operations: float = 0.0

    def add(self, work: Work) -> None:
        self.launches += 1
        self.bytes += work.read + work.written
        self.operations += operations_of(work)

    def milliseconds(self, gpu: Gpu, precision: str) -> tuple[float, float]:
        """What the memory needs, and what the tensor cores need."""
        return 1e3 * self.bytes / gpu.bytes_per_second, 1e3 * self.operations / gpu.operations_per_second(precision)


def count(configuration: Configuration, precision: str) -> list[Work]:
    """Everything that the second step of a run launches, without a CUDA graph."""
    from gpt.model import GPT
    from gpt.training.trainer import Trainer
    from tests.standin import installed, machine

    tokens = np.zeros(configuration.model.block_size + 2, np.uint16)
    with installed(computes=False), use_generator(_Zeros()):  # type: ignore[arg-type]
        trainer = Trainer(GPT(configuration.model).to("cupy"), training(configuration, precision, graph=False), tokens, tokens)
        trainer.update()  # makes what is made once
        machine.machine.work.clear()
        with observe(_labelled):
            trainer.update()
        return machine.machine.work


class _Zeros:
    """A generator that draws nothing: how long it takes to draw a hundred million weights is of no interest here."""

    def standard_normal(self, shape: Any) -> np.ndarray:
        return np.zeros(shape, np.float32)

    def uniform(self, low: float, high: float, shape: Any) -> np.ndarray:
        return np.zeros(shape, np.float32)


def _labelled(name: str, pair: Pair) -> Pair:
    """``pair``, with the name of its op and the direction on all that it launches."""
    from tests.standin import machine

    def within(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # keeps the signature, which says what else a backward takes (`Pair`)
        def run(*arguments: Any, **options: Any) -> Any:
            before, machine.machine.op = machine.machine.op, label
            try:
                return function(*arguments, **options)
            finally:
                machine.machine.op = before

        return run

    return Pair(pair.name, within(f"{name} forward", pair.forward), within(f"{name} backward", pair.backward), pair.supports)


def operations_of(work: Work) -> float:
    """Multiplications and additions: of cuBLAS's products, and of those within attention, of which a causal mask leaves half."""
    if work.name not in PRODUCTS_OF_ATTENTION:
        return work.operations
    given = work.arguments
    share = 0.5 if given["is_causal"] else 1.0
    return share * 2 * PRODUCTS_OF_ATTENTION[work.name] * float(np.prod(given["q"])) * given["S"]


def rows_of(work: list[Work]) -> list[Row]:
    """One for each op and direction, the most bytes first; cuBLAS's products apart from what else a linear layer launches."""
    rows: dict[str, Row] = {}
    for one in work:
        name = one.op or OUTSIDE.get(one.name, "between ops")
        if one.operations:
            name = name.replace("linear", "products of linear")
        rows.setdefault(name, Row(name)).add(one)
    return sorted(rows.values(), key=lambda row: -row.bytes)


def outside_products(work: list[Work]) -> int:
    """The bytes of all launches that are no products of cuBLAS."""
    return sum(one.read + one.written for one in work if not one.operations)


def report(configuration: Configuration, precision: str, work: list[Work]) -> str:
    """The table, and a sentence with the sums."""
    lines, least = [], dict.fromkeys(GPUS, 0.0)
    for row in rows_of(work):
        line: dict[str, Any] = {
            "op": row.name,
            "launches": str(row.launches),
            "GB": f"{row.bytes / 1e9:.2f}",
            "TFLOP": f"{row.operations / 1e12:.2f}" if row.operations else "",
        }
        for gpu in GPUS:
            memory, cores = row.milliseconds(gpu, precision)
            line |= {f"{gpu.name}: memory, ms": f"{memory:.2f}", f"{gpu.name}: cores, ms": f"{cores:.2f}" if cores else ""}
            least[gpu] += max(memory, cores)
        lines.append(line)
    at_least = ", ".join(f"{gpu.name} {milliseconds:.1f} ms" for gpu, milliseconds in least.items())
    total = sum(one.read + one.written for one in work)
    return (
        f"{table(lines)}\n\n{configuration.name} in {precision}, {configuration.batch_size} · {configuration.model.block_size} tokens: "
        f"{len(work)} launches; {total / 1e9:.1f} GB, {outside_products(work) / 1e9:.1f} of them outside of cuBLAS's products; at least "
        f"{at_least} (of each row the longer of its two times)."
    )


def updated(document: str, text: str) -> str:
    """``document`` with ``text`` between its two comments."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main(argv: list[str]) -> None:
    """``python -m benchmarks roofline [CONFIGURATION] [--precision P] [--n-layer N …] [--write]``"""
    parser = options_of("roofline", __doc__)
    parser.add_argument("configuration", nargs="?", default="gpt2", choices=list(CONFIGURATIONS), help="the model to start from")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
    for size in (*sizes, "batch_size"):
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, help="instead of the configuration's")
    parser.add_argument("--write", action="store_true", help=f"write the table into {DOCUMENT.name}")
    options = parser.parse_args(argv)
    base = CONFIGURATIONS[options.configuration]
    changes = {size: getattr(options, size) for size in sizes if getattr(options, size) is not None}
    configuration = replace(base, model=replace(base.model, **changes), batch_size=options.batch_size or base.batch_size)
    text = report(configuration, options.precision, count(configuration, options.precision))
    print(text)
    if options.write:
        DOCUMENT.write_text(updated(DOCUMENT.read_text(encoding="utf-8"), text), encoding="utf-8")
