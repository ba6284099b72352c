"""The type of a stream of bytes, from its first bytes: people rename files, and download error pages with the names of archives."""

from __future__ import annotations

import codecs

from data.sources.streams import MAGIC as STREAMS
from data.sources.tar import is_header

HEAD = 4096  # bytes that `kind_of` examines

COMPRESSED = tuple(STREAMS)
ARCHIVES = ("tar", "zip", "7z")

APPLE_DOUBLE = "Mac's AppleDouble"  # beside each file x, as ._x: what Macs know of it and other systems cannot store

_MAGIC = {
    **{magic: kind for kind, magics in STREAMS.items() for magic in magics},
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # with nothing in it
    b"7z\xbc\xaf\x27\x1c": "7z",
}
# Types that cannot be read here. They are recognised for a clear message.
_UNREADABLE = {
    b"Rar!\x1a\x07": "RAR",
    b"\x04\x22\x4d\x18": "LZ4",
    b"\x1f\x9d": "compress",
    b"LZIP\x01": "lzip",
    b"MSCF\x00": "Cabinet",
    b"070701": "cpio",
    b"!<arch>\n": "ar",
    b"PK\x07\x08": "split zip",
    b"%PDF-": "PDF",
    b"\x00\x05\x16\x07": APPLE_DOUBLE,
}
_BEGINNINGS = {magic[:2] for magic in (*_MAGIC, *_UNREADABLE)}
_SUFFIXES = {
    ".xz": "xz",
    ".txz": "xz",
    ".gz": "gz",
    ".tgz": "gz",
    ".bz2": "bz2",
    ".tbz2": "bz2",
    ".zst": "zst",
    ".tzst": "zst",
    ".zip": "zip",
    ".7z": "7z",
    ".tar": "tar",
}


def kind_of(head: bytes) -> str:
    """``xz gz bz2 zst zip 7z tar``, ``text``, ``utf-16``, ``binary``, or ``unreadable: NAME`` for an archive that cannot be read here."""
    if head[:2] in _BEGINNINGS:  # most texts begin with other bytes
        for magic, kind in _MAGIC.items():
            if head.startswith(magic) and (kind != "bz2" or (head[3:4] in b"123456789" and head[4:10] in _BZ2_BLOCKS)):
                return kind
        for magic, name in _UNREADABLE.items():
            if head.startswith(magic):
                return f"unreadable: {name}"
    if is_header(head[:512]):
        return "tar"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return "text" if b"\0" not in head or _nearly_text(head) else "binary"


def _nearly_text(head: bytes) -> bool:
    """Whether this is UTF-8 with a few NULs, which `data.sources.text.decode` treats as damaged text."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental, because the head may end within a character
    except UnicodeDecodeError:
        return False
    return 10 * head.count(b"\0") <= len(head)


_BZ2_BLOCKS = (bytes.fromhex("314159265359"), bytes.fromhex("177245385090"))  # π begins a block, its root ends the stream


def is_apple_double(name: str, kind: str) -> bool:
    """Whether this is a Mac's AppleDouble file, from its bytes, or from its path in a Mac's zip archive."""
    folders, _, file = name.replace("!", "/").rpartition("/")
    return kind == f"unreadable: {APPLE_DOUBLE}" or (file.startswith("._") and "__MACOSX" in folders.split("/"))


def archive_suffix(name: str) -> str | None:
    """The type of archive that the suffix of a name says, or None."""
    return _SUFFIXES.get(name[name.rfind(".") :].lower())
