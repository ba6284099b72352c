"""Read 2,000 GGUF files with a fault each:  python scripts/fuzz_gguf.py [COUNT] [SEED]

Each file is refused in one sentence, or read: a file in which another bit of a weight is set is a good file. What is looked for is a
traceback, a file that takes longer than ten seconds, and one that takes more memory than the unchanged file does.
"""

from __future__ import annotations

import faulthandler
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gguf_mutations import Mutator, read_everything
from tests.test_gguf import write_samples

LONGEST = 10.0  # seconds
MOST_MEMORY = 1.5  # times that of the unchanged file


def main(count: int = 2000, seed: int = 0) -> None:
    """Read them; ends with code 1 after a traceback or too much memory. A file that hangs ends the program, with its traceback."""
    rng, tracebacks, longest, most = np.random.default_rng(seed), 0, 0.0, 0.0
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        samples = [(Mutator(path), read_everything(path)[1]) for path in write_samples(Path(folder))]
        for number in range(count):
            mutator, memory = samples[number % len(samples)]
            kind, content = mutator.mutate(rng)
            path = Path(folder, "mutated.gguf")
            path.write_bytes(content)
            faulthandler.dump_traceback_later(LONGEST, exit=True)
            begin = time.perf_counter()
            try:
                said, peak = read_everything(path)
            except BaseException:  # noqa: BLE001 - a library's panic is one, too
                print(f"file {number} ({kind}):\n{traceback.format_exc()}")
                tracebacks += 1
                said, peak = "traceback", 0
            faulthandler.cancel_dump_traceback_later()
            longest, most = max(longest, time.perf_counter() - begin), max(most, peak / memory)
            found.setdefault(kind, Counter())["refused" if said else "read"] += 1
    for kind, outcomes in sorted(found.items()):
        print(f"{kind:<20}{outcomes['refused']:>6} refused{outcomes['read']:>6} read")
    print(f"{count:,} files: {tracebacks} tracebacks, at most {longest:.2f} s, at most {most:.2f} times the memory of the unchanged file")
    sys.exit(bool(tracebacks) or most > MOST_MEMORY)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
