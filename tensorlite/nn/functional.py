"""The ops under the names and with the arguments of ``torch.nn.functional``.

The mathematics is on the op's page in `tensorlite.ops`. This page only converts torch's argument order and options to
those of the op, and refuses options that are not supported.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlite.backend import array_module
from tensorlite.lazy import on_demand
from tensorlite.ops import attention as _attention
from tensorlite.ops import cross_entropy as _cross_entropy
from tensorlite.ops import dropout as _dropout
from tensorlite.ops import embedding as _embedding
from tensorlite.ops import layernorm as _layernorm
from tensorlite.ops import losses as _losses
from tensorlite.ops import rmsnorm as _rmsnorm
from tensorlite.ops import softmax as _softmax
from tensorlite.ops.activation import gelu, relu, sigmoid, silu, tanh
from tensorlite.ops.feedforward import feedforward
from tensorlite.ops.grouped_queries import repeat_heads
from tensorlite.ops.linear import linear
from tensorlite.ops.rotary import rotary_embedding
from tensorlite.ops.rotary_self_attention import rotary_self_attention
from tensorlite.ops.self_attention import causal_self_attention
from tensorlite.ops.swiglu import swiglu
from tensorlite.tensor import Tensor, is_floating

__all__ = [
    "causal_self_attention",
    "cross_entropy",
    "dropout",
    "embedding",
    "feedforward",
    "gelu",
    "layer_norm",
    "linear",
    "log_softmax",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "rotary_self_attention",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "swiglu",
    "tanh",
]  # fmt: skip


def embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """Look token ids up in a table; see `tensorlite.ops.embedding`.

    Args:
        padding_idx: a row that gets no gradient; negative counts from the end.
    """
    _unsupported("embedding", max_norm=max_norm, scale_grad_by_freq=scale_grad_by_freq, sparse=sparse)
    return _embedding.embedding(input, weight, check_padding_idx(padding_idx, weight.shape[0]))


def check_padding_idx(padding_idx: int | None, rows: int) -> int | None:
    """``padding_idx`` counted from the front.

    Raises:
        ValueError: if the table has no such row.
    """
    if padding_idx is None:
        return None
    if not -rows <= padding_idx < rows:
        raise ValueError(f"embedding: padding_idx {padding_idx} is no row of a table with {rows} rows.")
    return padding_idx % rows


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise over the trailing axes ``normalized_shape``; see `tensorlite.ops.layernorm`."""
    shape = _trailing("layer_norm", input, normalized_shape, weight=weight, bias=bias)
    if len(shape) == 1:
        return _layernorm.layernorm(input, weight, bias, eps)
    return _layernorm.layernorm(_flat(input, shape), _flat(weight, shape), _flat(bias, shape), eps).reshape(input.shape)


def rms_norm(input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Divide by the root mean square over the trailing axes ``normalized_shape``; see `tensorlite.ops.rmsnorm`.

    Args:
        eps: None stands for the smallest step of the input's dtype, as in torch.
    """
    shape = _trailing("rms_norm", input, normalized_shape, weight=weight)
    if len(shape) == 1:
        return _rmsnorm.rmsnorm(input, weight, eps)
    return _rmsnorm.rmsnorm(_flat(input, shape), _flat(weight, shape), eps).reshape(input.shape)


def dropout(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, *, generator: np.random.Generator | None = None
) -> Tensor:
    """Set random elements to zero while training; return the input otherwise. See `tensorlite.ops.dropout`.

    Args:
        generator: for the random bits, by default the thread's (torch has no such argument).
    """
    _unsupported("dropout", inplace=inplace)
    check_probability("dropout", p)
    return _dropout.dropout(input, p, generator=generator) if training and p > 0 else input


def check_probability(name: str, p: float) -> None:
    """Raise a ValueError if ``p`` is not between 0 and 1."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name}: the probability p is between 0 and 1, got {p}.")


def softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Probabilities along ``dim``, computed in ``dtype`` if given; see `tensorlite.ops.softmax`."""
    return _softmax.softmax(_cast(input, dtype), _integer_dim("softmax", dim))


def log_softmax(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """The logarithm of `softmax`, computed without overflow."""
    return _softmax.log_softmax(_cast(input, dtype), _integer_dim("log_softmax", dim))


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """The cross-entropy of scores and targets; see `tensorlite.ops.cross_entropy`.

    Args:
        input: scores (N, V), (V,), or (N, V, d1, …).
        target: class numbers, the shape of ``input`` without the class axis; or, floating point,
            probabilities of the shape of ``input``.
        weight: (V,) the weight of each class. A mean is then the weighted mean.
        ignore_index: targets of this value are ignored.
        label_smoothing: the share of the probability that is spread evenly over all classes.
    """
    _unsupported("cross_entropy", size_average=size_average, reduce=reduce)
    if target.is_floating_point():
        return _with_probabilities(input, target, weight, reduction, label_smoothing)
    if weight is None:
        return _cross_entropy.cross_entropy(input, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
    class_axis = _class_axis(input)
    log_p = log_softmax(input, class_axis)
    loss = nll_loss(log_p, target, weight, ignore_index=ignore_index, reduction="none")
    counts = _weight_of_targets(weight, target, ignore_index)
    if label_smoothing:
        spread = -(log_p * _along_classes(weight, input)).sum(class_axis).masked_fill(Tensor.wrap(target.array == ignore_index), 0)
        loss = (1 - label_smoothing) * loss + label_smoothing / input.shape[class_axis] * spread
    return _reduced("cross_entropy", loss, reduction, counts.sum())


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``-input`` at the target, for an ``input`` of log-probabilities; arguments as in `cross_entropy`."""
    _unsupported("nll_loss", size_average=size_average, reduce=reduce)
    if weight is None:
        return _cross_entropy.nll_loss(input, target, ignore_index=ignore_index, reduction=reduction)
    if weight.shape != (input.shape[_class_axis(input)],):
        raise ValueError(f"cross_entropy: input {input.shape} needs one weight for each class, got weight {weight.shape}.")
    loss = _cross_entropy.nll_loss(input, target, ignore_index=ignore_index, reduction="none")
    counts = _weight_of_targets(weight, target, ignore_index)
    return _reduced("nll_loss", loss * counts, reduction, counts.sum())


def _with_probabilities(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, label_smoothing: float) -> Tensor:
    """-Σᵥ q_v w_v log p_v for targets q that are probabilities. The mean is over the rows and does not depend on the weights."""
    if target.shape != input.shape:
        raise ValueError(f"cross_entropy: probabilities as target must have the shape of the input, {input.shape}, got {target.shape}.")
    class_axis = _class_axis(input)
    classes = input.shape[class_axis]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    log_p = log_softmax(input, class_axis)
    loss = -(log_p * target * (1 if weight is None else _along_classes(weight, input))).sum(class_axis)
    return _reduced("cross_entropy", loss, reduction, math.prod(input.shape) / classes if classes else 0)


def _class_axis(input: Tensor) -> int:
    return 1 if input.ndim > 1 else 0


def _along_classes(weight: Tensor, input: Tensor) -> Any:
    """``weight`` (V,) as a constant that broadcasts along the class axis of ``input``."""
    after = input.ndim - 1 - _class_axis(input)
    return weight.detach().array.reshape(-1, *(1,) * after)


def _weight_of_targets(weight: Tensor, target: Tensor, ignore_index: int) -> Any:
    """The weight of each target, as a constant: that of its class, or 0 where it is ignored."""
    kept = target.array != ignore_index
    xp = array_module(kept)
    return xp.where(kept, weight.array[xp.where(kept, target.array, 0)], 0)


def _reduced(name: str, loss: Tensor, reduction: str, total: Any) -> Tensor:
    """``loss`` itself, its sum, or its sum divided by ``total``. For a total of 0 the result is nan, with the gradient 0."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
    if reduction != "mean":
        return loss if reduction == "none" else loss.sum()
    xp = array_module(loss.array)
    total = xp.asarray(total, loss.dtype)
    return (loss.sum() / xp.where(total == 0, 1, total)).masked_fill(Tensor.wrap(total == 0), math.nan)


def mse_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """The squared error; see `tensorlite.ops.losses`."""
    _unsupported("mse_loss", size_average=size_average, reduce=reduce)
    return _losses.mse_loss(input, target, reduction=reduction)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> Tensor:
    """Attention of (…, T, D) queries to (…, S, D) keys; see `tensorlite.ops.attention`.

    Args:
        attn_mask: booleans, True where a query may see a key, or numbers that are added to the scores.
        dropout_p: applied whenever it is not 0; pass 0 outside of training, as in torch.
        enable_gqa: there may be fewer heads of keys and values than of queries: each serves several, which are neighbours.
        generator: where dropout's random bits come from, by default the thread's stream (torch has no such argument).
        recompute: keep less for backward, which computes the weights again (nor this one).
    """
    check_probability("scaled_dot_product_attention", dropout_p)
    attend = functools.partial(
        _attention.attention, is_causal=is_causal, scale=scale, dropout_p=dropout_p, generator=generator, recompute=recompute
    )
    if not enable_gqa or query.shape[-3] == key.shape[-3] == value.shape[-3]:
        return attend(query, key, value, attn_mask)
    H = query.shape[-3]
    if attn_mask is None and key.shape[-3] == value.shape[-3] and not H % (key.shape[-3] or 1):
        # A group is an axis along which keys broadcast.
        y = attend(query.unflatten(-3, (key.shape[-3], -1)), key.unsqueeze(-3), value.unsqueeze(-3))
        return y.flatten(-4, -3)
    return attend(query, *(_for_every_query_head(x, H) for x in (key, value)), attn_mask)


def _for_every_query_head(x: Tensor, heads: int) -> Tensor:
    """x (…, H, S, D) with each head repeated until there are ``heads``; see `tensorlite.ops.grouped_queries`."""
    if not x.shape[-3] or heads % x.shape[-3]:
        raise ValueError(f"scaled_dot_product_attention: {heads} heads of queries cannot share {x.shape[-3]} heads of keys or values.")
    return x if heads == x.shape[-3] else repeat_heads(x, heads // x.shape[-3])


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """1 at each class number and 0 elsewhere, along a new last axis; int64, no gradient.

    Args:
        num_classes: -1 takes the largest class number plus 1.
    """
    ids = tensor.array
    if ids.dtype.kind not in "iu":
        raise TypeError(f"one_hot: class numbers must be integers, got {ids.dtype}.")
    if num_classes == -1:
        if ids.size == 0:
            raise ValueError("one_hot: the number of classes cannot be seen in an empty tensor: pass num_classes.")
        num_classes = int(ids.max()) + 1
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        raise ValueError(f"one_hot: class numbers go from 0 to {num_classes - 1} here, got {int(ids.min())} to {int(ids.max())}.")
    xp = array_module(ids)
    return Tensor.wrap((ids[..., None] == xp.arange(num_classes)).astype(np.int64))


def _unsupported(name: str, **options: Any) -> None:
    """Refuse options of torch's that are not supported, unless they have their default."""
    for option, value in options.items():
        if value is not None and value is not False:
            raise NotImplementedError(f"{name}: {option}={value!r} is not supported.")


def _trailing(name: str, input: Tensor, normalized_shape: Sequence[int], **parameters: Tensor | None) -> tuple[int, ...]:
    """``normalized_shape`` as a tuple, after a check that it is the end of the input's shape, and the shape of the parameters."""
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or input.shape[-len(shape) :] != shape:
        raise ValueError(f"{name}: normalized_shape {shape} is not the end of the input's shape {input.shape}.")
    for parameter, value in parameters.items():
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: normalized_shape {shape} needs a {parameter} of that shape, got {value.shape}.")
    return shape


def _flat(x: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    """The trailing axes ``shape`` as one axis."""
    return None if x is None else x.reshape(*x.shape[: x.ndim - len(shape)], math.prod(shape))


def _integer_dim(name: str, dim: int | None) -> int:
    if dim is None:
        raise TypeError(f"{name}: give the axis, for instance dim=-1.")
    return dim


def _cast(x: Tensor, dtype: Any) -> Tensor:
    """x in a floating point ``dtype``; a softmax of integers is not defined."""
    if dtype is None or np.dtype(dtype) == x.dtype:
        return x
    if not is_floating(np.dtype(dtype)):
        raise TypeError(f"softmax: dtype must be floating point, got {dtype}.")
    return x.to(np.dtype(dtype))


_find = on_demand(
    "tensorlite.nn.functional",
    {
        "tensorlite.nn.further_functional": """
            batch_norm binary_cross_entropy binary_cross_entropy_with_logits cosine_similarity elu huber_loss kl_div l1_loss leaky_relu
            logsigmoid normalize pad smooth_l1_loss softplus
        """
    },
)


def __getattr__(name: str) -> Any:
    return _find(name)  # names that a GPT does not need
