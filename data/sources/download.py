"""Download a file with a progress bar. A download can be resumed, and only a complete and correct file gets its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from data.files import explain, sync_folder
from data.sources.streams import SourceError

_BLOCK = 1 << 20
_TRIES = 5
_PATIENCE = 30  # seconds without a byte


def download(url: str, path: Path, by_hand: str, sha256: str | None = None, pause: float = 2.0) -> Path:
    """The file at ``url`` as ``path``, if it is not there yet.

    Args:
        by_hand: what to do without a network, for the message.
        sha256: of the whole file; without one, an interrupted download starts again from the beginning.
        pause: seconds before the second try; the pause doubles with each try.

    Raises:
        SourceError: if the download fails, or the checksum does not match.
    """
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sha256 is None:
            part.unlink(missing_ok=True)
        for attempt in range(_TRIES):
            try:
                _fetch(url, part, path.name)
                break
            except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
                final = isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500
                unreachable = isinstance(error, urllib.error.URLError) and not part.exists()
                if final or unreachable or attempt == _TRIES - 1:
                    raise SourceError(f"{url} cannot be downloaded ({_reason(error)}): {by_hand}") from error
                time.sleep(pause * 2**attempt)
        if sha256 is not None and (found := _sha256(part)) != sha256:
            part.unlink()
            raise SourceError(f"the file from {url} is not the right one: its SHA-256 is {found}, not {sha256}; try again, or {by_hand}")
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_folder(path.parent)
    except OSError as error:
        raise SourceError(explain(error, path)) from error
    return path


def _fetch(url: str, part: Path, name: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "tensorlite", **({"Range": f"bytes={have}-"} if have else {})})
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        error.close()
        if total == str(have):
            return  # it was interrupted after the last byte
        part.unlink()
        _fetch(url, part, name)
        return
    with response:
        if response.status != 206 or not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            have = 0  # the server does not support ranges, and sends the whole file
        length = response.headers.get("Content-Length")
        total_size = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(total=total_size, initial=have, desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total_size is not None and part.stat().st_size < total_size:
        raise ConnectionError(f"it was interrupted after {part.stat().st_size:,} of {total_size:,} bytes")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(getattr(reason, "strerror", None) or reason or type(error).__name__).rstrip(".").lower()
