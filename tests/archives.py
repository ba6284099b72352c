"""Archives made in memory, for tests."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def tar(files: dict[str, bytes], entries: list[tarfile.TarInfo] | None = None, **options) -> bytes:
    """A tar archive of ``files``, and of ``entries`` without content (links, devices, …)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for entry in entries or []:
            archive.addfile(entry)
    return buffer.getvalue()


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """A link, or with another kind a device, a pipe or a folder."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def seven_zipped(files: dict[str, bytes], password: str | None = None) -> bytes:
    """A 7z archive."""
    import py7zr

    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w", password=password) as archive:
        for name, content in files.items():
            archive.writestr(content, name)
    return buffer.getvalue()


PACKERS = {
    "plain": lambda raw: raw,
    "gz": lambda raw: gzip.compress(raw, mtime=0),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: zstd.compress(raw, options={zstd.CompressionParameter.checksum_flag: 1}),
}


def story(i: int, length: int = 40) -> bytes:
    """The text of document ``i``: no two are alike."""
    return (f"Document {i}. " + " ".join(f"word{(i * 7919 + k * k) % 997}" for k in range(length)) + ".\n").encode()


def openwebtext(archives: int = 4, documents: int = 12, length: int = 40) -> bytes:
    """The layout of openwebtext.tar.xz: in it a tar.xz for each part, in these the texts."""
    inner = {
        f"openwebtext/urlsf_subset{a // 2:02d}-{a % 2 + 1}_data.xz": lzma.compress(
            tar({f"{a * documents + d:07d}-abc.txt": story(a * documents + d, length) for d in range(documents)})
        )
        for a in range(archives)
    }
    return lzma.compress(tar(inner, [link("openwebtext", "", tarfile.DIRTYPE)]))
