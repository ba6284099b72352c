"""A folder of files that is either complete or absent.

    step-000250/
        manifest.json       size and SHA-256 of every other file; written last
        ...                 the files

Nothing that a crash, a full disk or a failing one leaves behind can be taken for a snapshot. The files are written to a folder with a
temporary name, flushed to the disk and listed in the manifest; then the folder is renamed in one step. Reading compares every byte with
the manifest before any of them is interpreted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.files import explain, sync_folder
from gpt.checkpoints.weights import CheckpointError

MANIFEST = "manifest.json"
FORMAT = 1
_MAX_MANIFEST = 2**20  # bytes; a real one has a few hundred


def write_snapshot(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Write ``folder`` with these files, or leave everything as it was. A folder of that name is replaced.

    Args:
        files: names and contents. A generator makes each content only when it is written, so that one at a time is in memory.

    Raises:
        CheckpointError: if it cannot be written.
    """
    temporary, replaced = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    listed: dict[str, dict[str, Any]] = {}
    try:
        temporary.mkdir(parents=True)
        for name, content in files:
            _write(temporary / name, content)
            listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        _write(temporary / MANIFEST, _manifest(listed))
        sync_folder(temporary)
        if folder.exists():  # a folder cannot be renamed over another that has files
            os.rename(folder, replaced)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise CheckpointError(f"the checkpoint cannot be saved: {explain(error, folder)}") from error
    finally:  # after success, an error, or Ctrl-C: the old folder comes back if there is no new one
        with contextlib.suppress(OSError):
            if replaced.exists() and not folder.exists():
                os.rename(replaced, folder)
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)


def read_snapshot(folder: Path) -> dict[str, bytes]:
    """The files that the manifest lists, each exactly as it was written.

    Raises:
        CheckpointError: if there is no manifest, or if a file is not as the manifest says.
    """
    listed = _read_manifest(folder)
    contents = {}
    for name, entry in listed.items():
        content = _read(folder / name, entry["bytes"])
        if hashlib.sha256(content).hexdigest() != entry["sha256"]:
            raise CheckpointError(f"{folder / name} is damaged: its bytes are not those that were written.")
        contents[name] = content
    return contents


def remove_snapshot(folder: Path) -> None:
    """Remove a snapshot if possible. It is renamed first, so that it is complete or absent at every moment."""
    leaving = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        os.rename(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process has left in ``folder``. A snapshot that it was replacing gets its name back."""
    for leftover in folder.glob(".*.old"):
        name = folder / leftover.name.removeprefix(".").rsplit(".", 2)[0]
        if not name.exists():
            os.rename(leftover, name)
    for leftover in (*folder.glob(".*.tmp"), *folder.glob(".*.old")):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, size: int) -> bytes:
    try:
        found = path.stat().st_size
        if found != size:
            raise CheckpointError(f"{path} is damaged: it has {found:,} bytes, and should have {size:,}.")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing, but the manifest beside it lists it.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def _manifest(listed: dict[str, dict[str, Any]]) -> bytes:
    return (json.dumps({"format": FORMAT, "files": listed}, indent=2) + "\n").encode()


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """The files by name. The text must be exactly what `_manifest` writes: the manifest has no checksum of its own."""
    path = folder / MANIFEST
    if not path.exists():
        raise CheckpointError(f"{folder} is no complete checkpoint: it has no {MANIFEST}, which is written last.")
    size = path.stat().st_size
    if size > _MAX_MANIFEST:
        raise CheckpointError(f"{path} is damaged: it has {size:,} bytes.")
    text = _read(path, size)
    try:
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path} has format {manifest['format']!r}, this version of tensorlite reads format {FORMAT}.")
        listed = {str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])} for name, entry in manifest["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{path} is damaged: it is not the list of files that it should be.") from error
    if text != _manifest(listed) or any(Path(name).name != name or name == MANIFEST for name in listed):
        raise CheckpointError(f"{path} is damaged: it is not the list of files that it should be.")
    return listed
