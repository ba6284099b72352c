"""Which macros each `.cu` file is compiled with, every combination that a pair may ask for; and how large a block of each kernel may be."""

from __future__ import annotations

from typing import Any

from tensorlite.kernels.cuda import adam, attention, cached_attention, clip, cross_entropy, elementwise, embedding, matvec, rows, softmax
from tensorlite.kernels.cuda.attention import variant

TYPES = ("float32", "float16", "bfloat16")
ONE_TYPE: list[dict[str, Any]] = [{"Real": real} for real in TYPES]

# x is stored in In; what comes out, in Out: the same type, or a half precision out of the float32 residual stream
IN_OUT: list[dict[str, Any]] = [{"In": "float32", "Out": out} for out in TYPES] + [{"In": half, "Out": half} for half in TYPES[1:]]

# A row of 768 numbers is 24 a lane, and 64 is the most.
ROWS: list[dict[str, Any]] = [{**types, "PerLane": 24} for types in IN_OUT]
WIDEST: list[dict[str, Any]] = [{"In": "float32", "Out": "bfloat16", "PerLane": 64}]
IN_FOURS: list[dict[str, Any]] = [{**row, "Wide": wide} for row in ROWS + WIDEST for wide in (1, 4)]

CURVES: list[dict[str, Any]] = [{**real, "Curve": curve} for real in ONE_TYPE for curve in ("Relu", "Gelu", "GeluTanh")]

# Every kind of product at the usual size of a head; the largest heads, whose tiles are cut otherwise; and some between.
ATTENTION: list[dict[str, Any]] = [
    *(variant(real, 64, dropout=dropout) for real in TYPES for dropout in (False, True)),
    *(variant(real, 128, dropout=dropout) for real in ("float32", "bfloat16") for dropout in (False, True)),
    *(variant("float32", D, tf32=True) for D in (64, 128)),
    *(variant("bfloat16", D) for D in (32, 80)),
    variant("bfloat16", 64, grouped=True),
]
# A GPU with little shared memory gets other tiles for these.
OTHER_TILES: list[dict[str, Any]] = [
    variant(real, D, dropout=dropout, small_shared=True)
    for real, D, dropout in (("float16", 64, False), ("bfloat16", 64, False), ("bfloat16", 32, False))
]

# A matrix times one vector, a few, or as many as a block takes.
MATVEC: list[dict[str, Any]] = [
    {"Curve": curve, "Gated": int(curve == "Silu"), "Rows": count, "Wide": wide}
    for curve in matvec.CURVES.values()
    for count in (1, 3, matvec.MOST_ROWS)
    for wide in (1, 4)
]

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "activation.cu": CURVES,
    "adam.cu": [{"Half": half} for half in TYPES[1:]],
    "arithmetic.cu": [{"Half": half} for half in TYPES[1:]],
    "attention.cu": ATTENTION + OTHER_TILES,
    "cached_attention.cu": [{"THREADS": cached_attention.THREADS, "HEAD_SIZE": D} for D in (64, cached_attention.LARGEST_HEAD)],
    "cast.cu": [{"Half": half} for half in TYPES[1:]],
    "clip.cu": [{}],
    "columns.cu": ONE_TYPE,
    "cross_entropy.cu": ONE_TYPE,
    "dropout.cu": ONE_TYPE,
    "embedding.cu": ONE_TYPE,
    "layernorm.cu": IN_FOURS,
    "matvec.cu": MATVEC,
    "rmsnorm.cu": IN_FOURS,
    "rotary.cu": [{**real, "HALF": half, "Wide": wide} for real in ONE_TYPE for half, wide in ((32, 4), (3, 1))],
    "softmax.cu": ONE_TYPE,
    "swiglu.cu": [{**real, "Wide": wide} for real in ONE_TYPE for wide in (1, 4)],
}

# The most threads of a block. The stand-in refuses a launch with more: what the compile test has checked is what is launched.
THREADS: dict[str, int] = {
    **dict.fromkeys(("activation_forward", "activation_backward", "add_to_stream", "cast", "dropout"), elementwise.BLOCK),
    **dict.fromkeys(("rotate", "swiglu_forward", "swiglu_backward"), elementwise.BLOCK),
    **dict.fromkeys(("layernorm_forward", "layernorm_backward", "rmsnorm_forward", "rmsnorm_backward"), rows.BLOCK),
    **dict.fromkeys(("attention_forward", "attention_backward_q", "attention_backward_kv", "attention_delta"), attention.THREADS),
    **dict.fromkeys(("cross_entropy_rows", "cross_entropy_backward"), cross_entropy.threads_for(10**9)),
    **dict.fromkeys(("softmax_forward", "softmax_backward"), softmax.threads_for(10**9)),
    **dict.fromkeys(("mark_present", "embedding_backward"), embedding.BLOCK),
    **dict.fromkeys(("sum_squares", "clip_coefficient", "scale"), clip.THREADS),
    "attend_cached": cached_attention.THREADS,
    "adamw": adam.THREADS,
    "matvec": matvec.BLOCK,
    "adamw_rates": 32,
    "cross_entropy_total": 1024,
    "sum_rows": 1024,
}


def dynamic_shared(kernel: str, defines: dict[str, Any]) -> int:
    """The most bytes of dynamic shared memory that a block of ``kernel`` is launched with."""
    if kernel == "embedding_backward":
        return 4 * embedding.WIDEST
    if kernel == "attend_cached":
        return cached_attention.shared_bytes(cached_attention.LARGEST_ROOM, cached_attention.LARGEST_HEAD)
    if kernel.startswith("attention_") and kernel != "attention_delta":
        return attention.shared_bytes(kernel.removeprefix("attention_"), defines)
    return 0
