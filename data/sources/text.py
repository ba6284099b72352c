"""Bytes to clean text, and what to do with bytes that are not text."""

from __future__ import annotations

import codecs
from typing import Literal, get_args

from data.sources.streams import SourceError, printable
from data.sources.walk import Piece, Tally

Policy = Literal["error", "replace", "skip"]
POLICIES: tuple[str, ...] = get_args(Policy)


def decode(piece: Piece, policy: Policy, tally: Tally) -> str | None:
    """The text of ``piece``, clean; None if it is to be left out.

    Raises:
        SourceError: under the policy ``error``, if the bytes are not UTF-8 or have a NUL.
    """
    raw = clean(piece, policy, tally)
    return None if raw is None else raw.decode()


def clean(piece: Piece, policy: Policy, tally: Tally) -> bytes | None:
    """The text of ``piece`` in UTF-8: no byte order mark, ``\\n`` for ``\\r\\n``, no NUL. None if it is to be left out.

    Raises:
        SourceError: under the policy ``error``, if the bytes are not UTF-8 or have a NUL.
    """
    raw = piece.raw
    if piece.part == 0:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8")
        broken = b"\0" in raw
    except UnicodeDecodeError as error:
        if policy == "error":
            raise SourceError(
                f"{printable(piece.name)} is not UTF-8 text: byte 0x{raw[error.start]:02x} does not fit ({error.reason}); convert it with "
                "iconv -f ENCODING -t UTF-8, or choose --encoding-errors replace or skip."
            ) from error
        text = raw.decode("utf-8", "replace")
        broken = True
    if broken:
        if policy == "error":
            raise SourceError(f"{printable(piece.name)} has NUL bytes in its text; choose --encoding-errors replace or skip.")
        tally.add("left out, not UTF-8" if policy == "skip" else "mended, not UTF-8", piece.name)
        if policy == "skip":
            return None
        raw = text.replace("\0", "\ufffd").encode()
    if piece.part == 0 and piece.last and (not text or text.isspace()):
        tally.add("left out, empty", piece.name)
        return None
    return raw.replace(b"\r\n", b"\n") if b"\r" in raw else raw
