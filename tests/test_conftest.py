"""What tests/conftest.py promises to every test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parent.parent
STARTED_IGNORING = """
import signal, subprocess, sys
for name in ("SIGINT", "SIGHUP"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)
sys.exit(subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode)
"""
INTERRUPT_A_CHILD = """
import subprocess, sys
from tests.conftest import stop_ignoring_signals
stop_ignoring_signals()
child = "import os, signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL); os.kill(os.getpid(), signal.SIGINT)"
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
assert done.stdout == "True\\n", done
assert "KeyboardInterrupt" in done.stderr, done
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process on Windows inherits no ignored signals")
def test_ctrl_c_reaches_programs_even_if_the_suite_ignores_it():
    command = [sys.executable, "-c", STARTED_IGNORING, INTERRUPT_A_CHILD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
