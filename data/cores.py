"""The number of cores that this process can use."""

from __future__ import annotations

import math
import os
from pathlib import Path, PurePosixPath

GROUPS = Path("/proc/self/cgroup")  # the control groups of this process, on Linux
LIMITS = Path("/sys/fs/cgroup")  # the limits of each group


def available_cores() -> int:
    """The number of cores this process can use: those in its affinity mask, or fewer if a container has a quota of CPU time."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota())))


def _quota() -> float:
    """The quota of this process's control groups, in cores: the smallest one, because each group lies within the next."""
    quotas = [math.inf]
    for line in _text(GROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        for group in (PurePosixPath(path), *PurePosixPath(path).parents):
            inside = group.relative_to("/")
            if not controllers:  # version 2: "200000 100000" are two cores
                quotas.append(_ratio(_text(LIMITS / inside / "cpu.max")))
            elif "cpu" in controllers.split(","):  # version 1: the same in two files
                files = (LIMITS / "cpu" / inside / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
                quotas.append(_ratio(" ".join(map(_text, files))))
    return min(quotas)


def _ratio(text: str) -> float:
    """Quota over period; infinite where there is no quota, which is written as "max" or -1."""
    numbers = text.split()
    return int(numbers[0]) / int(numbers[1]) if len(numbers) == 2 and all(map(str.isdecimal, numbers)) and int(numbers[1]) else math.inf


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
