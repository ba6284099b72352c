"""A stand-in for Windows, for machines that have POSIX: programs that run in `environment()` find nothing that Windows lacks.

`sitecustomize`, which Python imports before anything else, takes it away:

- modules: fcntl, resource, pwd, termios, …; functions: os.fork, os.pwrite, os.sched_getaffinity, os.mkfifo, …; signals: SIGHUP, SIGKILL, …
- /proc, /sys and /dev; symbolic links; a folder that is opened; a file name with a colon or another character that Windows refuses.
- A file or folder is neither replaced, renamed nor removed while any process of this machine has it open, or mapped into memory.
- Text that is opened without naming an encoding is an error in our packages; elsewhere it is cp1252, as stdin, stdout and stderr are.
  Lines of text end in "\\r\\n".
- Mappings of memory have names, which end with them; processes inherit no open files, and are kept from Ctrl-C by a group of their own.
- Our packages are told that this is Windows (`sys.platform`). Libraries are not: they would look for its DLLs.

What it cannot show: Ctrl-C at a console, and a lock that keeps others from reading.
"""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent


def environment() -> dict[str, str]:
    """The environment variables of a process on that machine."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "LC_", "LANG"))}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent.parent)]),
        "PYTHONIOENCODING": "cp1252",
        "PYTHONUTF8": "0",
        "PYTHONWARNDEFAULTENCODING": "1",
    }
