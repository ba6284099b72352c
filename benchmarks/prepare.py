"""How fast a corpus like OpenWebText becomes tokens, against the time that xz alone takes to decompress it: python -m benchmarks prepare

No program that reads the archive on one core can be faster than ``xz -dc`` on the outer archive and all inner ones: that is the limit.
Both are measured in turn. The corpus is made once, by `benchmarks.make_openwebtext`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from benchmarks.common import save, spread, table

ROOT = Path(__file__).resolve().parent.parent


def xz_seconds(archive: Path, inner: list[Path]) -> float:
    """Decompress everything and discard it."""
    start = time.perf_counter()
    for files in ([archive], inner):
        subprocess.run(["xz", "-dc", *map(str, files)], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def prepare_seconds(archive: Path, out: Path, options: list[str]) -> float:
    """Seconds of the program from start to end."""
    start = time.perf_counter()
    code = _started(archive, out, options).wait()
    seconds = time.perf_counter() - start
    _check(code)
    return seconds


def prepare_peak(archive: Path, out: Path, options: list[str]) -> float | None:
    """The peak memory of the program and its workers together, in megabytes; None if the system does not report it.

    The observation takes time, so the runs that are timed are not observed.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        return None
    process, peak = _started(archive, out, options), 0.0
    while process.poll() is None:
        peak = max(peak, _megabytes(process.pid))
        time.sleep(0.05)
    _check(process.returncode)
    return peak


def _started(archive: Path, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "data.prepare", str(archive), "--out", str(out), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)


def _check(code: int) -> None:
    if code:
        sys.exit(f"data.prepare failed with {code}")


def _megabytes(pid: int) -> float:
    """Memory of a process and its children; pages that they share count once (Linux)."""
    total = 0
    for process in (pid, *_children(pid)):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8").splitlines()
        except OSError:  # it has just ended
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1000


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def main(arguments: list[str]) -> None:
    """Measure in turn, and print and save the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks prepare", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--archive", type=Path, help="an archive that benchmarks.make_openwebtext made; by default one is made now")
    parser.add_argument("--megabytes", type=int, default=220, help="of text, if one is made now")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bpe", action="store_true", help="with a BPE of 4,096 tokens as well, once")
    options = parser.parse_args(arguments)
    if not shutil.which("xz"):
        sys.exit("xz is not here to compare with")

    with tempfile.TemporaryDirectory() as place:
        archive = options.archive
        if archive is None:
            archive = Path(place, "openwebtext.tar.xz")
            command = [sys.executable, "-m", "benchmarks.make_openwebtext", str(archive), "--megabytes", str(options.megabytes)]
            subprocess.run(command, check=True, cwd=ROOT)
        with lzma.open(archive) as file, tarfile.open(fileobj=file, mode="r|") as outer:
            outer.extractall(Path(place, "inner"), filter="data")
        inner = sorted(Path(place, "inner").rglob("*.xz"))
        out = Path(place, "out")

        limits, times = [], []
        for _ in range(options.rounds):
            limits.append(xz_seconds(archive, inner))
            times.append(prepare_seconds(archive, out, ["--workers", str(options.workers)]))
        peak = prepare_peak(archive, out, ["--workers", str(options.workers)])
        meta = json.loads((out / "meta.json").read_text(encoding="ascii"))
        characters = sum(meta["characters"].values())
        rows = [
            _row("xz -dc alone", limits, characters, limits),
            _row(f"char, {options.workers} workers", times, characters, limits, peak),
        ]
        if options.bpe:
            seconds = prepare_seconds(archive, out, ["--workers", str(options.workers), "--tokenizer", "bpe"])
            rows.append(_row(f"bpe, {options.workers} workers", [seconds], characters, limits))
    compression = characters / archive.stat().st_size
    print(
        f"{sum(meta['documents'].values()):,} documents, {characters:,} characters, {len(inner)} inner archives, "
        f"{compression:.1f} characters a compressed byte"
    )
    print(table(rows))
    save(
        "prepare",
        {
            "characters": characters,
            "characters_a_compressed_byte": compression,
            "documents": meta["documents"],
            "xz": spread(limits),
            "char": spread(times),
            "rows": rows,
        },
    )


def _row(what: str, times: list[float], characters: int, limits: list[float], peak: float | None = None) -> dict[str, object]:
    median = spread(times)["median"]
    return {
        "what": what,
        "seconds": round(median, 2),
        "M characters/s": round(characters / 1e6 / median, 1),
        "of xz alone": f"{spread(limits)['median'] / median:.0%}",
        "peak MB": "" if peak is None else round(peak),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
