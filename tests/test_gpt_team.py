"""Which team a run has, and what it says about it."""

import pytest

from gpt.config import TrainConfig
from gpt.errors import run_main
from gpt.train import main
from gpt.training.team import ENOUGH_STEPS, choose_team, describe_team


def described(**settings):
    config = TrainConfig(**settings)
    return describe_team(config, choose_team(config))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch):
    for module in ("gpt.training.team", "gpt.training.report"):
        monkeypatch.setattr(f"{module}.available_cores", lambda: 4)


def test_a_run_that_is_long_enough_has_processes():
    assert described(team="auto", steps=ENOUGH_STEPS) == f"4 processes (--team auto: processes from {ENOUGH_STEPS} steps on)"
    assert described(team="auto", steps=ENOUGH_STEPS - 1) == f"4 threads (--team auto: processes only from {ENOUGH_STEPS} steps on)"
    assert described(steps=ENOUGH_STEPS) == "4 threads"
    assert described(workers=1) == described(workers=1, team="processes") == "1 worker"


def test_whoever_asks_gets_it():
    assert described(steps=1, team="processes", workers=2) == "2 processes"
    assert described(steps=9999, team="threads") == "4 threads"


def test_one_shard_is_computed_by_one():
    assert choose_team(TrainConfig(shards=1)).name == "threads"


def test_a_gpu_has_none():
    assert choose_team(TrainConfig(backend="cupy")).count == 1
    with pytest.raises(ValueError, match="a team of processes is for the CPU: leave --team out"):
        TrainConfig(backend="cupy", team="processes")
    with pytest.raises(ValueError, match="unknown team 'proceses': did you mean 'processes'"):
        TrainConfig(team="proceses")


def test_more_workers_than_cores_are_warned_of(tmp_path, capsys):
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    shape = ["--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=8", "--batch-size=2", "--eval-iters=1", "--sample-length=0"]
    settings = [*shape, f"--data={tmp_path / 'fox.txt'}", "--steps=1", "--shards=2"]
    for workers, warned in ((4, False), (5, True)):
        assert run_main(lambda w=workers: main([*settings, f"--workers={w}", f"--out={tmp_path / str(w)}"])) == 0
        out = capsys.readouterr().out
        assert ("warning: 5 workers take turns on 4 cores: leave --workers out." in out) == warned
        assert f"workers     {workers} threads\n" in out
