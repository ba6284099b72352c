"""How many cores a process may use, inside of control groups of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data import cores


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 cores: writes what its control groups say."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(cores, "GROUPS", tmp_path / "proc")
    monkeypatch.setattr(cores, "LIMITS", tmp_path / "sys")

    def write(groups: str, **limits: str) -> None:
        (tmp_path / "proc").write_text(groups)
        for name, text in limits.items():
            path = Path(tmp_path, "sys", name.replace("__", "/").replace("_max", ".max").replace("cpu_cfs", "cpu.cfs"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_without_control_groups(machine):
    assert cores.available_cores() == 8


@pytest.mark.parametrize(
    "text, count",
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),  # a part of a core is one more worker, that waits now and then
        ("10000 100000\n", 1),
        ("1600000 100000\n", 8),
        ("", 8),
        ("max\n", 8),
        ("1 0\n", 8),
        ("none of this\n", 8),
    ],
)
def test_a_quota_in_version_2(machine, text, count):
    machine("0::/\n", cpu_max=text)
    assert cores.available_cores() == count


def test_the_least_of_all_groups_around_the_process(machine):
    machine("0::/user/job\n", user__cpu_max="300000 100000", user__job__cpu_max="500000 100000")
    assert cores.available_cores() == 3


@pytest.mark.parametrize("quota, count", [("-1\n", 8), ("250000\n", 3)])
def test_a_quota_in_version_1(machine, quota, count):
    machine(
        "4:memory:/a\n3:cpu,cpuacct:/docker/a:b\n1:name=systemd:/\n0::/\n",
        cpu__cpu_cfs_quota_us=quota,
        cpu__cpu_cfs_period_us="100000\n",
    )
    assert cores.available_cores() == count


def test_a_machine_without_information_has_one_core(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cores.available_cores() == 1
