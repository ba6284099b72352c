"""Muon: a matrix moves by an orthogonal one, so that each of its directions moves by the same amount.

    velocity    a running mean of the gradient, as in Adam
    U Vᵀ        of velocity = U S Vᵀ the directions, without the singular values S: `newton_schulz`
    p ← p - lr · scale · U Vᵀ

**Why orthogonal.** To first order a step Δ changes the loss by ⟨G, Δ⟩, the sum of the products of the numbers of G and Δ. Which Δ of
a given size is best depends on how size is measured. By the root of the sum of squares it is a multiple of -G: gradient descent. By the
largest number it is a multiple of -sign(G): Adam, but for its running means. But a layer multiplies its matrix with x, and
|Δ x| ≤ ‖Δ‖₂ |x|: what bounds the change of its output is the spectral norm ‖Δ‖₂, the largest singular value of Δ. Let that be at most η.
Then with G = U S Vᵀ

    ⟨G, Δ⟩ = Σᵢ sᵢ · uᵢᵀ Δ vᵢ ≥ -η Σᵢ sᵢ          since |uᵢᵀ Δ vᵢ| ≤ ‖Δ‖₂ for unit vectors,

and Δ = -η U Vᵀ reaches this bound, because uᵢᵀ U Vᵀ vᵢ = 1 for every i. So the steepest descent under the spectral norm keeps the
directions of G and makes their sizes equal. In words: the gradient of a layer is a sum of dy xᵀ over the tokens, and directions that many
tokens share dominate it. Gradient descent learns these alone. Here the rare directions move the matrix as far.

**Which parameters.** The argument is about matrices that multiply hidden vectors. An embedding is a table, of which a token reads one
row; the output layer has a row for each token, too; gains and biases are no matrices. AdamW trains these: `MuonWithAuxAdam` does both.

**Several matrices in one.** c_attn holds the matrices of the queries, keys and values. They read the same x and are otherwise
independent, so the argument is about each of them. The option ``split`` names their rows.

Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Bernstein, Newhouse 2024, "Old optimizer, new norm",
for the derivation; Liu et al. 2025, "Muon is scalable for LLM training", for weight decay and the scale that suits AdamW's learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.optim.adam import adamw_update, check_adam_options
from tensorlite.optim.optimizer import Optimizer
from tensorlite.optim.rule import Rule
from tensorlite.optim.state import Span
from tensorlite.tensor import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SCALES = ("original", "match_rms_adamw")
MOST_STEPS = 99  # torch's limit, too


@Rule
def newton_schulz(g: Array, coefficients: tuple[float, float, float] = COEFFICIENTS, steps: int = 5, eps: float = 1e-7) -> Array:
    """U Vᵀ of the matrix g = U S Vᵀ, nearly, without finding U, S or V

        X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X          from X = g / |g|

    With X = U S Vᵀ it is X Xᵀ = U S² Uᵀ, so the right side is U (a S + b S³ + c S⁵) Vᵀ: U and V stay, and every singular value s goes
    through φ(s) = a s + b s³ + c s⁵ by itself. It takes products of matrices only, which is what computers do fastest. Divided by its
    length |g| = √(Σ sᵢ²), a matrix has no singular value above 1.

    φ(s) = (15 s - 10 s³ + 3 s⁵) / 8, the classical choice, brings every s to 1 in the end: φ(1) = 1, and φ' and φ'' are 0
    there. But a small s grows by a = 15/8 only in a step, and of many singular values most are small: after five steps those
    that began below 0.035 are still below 0.7. For training it matters how many come near 1, and little how near. So the coefficients
    here make a as large as possible, while whatever begins above 0.0016 is between 0.68 and 1.21 after five steps. The values do not
    converge: they move about within that range.

    X Xᵀ is symmetric, and the shorter side of g decides its size: a tall matrix is transposed. ``steps`` = 5 on (n, m), n ≤ m, cost
    10 n² (2 m + n) operations, or 5 n² (3 m + n) where BLAS computes one half of a symmetric product.

    Shapes: (n, m) -> (n, m), a new array in g's dtype; half precisions compute in float32. Where |g| < eps, eps takes its place.
    Source: Jordan et al. 2024; equals torch.optim.Muon, which rounds to bfloat16 here.
    """
    xp = array_module(g)
    a, b, c = coefficients
    x = xp.ascontiguousarray(g if g.shape[0] <= g.shape[1] else g.T)
    x = x.astype(xp.float32) if x.dtype.itemsize < 4 else x
    length = xp.sqrt((x * x).sum())
    x = x / xp.maximum(length, eps)
    for _ in range(steps):
        s = x @ x.T  # U S² Uᵀ
        s = b * s + c * (s @ s.T)  # s is symmetric: as a product with its own transpose BLAS computes half of it
        new = s @ x
        x *= a
        x += new
    return (x if g.shape[0] <= g.shape[1] else x.T).astype(g.dtype, copy=False)


def learning_rate_scale(shape: tuple[int, int], adjust_lr_fn: str | None) -> float:
    """What the learning rate of a matrix of ``shape`` (n, m), as (out, in), is multiplied with.

        "original"          √max(1, n / m)        Jordan's; the same as None
        "match_rms_adamw"   0.2 · √max(n, m)      Moonshot's

    U Vᵀ has min(n, m) singular values of 1, so the root mean square of its numbers is √(min(n, m) / (n m)) = 1 / √max(n, m): smaller in a
    larger matrix. Times 0.2 √max(n, m) it is 0.2 for every shape, which is about the size of AdamW's steps. So a learning rate and a
    weight decay that suit AdamW suit Muon. Jordan's factor keeps the spectral norm at 1, or at √(n / m) for a layer with more outputs than
    inputs; it needs learning rates of another size, about 0.02.

    Source: Jordan et al. 2024; Liu et al. 2025, section 2.2; names and values are those of torch.optim.Muon.
    """
    rows, columns = shape
    return 0.2 * math.sqrt(max(rows, columns)) if adjust_lr_fn == "match_rms_adamw" else math.sqrt(max(1, rows / columns))


def muon_update(
    p: Array,
    g: Array,
    velocity: Array,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    scale: float,
    coefficients: tuple[float, float, float],
    ns_steps: int,
    eps: float,
    factor: Array | None = None,
    rounded: Array | None = None,
) -> None:
    """p ← (1 - lr · weight_decay) · p - lr · scale · UVᵀ,   UVᵀ = newton_schulz(momentum · velocity + (1 - momentum) · g)

        velocity ← momentum · velocity + (1 - momentum) · g

    The mean over about 1 / (1 - momentum) steps comes before the orthogonalisation: what remains of U S Vᵀ is its directions, and in one
    gradient the small ones are noise. Nesterov's momentum takes the new gradient into account once more than the mean does
    (`sgd_update`); without it, it is newton_schulz(velocity). A mean that begins at 0 needs no correction as in Adam, because
    newton_schulz divides by the length.

    Shapes: p, g and velocity (n, m); p and velocity are changed in place. ``factor``, of no axes, multiplies g (`clip_factor`); the new p
    is also written to ``rounded``. Source: Jordan et al. 2024; equals torch.optim.Muon.
    """
    if factor is not None:
        g = g * factor
    velocity += (1 - momentum) * (g - velocity)
    direction = g + momentum * (velocity - g) if nesterov else velocity
    if weight_decay:
        p *= 1 - lr * weight_decay
    p -= (lr * scale) * newton_schulz(direction, coefficients, ns_steps, eps)
    if rounded is not None:
        rounded[...] = p


class Muon(Optimizer):
    """Muon for matrices; see the module for the idea and `muon_update` for the rule.

    Args:
        params: parameters of two axes or groups of them, see `Optimizer`. Embeddings and the output layer belong to AdamW.
        ns_coefficients, eps, ns_steps: see `newton_schulz`.
        adjust_lr_fn: "original" (as None) or "match_rms_adamw", see `learning_rate_scale`.
        split: the numbers of rows of the matrices that lie in each parameter one below the other, such as ``(C, C, C)`` for a c_attn;
            they are orthogonalised one by one. torch has no such option.

    Raises:
        ValueError: for a parameter that is no matrix, or an option out of range.
    """

    arrays: tuple[str, ...] = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        split: Sequence[int] | None = None,
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "ns_coefficients": ns_coefficients}
        super().__init__(params, {**options, "eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "split": split})

    def check_options(self, options: dict[str, Any]) -> None:
        name = type(self).__name__
        for option in ("lr", "weight_decay", "eps"):
            if not options[option] >= 0:
                raise ValueError(f"{name}: {option} must not be negative, got {options[option]}.")
        if not 0 <= options["momentum"] < 1:
            raise ValueError(f"{name}: momentum is at least 0 and below 1, got {options['momentum']}.")
        if len(options["ns_coefficients"]) != 3:
            raise ValueError(f"{name}: ns_coefficients are three numbers, got {options['ns_coefficients']}.")
        if not 0 <= options["ns_steps"] <= MOST_STEPS:
            raise ValueError(f"{name}: ns_steps is a number from 0 to {MOST_STEPS}, got {options['ns_steps']}.")
        if options["adjust_lr_fn"] not in (None, *SCALES):
            raise ValueError(f"{name}: adjust_lr_fn is {' or '.join(SCALES)}, got {options['adjust_lr_fn']!r}.")
        split = options["split"]
        for shape in (p.shape for p in options["params"]):
            if len(shape) != 2 or 0 in shape:
                raise ValueError(f"{name} takes matrices, got a parameter of shape {shape}: leave it to AdamW.")
            if split is not None and (sum(split) != shape[0] or min(split) < 1):
                raise ValueError(f"{name}: split {tuple(split)} does not add up to the rows of a parameter of shape {shape}.")

    def update_span(self, span: Span, group: dict[str, Any], step: Any, factor: Array | None = None, within: slice | None = None) -> None:
        flat = span.buffer.flat
        arrays = flat.data, flat.grad, span.buffer.array(self.arrays_of(group)[0])
        xp, lr = array_module(flat.data), group["lr"]
        if xp is not np and isinstance(lr, float | int):
            lr = xp.full((), lr, flat.dtype)  # as a step that is recorded as a CUDA graph has it, so that both give the same bits
        for i in range(span.first, span.last):
            if within is not None and not self._is_in(flat.slice_of(i), within):
                continue
            rows, columns = flat.parameters[i].shape
            for block in _row_blocks(rows, group["split"]):
                p, g, velocity = (flat.view(array, i)[block] for array in arrays)
                scale = learning_rate_scale((block.stop - block.start, columns), group["adjust_lr_fn"])
                muon_update(
                    p, g, velocity, lr, group["momentum"], group["nesterov"], group["weight_decay"], scale,
                    group["ns_coefficients"], group["ns_steps"], group["eps"], factor,
                    None if flat.rounded is None else flat.view(flat.rounded, i)[block],
                )  # fmt: skip

    def _is_in(self, matrix: slice, within: slice) -> bool:
        """Whether all of a matrix lies in a slice.

        Raises:
            ValueError: if only a part does: the rule needs all of a matrix.
        """
        inside = max(0, min(matrix.stop, within.stop) - max(matrix.start, within.start))
        if inside not in (0, matrix.stop - matrix.start):
            name = type(self).__name__
            raise ValueError(f"{name} updates whole matrices, and the slice {within.start}:{within.stop} ends within one: cut between two.")
        return inside > 0


def _row_blocks(rows: int, split: Sequence[int] | None) -> Iterator[slice]:
    """The rows of each matrix in a parameter of so many rows."""
    start = 0
    for count in split or (rows,):
        yield slice(start, start + count)
        start += count


class MuonWithAuxAdam(Muon):
    """Muon for the groups that say ``use_muon=True``, AdamW for the others: one optimizer on one flat buffer.

        MuonWithAuxAdam([{"params": hidden, "use_muon": True}, {"params": rest}], lr=2e-3)

    With "match_rms_adamw", the default here, one learning rate and one weight decay suit both. The velocity of Muon is the running mean
    that AdamW calls exp_avg; both are kept under that name, in one array.

    Args:
        params: groups, see `Optimizer`.
        momentum, nesterov, ns_coefficients, ns_steps, adjust_lr_fn, split: for the groups of Muon, see `Muon`.
        betas: for the groups of AdamW, see `Adam`.
        use_muon: for groups that do not say it.

    Source: the class of this name in Jordan's code.
    """

    arrays = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = COEFFICIENTS,
        eps: float = 1e-8,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        *,
        split: Sequence[int] | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        use_muon: bool = False,
    ) -> None:
        options = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "nesterov": nesterov, "ns_coefficients": ns_coefficients}
        options |= {"eps": eps, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn, "split": split, "betas": betas, "use_muon": use_muon}
        Optimizer.__init__(self, params, options)

    def check_options(self, options: dict[str, Any]) -> None:
        if options["use_muon"]:
            super().check_options(options)
        else:
            check_adam_options(type(self).__name__, options)

    def arrays_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.arrays[:1] if group["use_muon"] else self.arrays

    def update_span(self, span: Span, group: dict[str, Any], step: Any, factor: Array | None = None, within: slice | None = None) -> None:
        if group["use_muon"]:
            super().update_span(span, group, step, factor, within)
        else:
            Optimizer.update_span(self, span, group, step, factor, within)

    def update(self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array) -> None:
        self.update_and_round(group, step, p, g, *state, factor=None, rounded=None)

    def update_and_round(
        self, group: dict[str, Any], step: int, p: Array, g: Array, *state: Array, factor: Array | None, rounded: Array | None
    ) -> None:
        m, v = state
        adamw_update(p, g, m, v, step, group["lr"], group["betas"], group["eps"], group["weight_decay"], None, factor, rounded)

    def state_dict(self) -> dict[str, Any]:
        """See `Optimizer.state_dict`; a matrix of Muon has no exp_avg_sq."""
        saved = super().state_dict()
        for group in saved["param_groups"]:
            for number in group["params"] if group["use_muon"] else ():
                saved["state"].get(number, {}).pop("exp_avg_sq", None)
        return saved
