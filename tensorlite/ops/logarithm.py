"""Logarithms to other bases, and those that keep their digits near 1."""

from __future__ import annotations

import math
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import to_floating


def log1p_forward(x: Array) -> tuple[Array, Any]:
    """y = ln(1 + x), also for an x so small that 1 + x is rounded to 1: there y ≈ x

    Saves: x.
    Source: equals torch.log1p.
    """
    x = to_floating(x)
    return array_module(x).log1p(x), x


def log1p_backward(dy: Array, saved: Any) -> Array:
    """dx = dy / (1 + x)"""
    return dy / (1 + saved)


log1p = Op(log1p_forward, log1p_backward)


def expm1_forward(x: Array) -> tuple[Array, Any]:
    """y = eˣ - 1, the inverse of log1p, also for an x so small that eˣ is rounded to 1

    Saves: y.
    Source: equals torch.expm1.
    """
    y = array_module(x).expm1(to_floating(x))
    return y, y


def expm1_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = eˣ = y + 1."""
    return dy * (saved + 1)


expm1 = Op(expm1_forward, expm1_backward)


def log2_forward(x: Array) -> tuple[Array, Any]:
    """y = log₂ x

    Saves: x.
    Source: equals torch.log2.
    """
    x = to_floating(x)
    return array_module(x).log2(x), x


def log2_backward(dy: Array, saved: Any) -> Array:
    """log₂ x = ln x / ln 2, so dx = dy / (x ln 2)."""
    return dy / (saved * math.log(2))


log2 = Op(log2_forward, log2_backward)


def log10_forward(x: Array) -> tuple[Array, Any]:
    """y = log₁₀ x

    Saves: x.
    Source: equals torch.log10.
    """
    x = to_floating(x)
    return array_module(x).log10(x), x


def log10_backward(dy: Array, saved: Any) -> Array:
    """log₁₀ x = ln x / ln 10, so dx = dy / (x ln 10)."""
    return dy / (saved * math.log(10))


log10 = Op(log10_forward, log10_backward)
