"""LoRA: finetune a large matrix by training a small correction to it.

A linear layer computes y = x · Wᵀ + b, with W (out, in). Finetuning would train ΔW, as large as W. LoRA supposes that a new task needs a
simpler change than that, and trains ΔW as a product of two thin matrices, of rank r:

    y = x · Wᵀ + b + s · (x · Aᵀ) · Bᵀ        A (r, in), B (out, r), s = alpha / r

W and b stay frozen; in the place of in · out numbers, r · (in + out) are trained. B begins at 0, so at first nothing is changed. A begins
at random: with both at 0 neither would ever get a gradient, since

    dB = s · dyᵀ · (x · Aᵀ)        dA = s · (dy · B)ᵀ · x

The tape computes these by itself. s keeps the size of the correction, and with it the learning rate, when r is changed.

After training the correction can be added to the weight, W + s · B · A, and the layer is an ordinary one again: `merge_lora` does that. Or
it is kept in a file of some kilobytes (`gpt.checkpoints.adapter`), and one model serves many tasks.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import tensorlite as tl
from gpt.config import require_at_least
from gpt.errors import UserError
from gpt.model import LanguageModel
from tensorlite import Tensor, nn
from tensorlite.nn import functional as F

__all__ = ["LoraError", "LoraLinear", "add_lora", "lora_layers", "merge_lora"]

TARGETS = ("c_attn", "c_proj")
MAX_ALPHA = 1e9  # products with it stay well within the range of float32


class LoraError(UserError):
    """Corrections cannot be added to a model; the message says why."""


class LoraLinear(nn.Module):
    """``linear`` with a correction of rank ``rank``, scaled by ``alpha / rank``. Only the correction is trained.

    A begins uniform on ±1/√in, as the weight of a linear layer does, and B at 0.

    Raises:
        ValueError: for a rank below 1 or above that of the matrix, or an alpha that is not above 0.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        require_at_least(1, "the rank", rank)
        largest = min(linear.in_features, linear.out_features)
        if rank > largest:
            raise ValueError(
                f"rank {rank} is more than a matrix of {linear.out_features} x {linear.in_features} has: it must be at most {largest}, "
                "and much less to save anything."
            )
        if not 0 < alpha <= MAX_ALPHA:  # also true of nan
            raise ValueError(f"alpha must be above 0 and at most {MAX_ALPHA:g}, got {alpha}.")
        self.linear = linear.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        like: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(tl.zeros(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(tl.zeros(linear.out_features, rank, **like))
        bound = 1 / math.sqrt(linear.in_features)
        nn.init.uniform_(self.lora_a, -bound, bound)

    @property
    def scale(self) -> float:
        """The factor s of the correction."""
        return self.alpha / self.rank

    def forward(self, x: Tensor) -> Tensor:
        correction = F.linear(F.linear(x, self.lora_a), self.lora_b)  # (…, in) -> (…, r) -> (…, out)
        return self.linear(x) + self.scale * correction

    def merged(self) -> nn.Linear:
        """An ordinary layer that computes the same: its weight is W + s · B · A."""
        linear = copy.deepcopy(self.linear)
        linear.weight.array = linear.weight.array + self.scale * (self.lora_b.array @ self.lora_a.array)
        return linear.requires_grad_()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}"


def add_lora(model: LanguageModel, targets: Sequence[str] = TARGETS, rank: int = 8, alpha: float = 16.0) -> list[str]:
    """Freeze ``model``, and add a trainable correction to every linear layer that ``targets`` names; return the layers' full names.

    Args:
        targets: the ends of names: "c_proj" is all of them, "attn.c_proj" those of the attention, "h.0.mlp.c_fc" a single one.

    Raises:
        LoraError: for a target that is no linear layer of the model, naming those that are.
        ValueError: for a rank or an alpha that cannot work.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        found = {name: linear for name, linear in linears.items() if f".{name}".endswith(f".{target}")}
        if not found:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears)) or "none"
            raise LoraError(f"there is no linear layer {target!r} to put LoRA on; those of this model are {known}.")
        chosen.update(found)
    for name, linear in chosen.items():
        owners = [owner for owner, p in model.named_parameters(remove_duplicate=False) if p is linear.weight]
        if len(owners) > 1:
            raise LoraError(
                f"{name} shares its weight with {owners[0].removesuffix('.weight')}, so a correction to it could not be merged."
            )
    model.requires_grad_(False)
    for name in sorted(chosen):
        _replace(model, name, LoraLinear(chosen[name], rank, alpha))
    return sorted(chosen)


def merge_lora(model: LanguageModel) -> LanguageModel:
    """A copy of ``model`` with every correction added to its weight: an ordinary model, equal up to the rounding of floating point."""
    plain = copy.deepcopy(model)
    for name, layer in lora_layers(plain):
        _replace(plain, name, layer.merged())
    return plain.requires_grad_()


def lora_layers(model: nn.Module) -> list[tuple[str, LoraLinear]]:
    """The layers with corrections, with their names."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(dict(model.named_modules())[parent], child, layer)
