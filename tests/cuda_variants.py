"""Which macros each `.cu` file is compiled with: every combination that a pair may ask for."""

from __future__ import annotations

from typing import Any

from tensorlite.kernels.cuda.attention import variant

TYPES = ("float32", "float16", "bfloat16")
ONE_TYPE: list[dict[str, Any]] = [{"Real": real} for real in TYPES]

# x is stored in In; what comes out, in Out: the same type, or a half precision out of the float32 residual stream
IN_OUT: list[dict[str, Any]] = [{"In": "float32", "Out": out} for out in TYPES] + [{"In": half, "Out": half} for half in TYPES[1:]]

# A row of 768 numbers is 24 a lane, and 64 is the most.
ROWS: list[dict[str, Any]] = [{**types, "PerLane": 24} for types in IN_OUT]
WIDEST: list[dict[str, Any]] = [{"In": "float32", "Out": "bfloat16", "PerLane": 64}]

CURVES: list[dict[str, Any]] = [{**real, "Curve": curve} for real in ONE_TYPE for curve in ("Relu", "Gelu", "GeluTanh")]

# Every kind of product at the usual size of a head; the largest heads, whose tiles are cut otherwise; and some between.
ATTENTION: list[dict[str, Any]] = [
    *(variant(real, 64, dropout=dropout) for real in TYPES for dropout in (False, True)),
    *(variant(real, 128, dropout=dropout) for real in ("float32", "bfloat16") for dropout in (False, True)),
    *(variant("float32", D, tf32=True) for D in (64, 128)),
    *(variant("bfloat16", D) for D in (32, 80)),
]

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "activation.cu": CURVES,
    "adam.cu": [{}],
    "arithmetic.cu": [{"Half": half} for half in TYPES[1:]],
    "attention.cu": ATTENTION,
    "cast.cu": [{"Half": half} for half in TYPES[1:]],
    "clip.cu": [{}],
    "columns.cu": ONE_TYPE,
    "cross_entropy.cu": ONE_TYPE,
    "dropout.cu": ONE_TYPE,
    "embedding.cu": ONE_TYPE,
    "layernorm.cu": ROWS + WIDEST,
    "rmsnorm.cu": ROWS,
    "softmax.cu": ONE_TYPE,
}
