"""``python -m tests.standin MODULE [ARGUMENTS]``: run a program with the stand-in in the place of CuPy."""

import runpy
import sys

from tests.standin import installed

if __name__ == "__main__":
    del sys.argv[0]
    with installed():
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
