"""A stand-in for CuPy, built on NumPy, for machines without a GPU: stricter than CuPy where CuPy would fail silently.

    def test_something(standin):                       # the fixture in tests/conftest.py; `any_cupy` is this, and a real GPU's CuPy
        x = standin.asarray(np.arange(3.0))            # `import cupy` gives the same module while the test runs
        np.asarray(x)                                  # TypeError, as in CuPy
    from tests.standin import machine
    machine.machine.reads                              # where the host waited for a value
    with machine.forbid_host_reads(): ...              # and here it must not

- Its arrays are no NumPy arrays, and NumPy's are refused among them.
- It has the names that CuPy has, read off the installed CuPy, and no others.
- Uninitialised memory holds NaN. A pool counts what is in use, and can have a limit.
- RawModule compiles our `.cu` files for the CPU (`tests.cuda_on_cpu`); cuBLAS works on pointers and notes what it was asked (`cublas`).
- A stream that captures notes its work instead of doing it; `Graph.launch` does it. What a capturing stream cannot take is an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.standin import machine


@contextmanager
def installed(computes: bool = True) -> Iterator[Any]:
    """`cupy` is the stand-in inside the ``with`` block; yields it.

    Args:
        computes: False lets it compute nothing, and only note what it is given (`machine.Machine.work`).
    """
    from tensorlite.kernels.cuda import columns, cublas, cublaslt
    from tensorlite.kernels.cuda import compile as compiling
    from tests.standin import array, library
    from tests.standin.cublas import _Library, _LtLibrary

    array._operators()
    machine.fresh_machine().computes = computes
    made = library.modules()
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("cupy", "cupyx") or name in made}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(made)
    for kept in (compiling, cublas, columns):
        kept.clear_cache()
    real, libraries = cublas.load, {"cublas": _Library(), "cublasLt": _LtLibrary()}
    cublas.load = cublaslt.load = lambda cupy, library: libraries[library]
    try:
        yield made["cupy"]
    finally:
        cublas.load = cublaslt.load = real
        for name in made:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
        for kept in (compiling, cublas, columns):
            kept.clear_cache()


__all__ = ["installed", "machine"]
