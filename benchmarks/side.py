"""One side of `benchmarks.train_step`: builds a model; each line of standard input is then a number of steps to make.

Both sides do the same work in a step: draw a batch, forward, backward, clip the gradient's norm to 1, AdamW, drop the gradient.
Both start from the same weights and draw the same batches.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable

import numpy as np

from benchmarks.configurations import CONFIGURATIONS, Configuration
from benchmarks.turns import serve
from tensorlite.memory import keep_freed_memory

LEARNING_RATE = 1e-4
OURS = {"ours": "threads", "processes": "processes", "book": "threads"}  # side -> its team


def batches(configuration: Configuration, seed: int) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Random ids, the same for every side."""
    generator = np.random.default_rng(seed)
    shape = configuration.batch_size, configuration.model.block_size + 1

    def draw() -> tuple[np.ndarray, np.ndarray]:
        ids = generator.integers(0, configuration.model.vocab_size, shape)
        return ids[:, :-1].copy(), ids[:, 1:].copy()

    return draw


def our_steps(configuration: Configuration, seed: int, team: str) -> Callable[[int], float]:
    """``steps(n)`` makes n steps with one worker for each core, and returns the last loss."""
    import tensorlite as tl
    from data.cores import available_cores
    from gpt.model import GPT
    from tensorlite.parallel import BatchShards, make_team
    from tensorlite.random import make_generator

    keep_freed_memory()
    tl.manual_seed(seed)
    model = GPT(configuration.model)
    optimizer = tl.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    parameters = list(model.parameters())
    draw = batches(configuration, seed)
    workers = make_team(team, available_cores())
    workers.__enter__()  # to the end of this process, which makes nothing but steps
    parallel = BatchShards(model, optimizer.flats, workers.count, workers, optimizer=optimizer)
    done = 0

    def steps(count: int) -> float:
        nonlocal done
        loss = None
        for _ in range(count):
            x, y = (tl.from_numpy(ids) for ids in draw())
            loss = parallel.forward_backward((x, y), functools.partial(make_generator, seed, done))
            _, factor = tl.optim.clip_factor(parameters, 1.0)
            workers.update(optimizer, factor)
            optimizer.zero_grad()
            done += 1
        return loss.item() if loss is not None else float("nan")

    return steps


def torch_steps(configuration: Configuration, seed: int, tuned: bool, compiled: bool) -> Callable[[int], float]:
    """The same in torch: eager or compiled, with malloc set as for ours or unchanged."""
    import torch

    import tensorlite as tl
    from benchmarks.torch_gpt import TorchGPT
    from data.cores import available_cores
    from gpt.model import GPT

    if tuned:
        keep_freed_memory()
    torch.set_num_threads(available_cores())
    torch.manual_seed(seed)
    tl.manual_seed(seed)
    weights = {name: torch.from_numpy(value.detach().numpy()) for name, value in GPT(configuration.model).state_dict().items()}
    plain = TorchGPT(configuration.model)
    plain.load_state_dict(weights)
    del weights
    model = torch.compile(plain) if compiled else plain
    optimizer = torch.optim.AdamW(plain.parameters(), lr=LEARNING_RATE, fused=True)
    draw = batches(configuration, seed)

    def steps(count: int) -> float:
        loss = None
        for _ in range(count):
            x, y = (torch.from_numpy(ids) for ids in draw())
            _, loss = model(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.item() if loss is not None else float("nan")

    return steps


def main(side: str, configuration_name: str, seed: str = "0") -> None:
    """For each line of standard input, make as many training steps as it says, and answer with the last loss."""
    configuration = CONFIGURATIONS[configuration_name]
    if side in OURS:
        serve(our_steps(configuration, int(seed), OURS[side]))
    else:
        serve(torch_steps(configuration, int(seed), tuned=side != "torch untuned", compiled=side == "torch compiled"))


if __name__ == "__main__":
    main(*sys.argv[1:])
