"""Which optimizer trains which parameters: ``--optimizer adamw | muon | sgd``.

adamw   all of them; weight decay on matrices only
muon    Muon for the matrices of the blocks, AdamW for embeddings, output layer, gains and biases
sgd     gradient descent with momentum for all of them; weight decay on matrices only
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpt.config import GPTConfig, TrainConfig
from gpt.errors import fail
from gpt.model import Block, LanguageModel
from tensorlite import Tensor, optim

MOMENTUM = {"muon": 0.95, "sgd": 0.9}  # of Jordan's Muon and of torch's examples of SGD


def make_optimizer(model: LanguageModel, config: TrainConfig) -> optim.Optimizer:
    """The optimizer that ``config`` names, for all parameters that require a gradient: finetuning freezes some.

    A bias or the weight of a layer norm does not decay: it has no reason to shrink towards 0.

    Raises:
        UserError: for Muon, if there is no matrix for it to train.
    """
    groups = list(_muon_groups(model)) if config.optimizer == "muon" else []
    taken = {id(p) for group in groups for p in group["params"]}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    groups += [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    lr, betas, momentum = config.learning_rate, (config.beta1, config.beta2), config.momentum
    match config.optimizer:
        case "muon":
            if not taken:
                fail("Muon trains the matrices of a model's blocks, and here there is none to train: leave out --optimizer muon.")
            momentum = MOMENTUM["muon"] if momentum is None else momentum
            return optim.MuonWithAuxAdam(groups, lr=lr, weight_decay=config.weight_decay, momentum=momentum, betas=betas)
        case "sgd":
            return optim.SGD(groups, lr=lr, momentum=MOMENTUM["sgd"] if momentum is None else momentum)
        case _:
            return optim.AdamW(groups, lr=lr, betas=betas)


def _muon_groups(model: LanguageModel) -> Iterator[dict[str, Any]]:
    """The matrices of the blocks, those together that are split in the same way."""
    by_split: dict[tuple[int, ...] | None, list[Tensor]] = {}
    for block in (module for module in model.modules() if isinstance(module, Block)):
        splits = _splits(model.config)
        for name, p in block.named_parameters():
            if p.ndim == 2 and p.requires_grad:
                by_split.setdefault(splits.get(name), []).append(p)
    for split, params in by_split.items():
        yield {"params": params, "use_muon": True, "split": split}


def _splits(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The rows of the matrices that lie in one parameter: queries, keys and values; in llama the gate and the value of the MLP, too."""
    C, head = config.n_embd, config.n_embd // config.n_head
    splits: dict[str, tuple[int, ...]] = {"attn.c_attn.weight": (C, config.kv_heads * head, config.kv_heads * head)}
    if config.model == "llama":
        splits["mlp.c_fc.weight"] = (config.mlp_width, config.mlp_width)
    return splits
