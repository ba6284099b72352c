"""See this package's docstring. Whoever calls: what follows holds for the whole process, from its first line on."""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import io
import locale
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from typing import Any

OURS = ("tensorlite", "gpt", "data", "study", "benchmarks")
MODULES = ("fcntl", "grp", "posix_ipc", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
FUNCTIONS = (
    "chown", "chroot", "confstr", "copy_file_range", "ctermid", "eventfd", "fchdir", "fchmod", "fchown", "fork", "forkpty", "fpathconf",
    "fstatvfs", "getegid", "geteuid", "getgid", "getgroups", "getloadavg", "getpgid", "getpgrp", "getpriority", "getsid", "getuid",
    "killpg", "lchown", "lockf", "major", "memfd_create", "minor", "mkfifo", "mknod", "nice", "openpty", "pathconf", "pipe2",
    "posix_fadvise", "posix_fallocate", "posix_spawn", "posix_spawnp", "pread", "preadv", "pwrite", "pwritev", "readv",
    "sched_getaffinity", "sched_setaffinity", "sched_yield", "sendfile", "setpgid", "setpriority", "setsid", "statvfs", "sync",
    "sysconf", "tcgetpgrp", "ttyname", "writev",
)  # fmt: skip
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
IN_USE = "The process cannot access the file because it is being used by another process"
REFUSED_IN_NAMES = re.compile(r'[<>:"|?*]|[. ]$')
NOT_THERE = re.compile(r"/(proc|sys|dev)/")

_open, _os_open, _mkdir, _stat, _memfd_create = io.open, os.open, os.mkdir, os.stat, os.memfd_create


# --- what is not there --------------------------------------------------------------------------------


def seen(module: types.ModuleType, gone: set[str], **told: Any) -> types.ModuleType:
    """``module`` as our packages see it: without some names, and with another value of others."""

    class Seen(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name in gone:
                raise AttributeError(f"module {module.__name__!r} has no attribute {name!r} on Windows")
            return told[name] if name in told else getattr(module, name)

        def __setattr__(self, name: str, value: Any) -> None:
            setattr(module, name, value)

    return Seen(module.__name__)


def locking(descriptor: int, mode: int, size: int) -> None:
    """msvcrt.locking, of a byte that the file need not have."""
    assert (mode, size) == (2, 1), "only LK_NBLCK of one byte is known here"
    assert os.lseek(descriptor, 0, os.SEEK_CUR) >= os.fstat(descriptor).st_size, "nobody could read that byte any more"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PermissionError(errno.EACCES, "Permission denied") from None


def mapped(descriptor: int, length: int, *rest: Any, tagname: str | None = None, **more: Any) -> mmap.mmap:
    """mmap.mmap(). The process that made a mapping with a name is this one's parent, or this one."""
    if tagname is None:
        return mmap.mmap(descriptor, length, *rest, **more)
    assert descriptor == -1
    parent = f"/proc/{os.getppid()}/fd"
    made_there = [n for n in os.listdir(parent) if os.readlink(f"{parent}/{n}") == f"/memfd:{tagname} (deleted)"]
    file = _os_open(f"{parent}/{made_there[0]}", os.O_RDWR) if made_there else _memfd_create(tagname)
    os.ftruncate(file, length)
    mapping = mmap.mmap(file, length)
    os.close(file)
    return mapping


def started(*arguments: Any, creationflags: int = 0, **more: Any) -> Any:
    """subprocess.Popen()"""
    assert creationflags in (0, 0x200) and not {"pass_fds", "start_new_session", "preexec_fn"} & set(more)
    return subprocess.Popen(*arguments, **more)


msvcrt = types.ModuleType("msvcrt")
vars(msvcrt).update(LK_NBLCK=2, locking=locking)
SEEN = {
    "sys": seen(sys, set(), platform="win32"),
    "signal": seen(signal, {name for name in dir(signal) if name.startswith("SIG") and name not in SIGNALS} | {"alarm", "setitimer"}),
    "msvcrt": msvcrt,
    "mmap": seen(mmap, set(), mmap=mapped),
    "subprocess": seen(subprocess, set(), CREATE_NEW_PROCESS_GROUP=0x200, Popen=started),
}
_import = builtins.__import__


def is_ours(names: Any) -> bool:
    """Whether a module with these globals is one of our packages', or the program itself."""
    return (names or {}).get("__name__", "").partition(".")[0] in (*OURS, "__main__")


def imported(name: str, globals: Any = None, *rest: Any, **more: Any) -> Any:
    """The statement ``import``"""
    return SEEN[name] if name in SEEN and is_ours(globals) else _import(name, globals, *rest, **more)


# --- what is another there ----------------------------------------------------------------------------


def opened(
    file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None, **more: Any
) -> Any:
    """open()"""
    if not isinstance(file, int):
        require_name(file, writing=not set(mode).isdisjoint("wax+"))
    if "b" not in mode:
        if encoding is None and is_ours(sys._getframe(1).f_globals):
            raise EncodingWarning(f"{file} is opened as text, and no encoding is named: here it would be cp1252")
        encoding = "cp1252" if encoding in (None, "locale") else encoding
        newline = "\r\n" if newline is None and "r" not in mode else newline
    return _open(file, mode, buffering, encoding, errors, newline, **more)


def os_opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
    """os.open()"""
    require_name(path, writing=bool(flags & os.O_CREAT))
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
    return _os_open(path, flags, *rest, **more)


def stat(path: Any, *rest: Any, **more: Any) -> os.stat_result:
    """os.stat()"""
    if not isinstance(path, int):
        require_name(path, writing=False)
    return _stat(path, *rest, **more)


def require_name(path: Any, writing: bool) -> None:
    name = os.fsdecode(path)
    if NOT_THERE.match(name) and name != os.devnull:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", name)
    if writing and REFUSED_IN_NAMES.search(os.path.basename(name)):
        raise OSError(errno.EINVAL, "Invalid argument", name)


def in_use(path: Any) -> bool:
    """Whether a process of this machine has the file, or one in the folder, open or mapped."""
    folder, name = os.path.split(os.path.abspath(path))
    wanted = os.path.join(os.path.realpath(folder), name)
    found = (name for process in filter(str.isdecimal, os.listdir("/proc")) for name in files_of(f"/proc/{process}"))
    return any(name == wanted or name.startswith(wanted + os.sep) for name in found)


def files_of(process: str) -> Iterator[str]:
    """What a process of this machine has open or mapped; nothing if it is of another one, or has just ended."""
    with contextlib.suppress(OSError):
        with _open(f"{process}/environ", "rb") as file:
            if os.fsencode(os.path.dirname(__file__)) not in file.read():
                return
        for number in os.listdir(f"{process}/fd"):
            with contextlib.suppress(OSError):  # it has just been closed
                yield os.readlink(f"{process}/fd/{number}")
        with _open(f"{process}/maps", encoding="utf-8", errors="surrogateescape") as file:
            yield from (line.rstrip("\n").split(maxsplit=5)[-1] for line in file)


def guarded(function: Any, target_may_exist: bool = True) -> Any:
    """``function`` of a path, and of a second one that the first one takes; neither may be in use."""

    def guard(path: Any, *rest: Any, **more: Any) -> Any:
        target = [name for name in rest if isinstance(name, str | os.PathLike)]
        require_name(target[0] if target else path, writing=bool(target))
        for name in (path, *target):
            if in_use(name):
                error = PermissionError(
                    errno.EACCES, "The process cannot access the file because it is being used by another process", os.fspath(name)
                )
                error.winerror = 32  # type: ignore[attr-defined]
                raise error
        if target and not target_may_exist and os.path.lexists(target[0]):
            raise FileExistsError(errno.EEXIST, "Cannot create a file when that file already exists", os.fspath(target[0]))
        return function(path, *rest, **more)

    return guard


def made(path: Any, *rest: Any, **more: Any) -> None:
    """os.mkdir()"""
    require_name(path, writing=True)
    _mkdir(path, *rest, **more)


def no_links(*arguments: Any, **more: Any) -> None:
    raise OSError(errno.EINVAL, "A required privilege is not held by the client", os.fspath(arguments[1]))


# --- from here on ---------------------------------------------------------------------------------------

for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
for name in FUNCTIONS:
    vars(os).pop(name, None)
if hasattr(os, "process_cpu_count"):
    os.process_cpu_count = os.cpu_count
os.open, os.mkdir, os.stat, os.symlink = os_opened, made, stat, no_links  # type: ignore[assignment]
os.replace, os.remove, os.unlink, os.rmdir = map(guarded, (os.replace, os.remove, os.unlink, os.rmdir))
os.rename = guarded(os.rename, target_may_exist=False)
shutil._use_fd_functions = False  # type: ignore[attr-defined]
io.open = builtins.open = opened
locale.getpreferredencoding = lambda do_setlocale=True: "cp1252"
warnings.filterwarnings("ignore", category=EncodingWarning)  # what libraries open is theirs
warnings.filterwarnings("error", category=EncodingWarning, module=rf"({'|'.join((*OURS, '__main__'))})\b")
builtins.__import__ = imported
for stream in (sys.stdout, sys.stderr):
    stream.reconfigure(newline="\r\n")
