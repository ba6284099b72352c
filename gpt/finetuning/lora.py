"""LoRA: finetune a large matrix by learning a small correction to it.

A linear layer computes y = x · Wᵀ + b, with W (out, in). Finetuning would learn ΔW, as large as W. LoRA supposes that what a new task
takes is simpler than that, and learns ΔW as a product of two thin matrices, of rank r:

    y = x · Wᵀ + b + s · (x · Aᵀ) · Bᵀ        A (r, in), B (out, r), s = alpha / r

W and b stay frozen; of in · out numbers, r · (in + out) are learnt. B begins at 0, so at first nothing is changed; A begins at random,
for with both at 0 neither would ever get a gradient:

    dB = s · dyᵀ · (x · Aᵀ)        dA = s · (dy · B)ᵀ · x

The tape works these out by itself. s keeps the size of the correction, and with it the learning rate, when r is changed.

Afterwards the correction can be added to the weight once and for all, W + s · B · A, and the layer is an ordinary one again: that is
`merged`. Or it is kept apart, in a file of some kilobytes (`save_adapter`), and one model serves many tasks: a folder with the two files
adapter.* and nothing else is opened as the model they belong to, with the corrections merged, so it writes as fast as any other.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

import tensorlite as tl
from data.files import write_atomically
from data.paths import expand_path
from gpt.checkpoints.weights import SEAL, WeightsFile, is_broken, sealed
from gpt.config import require_at_least, require_type
from gpt.errors import UserError
from gpt.model import LanguageModel
from tensorlite import Tensor, nn
from tensorlite.nn import functional as F

TARGETS = ("c_attn", "c_proj")
LARGEST_ALPHA = 1e9  # its products stay far from the end of float32
WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"


class LoraError(UserError):
    """Adapters that cannot be put where they are wanted; the message says why."""


class LoraLinear(nn.Module):
    """``linear`` with a correction of rank ``rank``, scaled by ``alpha / rank``. Only the correction is trained.

    A begins uniform on ±1/√in, as the weight of a linear layer does, and B at 0.

    Raises:
        ValueError: for a rank below 1 or above what the matrix has, or an alpha that is not above 0.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        require_at_least(1, "the rank", rank)
        largest = min(linear.in_features, linear.out_features)
        if rank > largest:
            raise ValueError(
                f"rank {rank} is more than a matrix of {linear.out_features} x {linear.in_features} has: at most {largest}, "
                "and much less to gain anything."
            )
        if not 0 < alpha <= LARGEST_ALPHA:  # also true of nan
            raise ValueError(f"alpha must be above 0 and at most {LARGEST_ALPHA:g}, got {alpha}.")
        self.linear = linear.requires_grad_(False)
        self.rank, self.alpha = rank, alpha
        where: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_a = nn.Parameter(tl.zeros(rank, linear.in_features, **where))
        self.lora_b = nn.Parameter(tl.zeros(linear.out_features, rank, **where))
        bound = 1 / math.sqrt(linear.in_features)
        nn.init.uniform_(self.lora_a, -bound, bound)

    @property
    def scale(self) -> float:
        """What the correction is multiplied with."""
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
    """Freeze ``model``, and give every linear layer that is called one of ``targets`` a correction to learn; returns their full names.

    Args:
        targets: the ends of names: "c_proj" is all of them, "attn.c_proj" those of the attention, "h.0.mlp.c_fc" a single one.

    Raises:
        LoraError: for a target that is no linear layer of the model, naming those there are.
        ValueError: for a rank or an alpha that cannot work.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen: dict[str, nn.Linear] = {}
    for target in targets:
        found = {name: linear for name, linear in linears.items() if f".{name}".endswith(f".{target}")}
        if not found:
            there = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in linears)) or "none"
            raise LoraError(f"there is no linear layer {target!r} to put LoRA on; those of this model are {there}.")
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


def merged(model: LanguageModel) -> LanguageModel:
    """A copy of ``model`` with every correction added to its weight: an ordinary model, equal to the rounding of floating point."""
    plain = copy.deepcopy(model)
    for name, layer in _layers(plain):
        _replace(plain, name, layer.merged())
    return plain.requires_grad_()


def save_adapter(folder: str | os.PathLike[str], model: LanguageModel, **facts: Any) -> None:
    """Write the corrections alone, and nothing of the model they belong to, which is named by its `fingerprint`.

    Raises:
        OSError: if they cannot be written.
    """
    folder, layers = Path(folder), list(_layers(model))
    weights = {f"{name}.{which}": _array(getattr(layer, which)) for name, layer in layers for which in ("lora_a", "lora_b")}
    rank, alpha = layers[0][1].rank, layers[0][1].alpha
    record = {"rank": rank, "alpha": alpha, "targets": [name for name, _ in layers], "base_fingerprint": fingerprint(model)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, safetensors.numpy.save(weights))
    write_atomically(folder / CONFIG, json.dumps({**sealed(record, weights), **facts}, indent=2) + "\n")


def load_adapter(folder: str | os.PathLike[str], model: LanguageModel) -> None:
    """Put the corrections in ``folder`` on ``model``, which becomes the model that was finetuned.

    Raises:
        LoraError: if there are none, they are damaged, or were learnt on another model.
    """
    folder = expand_path(folder)
    try:
        record = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = WeightsFile(folder / WEIGHTS).read_all()
        targets, rank, alpha, base = (record[name] for name in ("targets", "rank", "alpha", "base_fingerprint"))
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise ValueError(f"its targets are names, got {targets!r}")
        require_type(int, "the rank", rank)
        require_type(float, "alpha", alpha)
    except FileNotFoundError as error:
        raise LoraError(f"{folder} has no adapter: there is no {Path(error.filename or WEIGHTS).name}.") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, safetensors.SafetensorError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error
    seal = {SEAL: record[SEAL]} if SEAL in record else {}
    if is_broken({"rank": rank, "alpha": alpha, "targets": targets, "base_fingerprint": base, **seal}, weights):
        raise LoraError(f"the adapter in {folder} is damaged: it does not hold what was written.")
    if base != fingerprint(model):
        raise LoraError(f"the adapter in {folder} was learnt on another model: it corrects weights that this one does not have.")
    with tl.random.use_generator(tl.random.make_generator(0)):  # the first values are thrown away
        try:
            add_lora(model, targets, rank, alpha)
        except ValueError as error:
            raise LoraError(f"the adapter in {folder} cannot be used: {error}") from error
    own = {f"{name}.{which}": getattr(layer, which) for name, layer in _layers(model) for which in ("lora_a", "lora_b")}
    if weights.keys() != own.keys() or any(weights[name].shape != tensor.shape for name, tensor in own.items()):
        raise LoraError(f"the weights of the adapter in {folder} do not fit what its {CONFIG} says.")
    for name, tensor in own.items():
        tensor.array[...] = tl.tensor(weights[name], device=tensor.device).array


def base_of(folder: str | os.PathLike[str]) -> str | None:
    """Where the model is to which the corrections in ``folder`` belong, if that folder has corrections and nothing else; else None.

    A folder that `gpt.finetune` leaves has the merged model beside them, and needs no other.
    """
    folder = expand_path(folder)
    if not (folder / CONFIG).exists() or any(folder.glob("model*.safetensors")):
        return None
    try:
        base = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["finetuned_from"]
        require_type(str, "the model that it belongs to", base)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise LoraError(f"the adapter in {folder} cannot be read ({error}).") from error
    return base


def fingerprint(model: LanguageModel) -> str:
    """SHA-256 of a model's names and weights, without corrections."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not name.endswith((".lora_a", ".lora_b")):
            digest.update(f"{name.replace('.linear.', '.')} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(_array(tensor).tobytes())
    return digest.hexdigest()


def _layers(model: nn.Module) -> Iterable[tuple[str, LoraLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear)]


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(dict(model.named_modules())[parent], child, layer)


def _array(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor.detach().numpy(), order="C")
