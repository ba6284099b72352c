"""Keep freed memory between two steps; measure how much memory is used and free.

A training step allocates and frees the same large arrays again and again. On Linux, glibc's malloc returns every
large block to the system when it is freed, and requests a new one a moment later. The system then fills each page
with zeros at its first access. For array code this takes up to a third of the time. `keep_freed_memory` tells
malloc to keep freed blocks for the next arrays.
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
    """Make malloc keep freed blocks for the rest of the process; return whether that was possible.

    Where malloc is not glibc's (macOS, Windows, musl) this does nothing and returns False. The setting holds for
    the whole process, so only programs call this (``python -m gpt.train`` does), never the library.
    Source: the manual page mallopt(3).
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        (
            mallopt(_M_MMAP_MAX, 0),  # large blocks come from the heap, too, not from a separate mapping
            mallopt(_M_TRIM_THRESHOLD, 2**31 - 1),  # the free end of the heap stays
            mallopt(_M_ARENA_MAX, 1),  # one heap for all threads, so that one worker can use what another has freed
        )
    )


def peak_memory() -> int | None:
    """The largest resident set of this process so far, in bytes; None on Windows."""
    if sys.platform == "win32":
        return None
    # On Linux, the value of getrusage starts at the memory of the parent process.
    found = re.search(r"^VmHWM:\s*(\d+) kB", _text("/proc/self/status"), re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory() -> int | None:
    """How many bytes this process can still allocate: the free memory of the machine, or less under a limit; None if unknown."""
    limits = [limit for limit in (_free_on_machine(), _free_in_group(), _free_under_limit()) if limit is not None]
    return max(0, min(limits)) if limits else None


def _free_on_machine() -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_in_group() -> int | None:
    """What is free in the control group, such as a container."""
    limit, used = (_text(f"/sys/fs/cgroup/memory.{name}").strip() for name in ("max", "current"))
    return int(limit) - int(used) if limit.isdigit() and used.isdigit() else None


def _free_under_limit() -> int | None:
    """What is free under ``ulimit -v``."""
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
