"""`make kernels`: the numeric tests once more, under every OpenBLAS kernel that this CPU can execute.

OpenBLAS adds in another order on another CPU, so the last bits of a product differ. ``OPENBLAS_CORETYPE`` names the CPU whose kernels it
should use. Several names can mean the same kernels, which then run once. NumPy's default kernels are left out,
because `make test` runs under them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
NEEDS = {  # the instruction sets of a kernel, with their names in /proc/cpuinfo
    "Prescott": {"pni"},  # SSE3
    "Nehalem": {"sse4_2"},
    "Sandybridge": {"avx"},
    "Haswell": {"avx2", "fma"},
    "Zen": {"avx2", "fma"},
    "SkylakeX": AVX512,
    "Cooperlake": AVX512 | {"avx512_bf16"},
    "Sapphirerapids": AVX512 | {"avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"},
}
ASK = """
import numpy, threadpoolctl
blas = [info for info in threadpoolctl.threadpool_info() if info["internal_api"] == "openblas" and "numpy" in info["filepath"]]
print(*(info["architecture"] for info in blas))
"""


def cpu_flags() -> set[str]:
    """The instruction sets of the CPU, with Linux's names."""
    try:
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        sys.exit("which BLAS kernels this CPU can execute stands in the flags of /proc/cpuinfo, and this machine has none.")
    return set(found[1].split())


def with_kernel(name: str | None) -> dict[str, str]:
    """The environment in which NumPy uses the kernels of ``name``, or its default kernels."""
    return {**os.environ, **({"OPENBLAS_CORETYPE": name} if name else {})}


def kernels_of(name: str | None) -> str:
    """The kernels that NumPy's OpenBLAS reports."""
    done = subprocess.run([sys.executable, "-c", ASK], env=with_kernel(name), stdout=subprocess.PIPE, text=True, check=True)
    if not done.stdout.strip():
        sys.exit("NumPy brings another BLAS than OpenBLAS here: there are no kernels to choose from.")
    return done.stdout.strip()


def main(arguments: list[str]) -> None:
    """Run pytest with ``arguments`` under one kernel after the other; fail at the end if one of them failed."""
    flags, own = cpu_flags(), kernels_of(None)
    ran, failed = [own], []
    print(f"NumPy takes the kernels of {own} by itself.")
    for name, needed in NEEDS.items():
        if missing := needed - flags:
            print(f"{name}: this CPU lacks {', '.join(sorted(missing))}.")
        elif (kernels := kernels_of(name)) in ran:
            print(f"{name}: the kernels of {kernels} again.")
        else:
            print(f"{name}: the kernels of {kernels}.", flush=True)
            start = time.monotonic()
            if subprocess.run([sys.executable, "-m", "pytest", "-m", "numeric", *arguments], cwd=ROOT, env=with_kernel(name)).returncode:
                failed.append(name)
            ran.append(kernels)
            print(f"{name}: {time.monotonic() - start:.0f} s.", flush=True)
    print(f"The numeric tests ran under {len(ran) - 1} kernels beside {own}: {', '.join(ran[1:])}.")
    if failed:
        sys.exit(f"They failed under {', '.join(failed)}.")


if __name__ == "__main__":
    main(sys.argv[1:])
