"""Data parallelism on the cores of a CPU, and on many CPUs: a team shares each batch, and so do ranks with a team each.

There are two ways to use several cores. One splits every op, and synchronises all cores a hundred times a step. The
other splits the *batch*: some rows go through forward and backward of the whole model on each core, and the cores
synchronise once a step, to add their gradients. This package does the second.

- A *shard* is a part of the batch, with a replica of the model: the same parameters, its own gradients, its own
  random generator. The number of shards decides how sums are rounded. Gradients are added in a tree that it fixes.
- A *team* runs the shards: `Workers` are threads, `Processes` are processes that share memory. Threads wait for Python's lock
  between two calls of NumPy; processes do not. The team and its size change the time, and no bit of the result.
- A *rank* is a process that MPI has started, on this machine or another. All ranks are the `World`. It shares out the shards, and each rank
  has a model and a team of its own. The number of ranks changes no bit of the result, either.

Where to read on:

    shards          a batch is cut, and its shards are run by a team
    tree            the order in which gradients are added; gradient_sum adds them, in one process and across ranks
    replicas        one shard: a model, and what it computes
    threads         the team of threads
    processes       the team of processes; worker is the program that they run, messages and shared_memory what they share
    heartbeat       how a process that no longer answers is noticed
    shared_update   a step of the optimizer, shared out among processes
    ranks           how ranks talk, and how all of them end when one does
    nccl            a GPU for each rank; gradient_sum_on_gpus adds their gradients within a CUDA graph
    own_loop        `shared`: three lines for a training loop of your own
"""

from tensorlite.parallel.messages import TeamError
from tensorlite.parallel.own_loop import SharedStep, shared
from tensorlite.parallel.processes import Processes
from tensorlite.parallel.ranks import RankError, World, connect
from tensorlite.parallel.shards import BatchShards
from tensorlite.parallel.teams import TEAMS, make_team
from tensorlite.parallel.threads import Workers

__all__ = [
    "TEAMS",
    "BatchShards",
    "Processes",
    "RankError",
    "SharedStep",
    "TeamError",
    "Workers",
    "World",
    "connect",
    "make_team",
    "shared",
]
