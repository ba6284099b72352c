"""One side of `benchmarks.train_step --backend cupy`: each line of standard input is a number of training steps to make on the GPU.

    python -m benchmarks.gpu_side SIDE CONFIGURATION PRECISION

Both sides start from the same weights, draw the same batches from the same random text, clip the gradient and step AdamW with the same
settings. Ours is the trainer that ``python -m gpt.train`` uses; torch is written to be fast: scaled_dot_product_attention,
fused AdamW, batches from pinned memory, autocast for the half precisions (with a GradScaler for float16), TF32 in the precision tf32.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.configurations import CONFIGURATIONS, Configuration
from benchmarks.turns import serve
from data.loader import RandomBatches
from gpt.config import RandomStream, TrainConfig
from tensorlite.random import make_generator

SEED = 0
TOKENS = 2_000_000


def text(configuration: Configuration) -> np.ndarray:
    """Random ids: the time of a step does not depend on the text."""
    return np.random.default_rng(SEED).integers(0, configuration.model.vocab_size, TOKENS).astype(np.uint16)


def training(configuration: Configuration, precision: str, graph: bool | str) -> TrainConfig:
    """The settings of both sides."""
    return TrainConfig(
        backend="cupy",
        precision=precision,
        cuda_graph=graph,
        seed=SEED,
        steps=1_000_000,
        batch_size=configuration.batch_size,
        learning_rate=1e-4,
        min_learning_rate=1e-5,
        warmup_steps=0,
        schedule="constant",
    )


def our_steps(
    configuration: Configuration, precision: str, graph: bool | str, fused: bool = True
) -> tuple[Callable[[int], float], Callable[[], int]]:
    """``steps(n)`` makes n steps and returns the last loss; ``memory()`` is what CuPy's pools hold, in bytes.

    Args:
        fused: False computes the layers of each MLP as three ops (`tensorlite.nn.fusion`).
    """
    import tensorlite as tl
    from gpt.model import GPT
    from gpt.training.trainer import Trainer

    tl.manual_seed(SEED)
    model = GPT(configuration.model).to("cupy")
    for block in model.h if not fused else ():
        block.mlp.activation.register_forward_hook(lambda *seen: None)  # a module with a hook is called itself
    tokens = text(configuration)
    trainer = Trainer(model, training(configuration, precision, graph), tokens, tokens)

    def steps(count: int) -> float:
        loss = None
        for _ in range(count):
            loss = trainer.update()
        return float("nan") if loss is None else loss.item()

    return steps, lambda: trainer.stepper.metrics()["gpu_memory"]  # the graph's pool is in it


def torch_steps(configuration: Configuration, precision: str, compiled: bool) -> tuple[Callable[[int], float], Callable[[], int]]:
    """The same in torch; memory is what its caching allocator holds."""
    import torch

    import tensorlite as tl
    from benchmarks.torch_gpt import TorchGPT
    from gpt.model import GPT

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.manual_seed(SEED)
    tl.manual_seed(SEED)
    weights = {name: torch.from_numpy(value.detach().numpy()) for name, value in GPT(configuration.model).state_dict().items()}
    plain = TorchGPT(configuration.model)
    plain.load_state_dict(weights)
    plain.cuda()
    model: Any = torch.compile(plain) if compiled else plain
    config = training(configuration, precision, graph=False)
    parameters = list(plain.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
    half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision)
    scaler = torch.amp.GradScaler("cuda", enabled=precision == "float16")
    batches = RandomBatches(
        text(configuration), config.batch_size, configuration.model.block_size, make_generator(SEED, RandomStream.BATCHES)
    )

    def on_gpu(ids: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(ids.astype(np.int64)).pin_memory().to("cuda", non_blocking=True)

    def steps(count: int) -> float:
        loss = None
        for _ in range(count):
            x, y = map(on_gpu, batches.next_batch())
            with torch.autocast("cuda", half or torch.bfloat16, enabled=half is not None):
                _, loss = model(x, y)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return float("nan") if loss is None else loss.item()

    return steps, torch.cuda.memory_reserved


def main(side: str, configuration_name: str, precision: str) -> None:
    """For each line of standard input, make as many training steps as it says, and answer with the last loss."""
    configuration = CONFIGURATIONS[configuration_name]
    if side.startswith("torch"):
        steps, memory = torch_steps(configuration, precision, compiled="compiled" in side)
    else:
        steps, memory = our_steps(configuration, precision, graph=False if "no graph" in side else "auto")
    serve(steps, memory)


if __name__ == "__main__":
    main(*sys.argv[1:])
