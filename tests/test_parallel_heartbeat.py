"""A process that shows no sign of life is given up, and one that takes long is not."""

import functools
import os
import signal
import subprocess
import time

import numpy as np
import pytest

import tensorlite as tl
from tensorlite.parallel import BatchShards, Processes, TeamError, Workers, processes, shared_update
from tensorlite.parallel.heartbeat import INTERVAL, Watch
from tensorlite.random import make_generator
from tests.patience import PATIENCE
from tests.test_parallel_processes import batch, digest, extended, is_running, stepping

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
GIVEN_UP = r"a worker process was stopped, or hung: it showed no sign of life for \d+ seconds, and was ended"


class Recorded:
    """A process of which it is noted how it is given up."""

    def __init__(self):
        self.heartbeats, self.given_up = np.zeros((), np.int64), []

    def give_up(self, seconds):
        self.given_up.append(seconds)


def test_a_process_is_given_up_after_as_many_looks_without_a_heartbeat_as_the_limit_has_seconds():
    alive, silent = Recorded(), Recorded()
    watch = Watch([alive, silent], limit=3 * INTERVAL)
    for missed in (2, 2, 3):
        silent.heartbeats += 1
        watch.look()
        for _ in range(missed):
            assert not silent.given_up
            alive.heartbeats += 7  # what it counts does not matter, only that it does
            watch.look()
    assert silent.given_up == [3 * INTERVAL]
    assert not alive.given_up


def test_time_in_which_the_watch_did_not_run_does_not_count(monkeypatch):
    """The computer slept for a day: all clocks of this process jump, and no process has had time for a heartbeat."""
    monotonic, slept = time.monotonic, [0.0]
    for clock in ("monotonic", "time", "perf_counter"):
        monkeypatch.setattr(time, clock, lambda: monotonic() + slept[0])
    process = Recorded()
    watch = Watch([process], limit=3 * INTERVAL)
    watch.look()
    slept[0] = 86400.0
    watch.look()
    assert not process.given_up


class Slow(tl.nn.Module):
    """In another process its forward multiplies matrices until ``file`` exists; in this one, until that process has had a heartbeat."""

    def __init__(self, file):
        super().__init__()
        self.weight, self.file, self.parent = tl.nn.Parameter(tl.ones(3)), file, os.getpid()

    def forward(self, x):
        if os.getpid() == self.parent:
            wait_for_heartbeat(TEAMS[0]._others[0])
            self.file.touch()
        matrix, end = np.ones((300, 300), np.float32), time.monotonic() + PATIENCE
        while not self.file.exists():
            assert time.monotonic() < end
            matrix = matrix @ matrix * 0
        return x, (self.weight * x).sum()


TEAMS = []  # the team of the test that runs; a model in a task has no other way to it


def wait_for_heartbeat(process):
    before, end = int(process.heartbeats), time.monotonic() + PATIENCE
    while process.heartbeats == before:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_heart_beats_while_a_process_computes_and_while_it_has_nothing_to_do(tmp_path):
    model = Slow(tmp_path / "done")
    optimizer = tl.optim.SGD(model.parameters(), lr=0.1)
    with Processes(3) as team:
        TEAMS[:] = [team]
        parallel = BatchShards(model, optimizer.flats, 3, team)
        parallel.forward_backward((tl.ones((2, 3)),), functools.partial(make_generator, 0))  # two rows: the third has none
        wait_for_heartbeat(team._others[1])


def stop(process):
    """Stop a process, and wait until it does not run any more."""
    os.kill(process._process.pid, signal.SIGSTOP)
    while not subprocess.run(["ps", "-o", "stat=", "-p", str(process._process.pid)], capture_output=True).stdout.startswith(b"T"):
        time.sleep(0.01)


@posix
def test_a_process_that_is_stopped_ends_the_step_and_the_next_one_is_as_if_nothing_had_happened():
    with Workers(1) as team:
        step = stepping(team)
        expected = [step(), step()]
    with Processes(2) as team:
        step = stepping(team)
        assert step() == expected[0]
        stop(stopped := team._others[0])
        team._watch.limit = 1
        with pytest.raises(TeamError, match=GIVEN_UP):
            step()
        assert not is_running(stopped._process.pid)
        assert step() == expected[1]


@posix
def test_a_process_that_is_stopped_before_it_has_read_its_model_is_given_up(monkeypatch):
    """Its pipe is full then, and it is the message that waits."""

    class Stopped(processes._Process):
        def __init__(self, *args):
            super().__init__(*args)
            stop(self)

    monkeypatch.setattr(processes, "_Process", Stopped)
    model, optimizer = extended()
    model.text = "x" * 200_000
    with Processes(2) as team:
        team.limit = 1
        parallel = BatchShards(model, optimizer.flats, 2, team)
        with pytest.raises(TeamError, match=GIVEN_UP):
            parallel.forward_backward(batch(4), functools.partial(make_generator, 0))


@posix
def test_a_process_that_is_stopped_in_an_update_leaves_it_to_the_others(monkeypatch):
    monkeypatch.setattr(shared_update, "TILE", 40)

    def run(team):
        model, optimizer = extended()
        parallel = BatchShards(model, optimizer.flats, 2, team, optimizer=optimizer)
        compute = functools.partial(parallel.forward_backward, batch(4), functools.partial(make_generator, 0))
        compute()
        if team.name == "processes":
            stop(team._others[0])
            team._watch.limit = 1
        team.update(optimizer)
        optimizer.zero_grad()
        return digest(model, optimizer), compute

    with Workers(1) as thread, Processes(2) as team:
        updated, compute = run(team)
        assert updated == run(thread)[0]
        with pytest.raises(TeamError, match=GIVEN_UP):
            compute()
