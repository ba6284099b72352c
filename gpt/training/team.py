"""Who shares the batches of a run: ranks of MPI, and in each a team of threads or processes, or a GPU (`tensorlite.parallel`).

Processes do not wait for each other's Python, but each takes about a second to start, holds the libraries in memory once more, and must be
able to import the model. Threads are therefore the default; with ``--team auto`` a run of `ENOUGH_STEPS` steps has processes. The result
is the same, bit for bit.
"""

from __future__ import annotations

from data.cores import available_cores
from gpt.config import TrainConfig
from gpt.errors import fail
from tensorlite.backend import Device
from tensorlite.parallel import Workers, make_team
from tensorlite.parallel.nccl import choose_gpu, connect_gpus
from tensorlite.parallel.ranks import RankError, World, connect

ENOUGH_STEPS = 200  # in which short steps make up for the start


def join_ranks(config: TrainConfig) -> World:
    """The ranks that train together, with the limit of ``config``.

    Raises:
        UserError: if they cannot.
    """
    try:
        world = connect()
    except RankError as error:
        fail(str(error))
    world.limit = 60 * config.rank_limit
    return world


def choose_device(config: TrainConfig) -> Device:
    """The device of ``config``, in use. Of several ranks each gets a GPU of its own, connected with those of the others.

    Raises:
        ValueError: for an unknown device.
        UserError: if there are not enough GPUs, or no NCCL.
        DeviceUnavailableError: for a device that does not work here.
    """
    device, world = Device(config.backend), join_ranks(config)
    if device.name == "numpy":
        return device
    try:
        if world.size > 1:
            device = Device("cupy", choose_gpu(world, device.index if ":" in config.backend else None))
        device.use()
        if world.size > 1:
            connect_gpus(world)
    except RankError as error:
        fail(str(error))
    device.asarray(0)  # the first array needs the driver
    return device


def choose_team(config: TrainConfig) -> Workers:
    """The team for these settings; one thread on a GPU, which Python only feeds."""
    if config.backend != "numpy":
        return Workers(1)
    count = config.workers or available_cores()
    is_worth_it = min(count, config.shards or count) > 1 and config.steps >= ENOUGH_STEPS
    return make_team({"auto": "processes" if is_worth_it else "threads"}.get(config.team, config.team), count)


def describe_team(config: TrainConfig, workers: Workers, ranks: int = 1) -> str:
    """Such as "2 processes (--team auto: from 200 steps on)"."""
    if ranks > 1:
        shared = ", which share the optimizer's state" if config.zero else ""
        return f"{ranks} ranks of MPI{shared}, each with {'a GPU' if config.backend != 'numpy' else describe_team(config, workers)}"
    words = f"{workers.count} {workers.name}" if workers.count > 1 else "1 worker"
    if config.team != "auto" or workers.count == 1:
        return words
    return f"{words} (--team auto: processes {'from' if workers.name == 'processes' else 'only from'} {ENOUGH_STEPS} steps on)"
