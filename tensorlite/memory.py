"""Memory that is not given back between two steps.

A training step allocates and frees the same large arrays again and again. On Linux, glibc's malloc hands
every large block back to the system when it is freed and asks for a fresh one a moment later; the system
then fills each page with zeros at its first touch. For array code that is up to a third of the time.
`keep_freed_memory` tells malloc to keep what was freed for the next array of that size.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import sys
from pathlib import Path

# <malloc.h>: the parameters of mallopt
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


@functools.cache
def keep_freed_memory() -> bool:
    """Let malloc keep freed blocks for the rest of the process; returns whether that could be set.

    Where malloc is not glibc's (macOS, Windows, musl) this does nothing and returns False. The setting holds for
    everything in the process, which is why only programs call this (``python -m gpt.train`` does), never the library.
    Source: the manual page mallopt(3).
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        (
            mallopt(_M_MMAP_MAX, 0),  # large blocks come from the heap too, and not from a mapping of their own
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),  # the free end of the heap stays
            mallopt(_M_ARENA_MAX, 1),  # one heap for all threads: what one worker frees another can use
        )
    )


def peak_memory() -> int | None:
    """The most memory, in bytes, that this process has had in use so far (its resident set); None on Windows."""
    if sys.platform == "win32":
        return None
    # On Linux, what getrusage says begins with the memory of the program that started this one.
    found = re.search(r"^VmHWM:\s*(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int | None:
    """How many bytes this process could still get: what the machine has left, or less where a limit is set; None if nobody says."""
    rooms = [room for room in (_free_on_machine(), _free_in_group(), _free_under_limit()) if room is not None]
    return max(0, min(rooms)) if rooms else None


def _free_on_machine() -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_in_group() -> int | None:
    """What the control group, such as a container, has left."""
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _free_under_limit() -> int | None:
    """What ``ulimit -v`` leaves."""
    found = re.search(r"^VmSize:\s*(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
    if sys.platform == "win32" or not found:
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if limit == resource.RLIM_INFINITY else limit - int(found[1]) * 1024


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
