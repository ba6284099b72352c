"""Which parameters finetuning trains. A frozen parameter needs no gradient and no optimizer state, and keeps its value."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from gpt.config import closest_name
from gpt.errors import fail
from gpt.model import GPT, LanguageModel


def freeze_blocks(model: LanguageModel, count: int) -> None:
    """Freeze the embeddings and the first ``count`` blocks. Backward then ends at the first block that is trained.

    A tied head shares the weight of the token embedding, so it is frozen, too.

    Raises:
        UserError: unless the model has that many blocks.
    """
    blocks = len(model.h) if isinstance(model, GPT) else 0
    if not 0 <= count <= blocks:
        fail(f"the model has {blocks} blocks, of which the first 0 to {blocks} can be frozen, got {count}.")
    if count == 0:
        return
    frozen = ("wte.", "wpe.", *(f"h.{i}." for i in range(count)))
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            parameter.requires_grad_(False)


def train_only(model: LanguageModel, patterns: Sequence[str]) -> None:
    """Freeze everything but the parameters that match one of ``patterns``: ``*.bias``, ``h.3.*``, ``*ln_?.weight``.

    Raises:
        UserError: for a pattern that matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            meant = closest_name(pattern, names)
            fail(f"no parameter is called {pattern!r}: " + (f"did you mean {meant!r}?" if meant else f"they are {', '.join(names[:6])}, …"))
        chosen.update(found)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


def count_trainable(model: LanguageModel) -> int:
    """The number of trainable numbers.

    Raises:
        UserError: if there are none.
    """
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not count:
        fail("everything is frozen: there is nothing left to train.")
    return count
