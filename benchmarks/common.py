"""Shared code of the benchmarks: the machine, medians and spreads, tables, and a JSON file."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_info

from data.cores import available_cores

RESULTS = Path(os.environ.get("TENSORLITE_RESULTS") or Path(__file__).parent / "results")


def machine() -> dict[str, Any]:
    """The processor, the libraries and their versions, which every figure depends on."""
    versions = {}
    for package in ("numpy", "torch", "threadpoolctl", "cupy-cuda12x", "cupy-cuda13x"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    np.ones((2, 2)) @ np.ones((2, 2))  # loads the BLAS, so that threadpoolctl sees it
    blas = [
        f"{info['internal_api']} {info['version']} ({info.get('architecture', '?')})"
        for info in threadpool_info()
        if info["user_api"] == "blas"
    ]
    return {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": available_cores(),
        "system": " ".join((platform.system(), platform.machine(), *platform.libc_ver())).strip(),
        "python": platform.python_version(),
        "blas": sorted(set(blas)),
        **versions,
    }


def _processor() -> str:
    """The processor's name and, where Linux says so, its widest vector instructions."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    facts = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = facts.get("flags", "").split()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return f"{facts.get('model name', platform.machine())} {vectors}".strip()


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "count": len(values)}


def median_and_range(found: dict[str, float], form: str = "") -> str:
    """A `spread` as text; without a form, with one decimal below 100."""
    form = form or (".1f" if found["median"] < 100 else ",.0f")
    return "{median:{0}} ({min:{0}} – {max:{0}})".format(form, **found)


def save(name: str, results: Any, gpu: str | None = None) -> Path:
    """Write ``benchmarks/results/<name>.json`` with the machine, and the GPU if one was used, beside the results.

    The environment variable TENSORLITE_RESULTS names another folder.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    who = machine() | ({"gpu": gpu} if gpu else {})
    path.write_text(json.dumps({"machine": who, "results": results}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {os.path.relpath(path)}")
    return path


def gpu_name(cupy: Any) -> str:
    """The GPU in use, with its driver's and the runtime's CUDA versions."""
    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    return f"{name}, driver for CUDA {_version(runtime.driverGetVersion())}, runtime {_version(runtime.runtimeGetVersion())}"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    cells[1] = ["-" * width for width in widths]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells)


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}" if isinstance(value, float) else str(value)


def options_of(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for the options of one benchmark, whose --help shows its docstring as it is."""
    return argparse.ArgumentParser(
        f"python -m benchmarks {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def require_torch() -> None:
    """Exit with one sentence where torch is missing."""
    if importlib.util.find_spec("torch") is None:  # not imported: each side is a separate process
        sys.exit("benchmarks compare with torch, which is not installed: pip install 'tensorlite[test]'.")
