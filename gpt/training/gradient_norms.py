"""How long the gradient is in each layer: where training is too violent, or where nothing arrives."""

from __future__ import annotations

import re
from typing import Any

from gpt.model import LanguageModel
from tensorlite.backend import array_module, to_numpy

_BLOCK = re.compile(r"(?:^|\.)(h\.\d+)\.")


def norms_by_layer(model: LanguageModel, total: float) -> dict[str, float]:
    """The norm of the last step's gradient in each block, and in each layer outside of them, before it was clipped.

    After a step the gradients are forgotten, but they still lie in the optimizer's flat buffer until the next ones are written there
    (`Tensor.grad_home`). Clipping has shortened all of them alike, so they are scaled until together they are ``total`` long.
    """
    found: dict[str, list[Any]] = {}
    for name, parameter in model.named_parameters():
        home = parameter.grad_home
        if parameter.requires_grad and home is not None:
            flat = home.reshape(-1)
            found.setdefault(_layer(name), []).append(flat @ flat)
    if not found:
        return {}
    xp = array_module(next(iter(found.values()))[0])
    squares = to_numpy(xp.stack([sum(parts) for parts in found.values()])).astype(float)  # a GPU is waited for once, not for each
    length = float(squares.sum()) ** 0.5
    scale = total / length if length else 0.0
    return {layer: scale * square**0.5 for layer, square in zip(found, squares.tolist(), strict=True)}


def _layer(name: str) -> str:
    """h.3.attn.c_attn.weight -> h.3, and wte.weight -> wte."""
    block = _BLOCK.search(name)
    return block[1] if block else name.split(".")[-2]
