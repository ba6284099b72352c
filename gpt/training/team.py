"""Who shares the batches of a run on a CPU: ranks of MPI, and in each a team of threads or processes (`tensorlite.parallel`).

Processes do not wait for each other's Python, but each takes about a second to start, holds the libraries in memory once more, and must be
able to import the model. Threads are therefore the default; with ``--team auto`` a run of `ENOUGH_STEPS` steps has processes. The result
is the same, bit for bit.
"""

from __future__ import annotations

from data.cores import available_cores
from gpt.config import TrainConfig
from gpt.errors import fail
from tensorlite.parallel import Workers, make_team
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
    if world.size > 1 and config.backend != "numpy":
        fail("ranks of MPI train on CPUs: leave --backend out, or start the program without mpiexec.")
    world.limit = 60 * config.rank_limit
    return world


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
        return f"{ranks} ranks of MPI{shared}, each with {describe_team(config, workers)}"
    words = f"{workers.count} {workers.name}" if workers.count > 1 else "1 worker"
    if config.team != "auto" or workers.count == 1:
        return words
    return f"{words} (--team auto: processes {'from' if workers.name == 'processes' else 'only from'} {ENOUGH_STEPS} steps on)"
