"""`make pythons`: import everything, train and generate with each Python on this machine, with only the run-time dependencies."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environments import ROOT, VERSIONS, interpreter, make_environment


def main() -> None:
    """Test one Python after the other, each in its own environment; fail at the end if one of them failed."""
    ran, failed = [], []
    for version in VERSIONS:
        python = interpreter(version)
        if python is None:
            print(f"Python {version}: not on this machine.")
            continue
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            inside = make_environment(Path(folder, "venv"), python, "--editable", ".")
            code = subprocess.run([inside, "-W", "error", ROOT / "scripts" / "smoke.py"], cwd=folder).returncode
        print(f"Python {version}: {'passed' if code == 0 else 'FAILED'}, {time.monotonic() - start:.0f} s.", flush=True)
        ran.append(version)
        if code:
            failed.append(version)
    print(f"Everything was imported, trained and written under Python {', '.join(ran)}.")
    if failed or not ran:
        sys.exit(f"Failed under Python {', '.join(failed)}." if ran else f"There is none of Python {', '.join(VERSIONS)} here.")


if __name__ == "__main__":
    main()
