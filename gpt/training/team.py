"""The team that shares the batches of a run on a CPU: threads, or processes (`tensorlite.parallel`).

Processes do not wait for each other's Python, but each takes about a second to start, holds the libraries in memory once more, and must be
able to import the model. Threads are therefore the default; with ``--team auto`` a run of `ENOUGH_STEPS` steps has processes. The result
is the same, bit for bit.
"""

from __future__ import annotations

from data.cores import available_cores
from gpt.config import TrainConfig
from tensorlite.parallel import Workers, make_team

ENOUGH_STEPS = 200  # in which short steps make up for the start


def choose_team(config: TrainConfig) -> Workers:
    """The team for these settings; one thread on a GPU, which Python only feeds."""
    if config.backend != "numpy":
        return Workers(1)
    count = config.workers or available_cores()
    is_worth_it = min(count, config.shards or count) > 1 and config.steps >= ENOUGH_STEPS
    return make_team({"auto": "processes" if is_worth_it else "threads"}.get(config.team, config.team), count)


def describe_team(config: TrainConfig, workers: Workers) -> str:
    """Such as "2 processes (--team auto: from 200 steps on)"."""
    words = f"{workers.count} {workers.name}" if workers.count > 1 else "1 worker"
    if config.team != "auto" or workers.count == 1:
        return words
    return f"{words} (--team auto: processes {'from' if workers.name == 'processes' else 'only from'} {ENOUGH_STEPS} steps on)"
