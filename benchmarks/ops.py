"""Each op that has a faster pair: that pair, the book's, and torch's op, forward and backward together.

All three run with their engine: tape, backward, gradients of the inputs. They are measured in turn, round after round. The results are
medians of times, and of ratios within a round.

On the CPU: one thread, like a worker of a training step, at the shapes of one of two workers in the configurations A,
B16 and C. malloc keeps the memory that torch frees, as it does for ours.

With ``--backend cupy``: the whole batch of the configurations course and gpt2 on a GPU, in float32 and in bfloat16. There each side is
recorded as a CUDA graph, as our training steps are, and a time is that of a launch. So the kernels are compared, not how fast Python
queues them. The book is measured there if it can be recorded.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

import tensorlite as tl
from benchmarks.common import gpu_name, options_of, require_torch, save, spread, table
from benchmarks.configurations import CONFIGURATIONS
from tensorlite.backend import Device, to_numpy
from tensorlite.creation import bfloat16_dtype
from tensorlite.kernels.cuda.graph import CaptureError, Recorder
from tensorlite.memory import keep_freed_memory
from tensorlite.op import REGISTRY, Op, choose_pair, use_kernels
from tensorlite.precision import use_precision
from tensorlite.random import draw_dropout_key, use_dropout_key

if TYPE_CHECKING:
    import torch

NAMES = {"numpy": ("A", "B16", "C"), "cupy": ("course", "gpt2")}
SHARDS = {"numpy": 2, "cupy": 1}
PAIRS = {"numpy": "cpu", "cupy": "cuda"}
MIXED = ("bfloat16",)  # add has a pair only for the sum of a float32 array and a half one
DTYPES = {"numpy": ("float32",), "cupy": ("float32", "bfloat16")}


@dataclass(frozen=True)
class Sizes:
    """The sizes of one worker's part: B texts of T tokens, C = H · D channels, V words. Makes arrays of random numbers."""

    B: int
    T: int
    C: int
    H: int
    V: int

    @classmethod
    def of(cls, name: str, shards: int = 1) -> Sizes:
        """The share of one of ``shards`` workers in a configuration."""
        configuration = CONFIGURATIONS[name]
        model = configuration.model
        return cls(configuration.batch_size // shards, model.block_size, model.n_embd, model.n_head, model.vocab_size)

    def normal(self, *shape: int) -> np.ndarray:
        """Floating point numbers."""
        return normal(len(shape), shape)

    def ids(self, *shape: int) -> np.ndarray:
        """Numbers of words."""
        return np.random.default_rng(len(shape)).integers(0, self.V, shape)

    def heads(self) -> list[np.ndarray]:
        """q, k and v (B, H, T, D), as they lie in the output (B, T, 3C) of one linear layer."""
        packed = self.normal(self.B, self.T, 3, self.H, self.C // self.H)
        return [packed[:, :, i].swapaxes(1, 2) for i in range(3)]


def normal(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A million random numbers, repeated: at a GPU's sizes it would take minutes to draw all of them."""
    return np.resize(np.random.default_rng(seed).standard_normal(1_000_003, np.float32), shape)


@dataclass(frozen=True)
class Entry:
    """How an op is called in a GPT.

    Attributes:
        arrays: makes its array arguments.
        torch: the same in torch, on its tensors.
        options: its other arguments.
        masters: which arguments are parameters, which are float32 in every precision of ours; torch uses one type for all.
    """

    arrays: Callable[[], list[np.ndarray]]
    torch: Callable[..., Any]
    options: dict[str, Any]
    masters: tuple[int, ...] = ()


def entries(s: Sizes) -> dict[str, Entry]:
    """One for each op with a faster pair, at the sizes of a configuration."""
    from torch import add as torch_add
    from torch import arange as torch_arange
    from torch import cat as torch_cat
    from torch import matmul as torch_matmul
    from torch import outer as torch_outer
    from torch.nn import functional as F

    def hidden() -> list[np.ndarray]:
        return [s.normal(s.B, s.T, 4 * s.C)]

    def feedforward() -> list[np.ndarray]:  # h and y as large as x
        into, out_of = (s.normal(*shape) / np.float32(shape[1] ** 0.5) for shape in ((4 * s.C, s.C), (s.C, 4 * s.C)))
        return [s.normal(s.B, s.T, s.C), into, s.normal(4 * s.C), out_of, s.normal(s.C)]

    def torch_feedforward(x: Any, hidden_weight: Any, hidden_bias: Any, weight: Any, bias: Any) -> Any:
        return F.linear(F.gelu(F.linear(x, hidden_weight, hidden_bias), approximate="tanh"), weight, bias)

    def self_attention(qkv: Any) -> Any:
        q, k, v = (part.unflatten(2, (s.H, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    def rotate(x: Any) -> Any:
        T, D = x.shape[-2:]
        angles = torch_outer(torch_arange(T, device=x.device), 10000.0 ** (-torch_arange(0, D, 2, device=x.device) / D))
        cos, sin = angles.cos().repeat(1, 2).to(x.dtype), angles.sin().repeat(1, 2).to(x.dtype)
        return x * cos + torch_cat([-x[..., D // 2 :], x[..., : D // 2]], dim=-1) * sin

    KV = max(1, s.H // 3)  # heads of keys: SmolLM2 has three of queries for each

    def rotary_self_attention(qkv: Any) -> Any:
        q, k, v = qkv.unflatten(2, (s.H + 2 * KV, -1)).transpose(1, 2).split([s.H, KV, KV], dim=1)
        return F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True).transpose(1, 2).flatten(2)

    def gated(x: Any) -> Any:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    return {
        "attention": Entry(
            s.heads,
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
            {"is_causal": True},
        ),
        "attention with dropout": Entry(
            s.heads,
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=0.2),
            {"is_causal": True, "dropout_p": 0.2},
        ),
        "causal_self_attention": Entry(lambda: [s.normal(s.B, s.T, 3 * s.C)], self_attention, {"n_head": s.H}),
        "layernorm": Entry(
            lambda: [s.normal(s.B, s.T, s.C), s.normal(s.C), s.normal(s.C)],
            lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias),
            {},
            masters=(1, 2),
        ),
        "rmsnorm": Entry(
            lambda: [s.normal(s.B, s.T, s.C), s.normal(s.C)], lambda x, weight: F.rms_norm(x, weight.shape, weight), {}, masters=(1,)
        ),
        "rotary_embedding": Entry(lambda: s.heads()[:1], rotate, {}),
        "rotary_self_attention": Entry(
            lambda: [s.normal(s.B, s.T, (s.H + 2 * KV) * (s.C // s.H))], rotary_self_attention, {"n_head": s.H, "n_kv_head": KV}
        ),
        "swiglu": Entry(lambda: [s.normal(s.B, s.T, 6 * s.C)], gated, {}),
        "linear": Entry(lambda: [s.normal(s.B, s.T, s.C), s.normal(4 * s.C, s.C), s.normal(4 * s.C)], F.linear, {}, masters=(1, 2)),
        "feedforward": Entry(feedforward, torch_feedforward, {"approximate": "tanh"}, masters=(1, 2, 3, 4)),
        "matmul": Entry(lambda: [s.normal(s.B * s.H, s.T, s.C // s.H), s.normal(s.B * s.H, s.C // s.H, s.T)], torch_matmul, {}),
        "add": Entry(lambda: [s.normal(s.B, s.T, s.C), s.normal(s.B, s.T, s.C)], torch_add, {}, masters=(0,)),
        "softmax": Entry(lambda: [s.normal(s.B * s.H, s.T, s.T)], lambda x: F.softmax(x, -1), {"dim": -1}),
        "gelu": Entry(hidden, F.gelu, {}),
        "gelu by tanh": Entry(hidden, lambda x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
        "relu": Entry(hidden, F.relu, {}),
        "dropout": Entry(lambda: [s.normal(s.B, s.T, s.C)], lambda x: F.dropout(x, 0.2), {"p": 0.2}),
        "embedding": Entry(lambda: [s.ids(s.B, s.T), s.normal(s.V, s.C)], F.embedding, {}, masters=(1,)),
        "cross_entropy": Entry(lambda: [s.normal(s.B * s.T, s.V), s.ids(s.B * s.T)], F.cross_entropy, {}),
    }


def op_of(name: str) -> str:
    """The op that an entry measures: ``gelu by tanh`` is a gelu."""
    return name.split()[0]


def missing() -> list[str]:
    """Ops with a faster pair that the table above does not have."""
    known = {op_of(name) for name in entries(Sizes.of("smoke"))}
    return [name for name, op in REGISTRY.items() if op.faster and name not in known]


def has_pair(name: str, backend: str) -> bool:
    """Whether the op of an entry has a faster pair for arrays of ``backend``."""
    return any(pair.name == PAIRS[backend] for pair in REGISTRY[op_of(name)].faster)


def measure(
    name: str, configuration: str, rounds: int, seconds: float = 0.02, backend: str = "numpy", dtype: str = "float32"
) -> dict[str, Any]:
    """Times of all three for one entry, with ``seconds`` of work for each in a round.

    Raises:
        ValueError: if no faster pair supports the entry's arguments.
    """
    entry, op = entries(Sizes.of(configuration, SHARDS[backend]))[name], REGISTRY[op_of(name)]
    arrays = entry.arrays()
    xp = Device(backend).module
    ours = [
        _as_dtype(xp.asarray(array), "float32" if i in entry.masters else dtype) if array.dtype.kind == "f" else xp.asarray(array)
        for i, array in enumerate(arrays)
    ]
    with use_precision(dtype):
        pair = choose_pair(op, ours, entry.options)
        if pair is op.book:
            raise ValueError(f"no faster pair of {op.name} supports the arguments that benchmarks/ops.py gives it for {name!r}.")
        y, _ = pair.forward(*ours, **entry.options)
        dy = xp.empty_like(y)  # the memory layout that dy has in a model
        dy[...] = 1 if y.ndim == 0 else xp.asarray(normal(0, y.shape)).astype(y.dtype)
        wait = _nothing if xp is np else xp.cuda.get_current_stream().synchronize
        ways = {
            pair.name: _ours(op, ours, entry.options, dy, "fast", wait),
            "torch": _torch(entry.torch, arrays, to_numpy(dy.astype("float32")), backend, dtype),
        }
        if dtype == "float32":  # in a half precision the book computes in another type, so the comparison would not be fair
            with contextlib.suppress(CaptureError):
                ways["book"] = _ours(op, ours, entry.options, dy, "book", wait)
        counts = {}
        for way, run in ways.items():
            run(1)
            counts[way] = max(1, min(1000, round(seconds / run(1))))
        times: dict[str, list[float]] = {way: [] for way in ways}
        for round_ in range(rounds):
            for way in list(ways) if round_ % 2 == 0 else reversed(list(ways)):
                times[way].append(ways[way](counts[way]))
    own = times[pair.name]
    return {
        "op": name,
        "configuration": configuration,
        "backend": backend,
        "dtype": dtype,
        "shapes": [list(array.shape) for array in arrays],
        "pair": pair.name,
        "seconds": {("pair" if way == pair.name else way): spread(values) for way, values in times.items()},
        **{
            f"speed_relative_to_{other}": spread([theirs / ours for ours, theirs in zip(own, times[other], strict=True)])
            for other in ("book", "torch")
            if other in times
        },
    }


def rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line for each measurement, for the screen."""
    return [
        {
            "op": result["op"],
            "configuration": result["configuration"],
            **({"dtype": result["dtype"]} if result["backend"] == "cupy" else {}),
            "shapes": ", ".join("x".join(map(str, shape)) for shape in result["shapes"]),
            "ours, ms": _milliseconds(result["seconds"]["pair"]),
            "book, ms": _milliseconds(result["seconds"]["book"]) if "book" in result["seconds"] else "",
            "torch, ms": _milliseconds(result["seconds"]["torch"]),
            "relative to book": _ratio(result["speed_relative_to_book"]) if "book" in result["seconds"] else "",
            "relative to torch": _ratio(result["speed_relative_to_torch"]),
        }
        for result in results
    ]


def main(argv: list[str]) -> None:
    """``python -m benchmarks ops [OP ...] [--backend numpy|cupy] [--configurations NAME ...] [--rounds N]``"""
    parser = options_of("ops", __doc__)
    parser.add_argument("ops", nargs="*", help="some of them; default: all")
    parser.add_argument("--backend", choices=tuple(NAMES), default="numpy")
    parser.add_argument("--configurations", nargs="+", help="; ".join(f"{backend}: {' '.join(names)}" for backend, names in NAMES.items()))
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each")
    options = parser.parse_args(argv)
    require_torch()
    if unknown := missing():
        sys.exit(f"benchmarks/ops.py has no entry for {', '.join(unknown)}, which has a faster pair: add one to its table.")
    known = entries(Sizes.of("smoke"))
    if strange := [name for name in options.ops if op_of(name) not in map(op_of, known)]:
        sys.exit(f"no entry {', '.join(strange)}: there are {', '.join(known)}.")
    wanted = [name for name in known if has_pair(name, options.backend) and (not options.ops or op_of(name) in map(op_of, options.ops))]
    import torch

    xp = Device(options.backend).module
    keep_freed_memory()
    threads = torch.get_num_threads()
    file, gpu = ("ops", None) if xp is np else ("ops_gpu", gpu_name(xp))
    results: list[dict[str, Any]] = []
    failed = []
    with threadpool_limits(1):
        torch.set_num_threads(1)
        for name in wanted:
            for configuration in options.configurations or NAMES[options.backend]:
                for dtype in MIXED if name == "add" else DTYPES[options.backend]:
                    print(f"{name} in {configuration}, {dtype} …", file=sys.stderr)
                    try:
                        results.append(measure(name, configuration, options.rounds, backend=options.backend, dtype=dtype))
                    except (MemoryError, RuntimeError, ValueError) as error:  # continue with the other measurements
                        print(f"{name} in {configuration}, {dtype}: {error}", file=sys.stderr)
                        failed.append(name)
                    else:
                        save(file, results, gpu=gpu)  # after each measurement, so that it is kept if a later one fails
    torch.set_num_threads(threads)
    print(table(rows(results)))
    if failed:
        sys.exit(f"not measured: {', '.join(dict.fromkeys(failed))}; see above.")


def _ours(op: Op, arrays: list[Any], options: dict[str, Any], dy: Any, kernels: str, wait: Callable[[], Any]) -> Callable[[int], float]:
    """``run(count)``: seconds of one call and its backward, over ``count`` of them."""
    tensors = [tl.Tensor(array) for array in arrays]
    for tensor in tensors:
        tensor.requires_grad = tensor.is_floating_point()
    gradient = tl.Tensor(dy)

    def step() -> None:
        with use_kernels(kernels):
            op(*tensors, **options).backward(gradient)
        for tensor in tensors:
            tensor.grad = None

    if isinstance(dy, np.ndarray):
        return _timed(step, wait)
    recorder = Recorder()
    with use_dropout_key(Device("cupy").asarray(draw_dropout_key())):
        for _ in range(3):
            recorder.run(step)
        recording = recorder.record(step)
    return _timed(recording.launch, wait)


def _torch(function: Callable[..., Any], arrays: list[np.ndarray], dy: np.ndarray, backend: str, dtype: str) -> Callable[[int], float]:
    """The same for torch, whose floating point arguments all have one type."""
    import torch

    place = "cpu" if backend == "numpy" else "cuda"

    def there(array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array).to(place)
        return tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor

    tensors = [there(array).requires_grad_(array.dtype.kind == "f") for array in arrays]
    outcome = function(*tensors)
    gradient = there(dy).to(outcome.dtype)
    del outcome

    def step() -> None:
        function(*tensors).backward(gradient)
        for tensor in tensors:
            tensor.grad = None

    if backend == "numpy":
        return _timed(step, _nothing)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # torch requires some steps on another stream before a capture
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        step()
    return _timed(graph.replay, torch.cuda.synchronize)


def _timed(work: Callable[[], Any], wait: Callable[[], Any]) -> Callable[[int], float]:
    """``run(count)``: seconds of ``work``, over ``count`` times; ``wait`` returns when all of it is done."""

    def run(count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            work()
        wait()
        return (time.perf_counter() - start) / count

    return run


def _nothing() -> None:
    """On the CPU there is nothing to wait for."""


def _as_dtype(array: Any, dtype: str) -> Any:
    return array.astype(bfloat16_dtype() if dtype == "bfloat16" else dtype, copy=False)


def _milliseconds(seconds: dict[str, float]) -> float:
    return 1000 * seconds["median"]


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} - {ratio['max']:.2f})"
