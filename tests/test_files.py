"""Files are written whole or not at all, also on a full disk."""

import errno
import os
from pathlib import Path

import pytest

from data.files import explain, write_atomically


class FullDisk:
    """``open`` on a disk that is full after ``room`` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room

    def __call__(self, path: Path, mode: str):
        file = open(path, mode)  # noqa: SIM115 - the caller closes it

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *exception):
                file.close()

            def write(_, content: bytes) -> None:
                file.write(content[: self.room])
                if len(content) > self.room:
                    raise OSError(errno.ENOSPC, "No space left on device")

        return Full()


def fail_with(error: BaseException):
    def fail(*args, **kwargs):
        raise error

    return fail


def test_a_file_is_created_or_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"one", b"", b"\x00\xff" * 1000):
        write_atomically(path, content)
        assert path.read_bytes() == content
    write_atomically(str(path), "ä\r\n")
    assert path.read_bytes() == "ä\r\n".encode()
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_the_users_own(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("room", [0, 3])
@pytest.mark.parametrize("old", [None, b"the old one"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr("data.files.open", FullDisk(room), raising=False)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"the new one")
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException) -> None:
    (tmp_path / "file").write_bytes(b"the old one")
    monkeypatch.setattr(os, step, fail_with(error))
    with pytest.raises(type(error)):
        write_atomically(tmp_path / "file", b"the new one")
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"the old one"


def test_a_file_is_synced_before_its_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    for step in ("fsync", "replace"):
        real = getattr(os, step)
        monkeypatch.setattr(os, step, lambda *args, step=step, real=real: (steps.append(step), real(*args)))
    write_atomically(tmp_path / "file", b"content")
    assert steps == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_atomically(tmp_path / "no" / "file", b"")
    assert explain(raised.value, "") == f"{tmp_path / 'no' / 'file'}: no such file or directory; choose another folder."


def test_explanations_of_errors_give_advice() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert explain(full, "runs/a") == "runs/a: no space left on device; free some space or choose another folder."
    denied = PermissionError(errno.EACCES, "Permission denied", "runs/a/file")
    assert explain(denied, "runs/a") == "runs/a/file: permission denied; choose a folder that you may write to."
    assert explain(OSError("odd"), "runs/a") == "runs/a: odd; choose another folder."
