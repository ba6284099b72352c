"""Make a corpus laid out exactly like OpenWebText, from text files on this machine: python -m benchmarks.make_openwebtext OUT

    openwebtext.tar.xz
        openwebtext/urlsf_subset00-1_data.xz       each itself a tar.xz
            0000001-<hash>.txt                     a few thousand characters
            …

OpenWebText has about 390 documents in each of its 20,610 inner archives and 5 KB in each document. So has this corpus, with as many inner
archives as ``--megabytes`` of text fill. The text is prose and source code: all readable files under ``--from``.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import lzma
import os
import random
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PER_ARCHIVE = 390
PER_SUBSET = 8  # 1,000 in OpenWebText; fewer here, so that there are several subsets
LONGEST = 12_000  # characters of a document
MEMBER_TIME = 1_554_000_000  # all files have the same time, so that the same texts give the same bytes


def texts(folders: list[Path]) -> Iterator[str]:
    """Readable files, cut into documents of the length of a web page."""
    for folder in folders:
        for where, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                path = Path(where, name)
                if path.is_symlink() or not path.is_file():
                    continue
                try:
                    raw = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
                    text = raw.decode()
                except (OSError, EOFError, UnicodeDecodeError):
                    continue
                if "\0" in text or len(text) < 200:
                    continue
                start, pages = 0, random.Random(name)
                while start < len(text):
                    length = int(pages.triangular(500, LONGEST, 2500))
                    yield text[start : start + length]
                    start += length


def packed(documents: list[str], number: int, preset: int) -> bytes:
    """One inner archive."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for i, text in enumerate(documents):
            raw = text.encode()
            add(archive, f"{number * PER_ARCHIVE + i:07d}-{hashlib.md5(raw).hexdigest()}.txt", raw)
    return lzma.compress(inner.getvalue(), preset=preset)


def add(archive: tarfile.TarFile, name: str, raw: bytes) -> None:
    """Put a file into a tar archive."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(raw), MEMBER_TIME
    archive.addfile(info, io.BytesIO(raw))


def main() -> None:
    """Write the archive and say what is in it."""
    parser = argparse.ArgumentParser(description="Make an archive laid out like OpenWebText.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=int, default=220, help="of text")
    parser.add_argument("--from", dest="folders", type=Path, nargs="+", default=[Path("/usr/share/doc"), Path(os.__file__).parent])
    parser.add_argument("--preset", type=int, default=6, help="of xz; 6 is what OpenWebText was packed with")
    options = parser.parse_args()

    documents, size = [], 0
    for text in texts(options.folders):
        documents.append(text)
        size += len(text.encode())
        if size >= options.megabytes * 1_000_000:
            break
    random.Random(0).shuffle(documents)  # neighbouring documents must be unrelated: parts of one file side by side compress twice as well
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = [
            threads.submit(packed, documents[start : start + PER_ARCHIVE], number, options.preset)
            for number, start in enumerate(range(0, len(documents), PER_ARCHIVE))
        ]
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with lzma.open(options.out, "wb", preset=options.preset) as outer, tarfile.open(fileobj=outer, mode="w|") as archive:
            for number, inner in enumerate(found):
                subset, place = divmod(number, PER_SUBSET)
                add(archive, f"openwebtext/urlsf_subset{subset:02d}-{place + 1}_data.xz", inner.result())
    packed_size = options.out.stat().st_size
    print(f"{options.out}: {packed_size:,} bytes, {len(found)} inner archives, {len(documents):,} documents, {size:,} bytes of text")


if __name__ == "__main__":
    main()
