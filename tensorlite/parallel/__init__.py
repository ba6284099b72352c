"""Data parallelism on the cores of a CPU: a team shares each batch.

There are two ways to use several cores. One splits every op, and synchronises all cores a hundred times a step. The
other splits the *batch*: some rows go through forward and backward of the whole model on each core, and the cores
synchronise once, to add their gradients. This package does the second.

- A *shard* is a part of the batch, with a replica of the model: the same parameters, its own gradients, its own
  random generator. The number of shards decides how sums are rounded. Gradients are added in the order of the shards.
- A *team* runs the shards: `Workers` are threads, `Processes` are processes that share memory. Threads wait for Python's lock
  between two calls of NumPy; processes do not. The team and its size change the time, and no bit of the result.

Where to read on:

    shards          a batch is cut, its shards are run by a team, their gradients are added
    replicas        one shard: a model, and what it computes
    threads         the team of threads
    processes       the team of processes; worker is the program that they run, messages and shared_memory what they share
    own_loop        `shared`: three lines for a training loop of your own
"""

from tensorlite.parallel.messages import TeamError
from tensorlite.parallel.own_loop import SharedStep, shared
from tensorlite.parallel.processes import Processes
from tensorlite.parallel.shards import BatchShards
from tensorlite.parallel.teams import TEAMS, make_team
from tensorlite.parallel.threads import Workers

__all__ = ["TEAMS", "BatchShards", "Processes", "SharedStep", "TeamError", "Workers", "make_team", "shared"]
