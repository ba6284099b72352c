"""nanoGPT's training loop in torch:  python -m benchmarks.torch_train --data my.txt --out FOLDER

The equivalent of `gpt.train` with `configurations.NANOGPT_TRAINING`, written to be fast on a CPU: eager, with
scaled_dot_product_attention, fused AdamW, and malloc set to keep freed memory. It trains and evaluates on the same batches as ours and
saves as often. Its initial weights have the same distribution, drawn by torch.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.configurations import NANOGPT_MODEL, NANOGPT_TRAINING
from benchmarks.torch_gpt import TorchGPT
from data.cores import available_cores
from data.dataset import open_dataset
from data.loader import RandomBatches, Tokens
from gpt.config import GPTConfig, RandomStream, TrainConfig
from tensorlite.memory import keep_freed_memory
from tensorlite.random import make_generator


def main() -> None:
    """Train, and write ``metrics.jsonl`` and ``model.pt`` into the folder."""
    parser = argparse.ArgumentParser("python -m benchmarks.torch_train", description="nanoGPT's training loop in torch.")
    parser.add_argument("--data", required=True, help="a UTF-8 text file")
    parser.add_argument("--out", required=True, type=Path, help="folder for the result")
    parser.add_argument("--steps", type=int, default=NANOGPT_TRAINING.steps)
    parser.add_argument("--eval-iters", type=int, default=NANOGPT_TRAINING.eval_iters)
    parser.add_argument("--seed", type=int, default=NANOGPT_TRAINING.seed)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(options.seed)

    dataset = open_dataset(options.data, NANOGPT_TRAINING.val_fraction)
    config = replace(NANOGPT_MODEL, vocab_size=dataset.vocab_size)
    training = replace(NANOGPT_TRAINING, steps=options.steps, eval_iters=options.eval_iters, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)

    model = TorchGPT(config)
    initialise(model, config)
    optimizer = make_optimizer(model, training)

    def batches(tokens: Tokens, stream: int) -> RandomBatches:
        return RandomBatches(tokens, training.batch_size, config.block_size, make_generator(training.seed, stream))

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        model.eval()
        means = {}
        for name, tokens in (("train_loss", dataset.train), ("val_loss", dataset.val)):
            evaluation = batches(tokens, RandomStream.EVALUATION)
            losses = [model(*to_torch(evaluation.next_batch()))[1].item() for _ in range(training.eval_iters)]
            means[name] = sum(losses) / len(losses)
        model.train()
        return means

    def report(step: int) -> None:
        record = {"step": step, **evaluate()}
        print(f"step {step:>5}: train loss {record['train_loss']:.4f}, validation loss {record['val_loss']:.4f}", flush=True)
        with open(options.out / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        torch.save(model.state_dict(), options.out / "model.pt")

    train_batches = batches(dataset.train, RandomStream.BATCHES)
    for step in range(training.steps):
        if step % training.eval_interval == 0:
            report(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, training)
        _, loss = model(*to_torch(train_batches.next_batch()))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % training.log_interval == 0 and not math.isfinite(loss.item()):
            raise SystemExit(f"the loss became {loss.item()} at step {step + 1}.")
    report(training.steps)


def initialise(model: TorchGPT, config: GPTConfig) -> None:
    """N(0, 0.02), with a smaller deviation for layers that add to the residual stream; layer norms are 1 already."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.n_layer) if name.endswith("c_proj.weight") else 0.02)


def make_optimizer(model: TorchGPT, training: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(training.beta1, training.beta2), fused=True)


def learning_rate(step: int, training: TrainConfig) -> float:
    """A straight line up in the warmup, then half a cosine down."""
    if step < training.warmup_steps:
        return training.learning_rate * (step + 1) / (training.warmup_steps + 1)
    progress = (step - training.warmup_steps) / (training.steps - training.warmup_steps)
    low, high = training.min_learning_rate, training.learning_rate
    return low + 0.5 * (1 + math.cos(math.pi * progress)) * (high - low)


def to_torch(batch: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Both arrays of a batch."""
    x, y = batch
    return torch.from_numpy(x), torch.from_numpy(y)


if __name__ == "__main__":
    main()
