"""Functions of ``torch.nn.functional`` that a GPT does not need; they are also names of `tensorlite.nn.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlite.backend import array_module
from tensorlite.compat.composed import cosine_similarity
from tensorlite.ops import batchnorm as _batchnorm
from tensorlite.ops import binary_cross_entropy as _binary_cross_entropy
from tensorlite.ops import indexing as _indexing
from tensorlite.ops import kl_div as _kl_div
from tensorlite.ops import losses as _losses
from tensorlite.ops import padding as _padding
from tensorlite.ops import rectifier as _rectifier
from tensorlite.ops.comparison import clamp
from tensorlite.ops.norm import norm
from tensorlite.ops.rectifier import logsigmoid, softplus
from tensorlite.tensor import Tensor

__all__ = [
    "batch_norm", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cosine_similarity", "elu", "huber_loss", "kl_div", "l1_loss",
    "leaky_relu", "logsigmoid", "normalize", "pad", "smooth_l1_loss", "softplus",
]  # fmt: skip


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """x where x > 0, else negative_slope · x; see `tensorlite.ops.rectifier`."""
    _unsupported("leaky_relu", inplace=inplace)
    return _rectifier.leaky_relu(input, negative_slope)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """x where x > 0, else alpha · (eˣ - 1); see `tensorlite.ops.rectifier`."""
    _unsupported("elu", inplace=inplace)
    return _rectifier.elu(input, alpha)


def normalize(input: Tensor, p: float = 2.0, dim: Any = 1, eps: float = 1e-12) -> Tensor:
    """x divided by its p-norm along ``dim``, or by ``eps`` where that is larger."""
    return input / clamp(norm(input, p, dim, keepdim=True), min=eps)


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Add numbers before and after the elements of the last axes: ``pad`` has two counts for the last axis, then two for the one before, ….

    Args:
        mode: ``constant`` adds the number ``value``. The others add numbers of x: ``replicate`` the outermost one, ``reflect`` the mirror
            image at the outermost one, ``circular`` those of the other end.
    """
    pad = [int(n) for n in pad]
    if mode == "constant":
        return _padding.pad(input, tuple(pad), 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular") or len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ValueError(f"pad: mode is 'constant', 'reflect', 'replicate' or 'circular', with two counts an axis, got {mode!r} and {pad}.")
    for i in range(0, len(pad), 2):
        dim, (before, after) = input.ndim - 1 - i // 2, pad[i : i + 2]
        n = input.shape[dim]
        most = {"reflect": n - 1, "replicate": max(before, after) if n else 0, "circular": n}[mode]
        if max(before, after) > most:
            raise ValueError(f"pad: axis {dim} of {input.shape} has no {max(before, after)} numbers for mode {mode!r}.")
        if mode == "circular":  # a negative count removes elements, which must not be copied to the other end
            kept = np.arange(max(-before, 0), n + min(after, 0))
            places = kept[np.arange(-max(before, 0), len(kept) + max(after, 0)) % len(kept)] if len(kept) else kept
            input = _indexing.index_select(input, dim, Tensor(array_module(input.array).asarray(places)))
            continue
        places = np.arange(-before, n + after)
        if mode == "reflect":
            places = np.where(places < 0, -places, np.where(places >= n, 2 * (n - 1) - places, places))
        input = _indexing.index_select(input, dim, Tensor(array_module(input.array).asarray(places.clip(0, n - 1))))
    return input


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel; see `tensorlite.ops.batchnorm`.

    Args:
        input: (B, C) or (B, C, L).
        running_mean, running_var: (C,). In training they move by ``momentum`` towards the batch's mean and (unbiased) variance;
            otherwise they are used instead of these.
    """
    if input.ndim < 2:
        raise ValueError(f"batch_norm: the input has a batch and channels, (B, C, …), got shape {input.shape}.")
    if training:
        y = _batchnorm.batchnorm(input, weight, bias, eps)
        mean, variance = _batchnorm.batch_statistics(input.array)
        n = input.array.size // input.shape[1]
        for running, now in ((running_mean, mean), (running_var, variance * (n / (n - 1)))):
            if running is not None:
                running.array[...] += momentum * (now.astype(running.dtype, copy=False) - running.array)
                running.version.increment(running.array)
        return y
    if running_mean is None or running_var is None:
        raise ValueError("batch_norm: outside of training it needs running_mean and running_var.")
    shape = (-1, *(1,) * (input.ndim - 2))
    xp = array_module(input.array)
    inverse_std = Tensor(1 / xp.sqrt(running_var.array + eps)).reshape(shape)
    y = (input - running_mean.detach().reshape(shape)) * inverse_std
    y = y if weight is None else y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


# --- losses ---------------------------------------------------------------------------------------------


def l1_loss(input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean") -> Tensor:
    """The absolute error; see `tensorlite.ops.losses`."""
    _unsupported("l1_loss", size_average=size_average, reduce=reduce)
    return _losses.l1_loss(input, target, reduction)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    beta: float = 1.0,
) -> Tensor:
    """The squared error near the target, the absolute one far from it; see `tensorlite.ops.losses`."""
    _unsupported("smooth_l1_loss", size_average=size_average, reduce=reduce)
    return _losses.smooth_l1_loss(input, target, reduction, beta)


def huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None) -> Tensor:
    """delta times `smooth_l1_loss` with beta = delta."""
    _unsupported("huber_loss", weight=weight)
    if delta <= 0:
        raise ValueError(f"huber_loss: delta must be above 0, got {delta}.")
    return delta * _losses.smooth_l1_loss(input, target, reduction, delta)


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The cross-entropy of two classes, for probabilities; see `tensorlite.ops.binary_cross_entropy`.

    Args:
        weight: the weight of each element.
    """
    _unsupported("binary_cross_entropy", size_average=size_average, reduce=reduce)
    if weight is None:
        return _binary_cross_entropy.binary_cross_entropy(input, target, reduction)
    return _weighted("binary_cross_entropy", _binary_cross_entropy.binary_cross_entropy(input, target, "none"), weight, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """The cross-entropy of two classes, for logits; see `tensorlite.ops.binary_cross_entropy`.

    Args:
        weight: the weight of each element.
        pos_weight: the weight of the positive class.
    """
    name = "binary_cross_entropy_with_logits"
    _unsupported(name, size_average=size_average, reduce=reduce)
    of = _binary_cross_entropy.binary_cross_entropy_with_logits
    if weight is None:
        return of(input, target, pos_weight, reduction)
    return _weighted(name, of(input, target, pos_weight, "none"), weight, reduction)


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """The Kullback-Leibler divergence of q from p; ``input`` is log q. See `tensorlite.ops.kl_div`."""
    _unsupported("kl_div", size_average=size_average, reduce=reduce)
    return _kl_div.kl_div(input, target, reduction, log_target)


def _weighted(name: str, loss: Tensor, weight: Tensor, reduction: str) -> Tensor:
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
    loss = loss * weight
    return loss if reduction == "none" else loss.sum() if reduction == "sum" else loss.mean()


def _unsupported(name: str, **options: Any) -> None:
    for option, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: {option}={value!r} is not supported.")
