"""A failure while a checkpoint is written does not damage the one before it, and later damage to a checkpoint is detected."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import safetensors.numpy

from data.tokenizer import CharTokenizer
from gpt.checkpoints.retention import Checkpoints
from gpt.checkpoints.snapshot import MANIFEST, read_snapshot, remove_snapshot, write_snapshot
from gpt.checkpoints.training_state import OPTIMIZER, TRAINING, TrainingState
from gpt.checkpoints.weights import CheckpointError
from gpt.config import GPTConfig, TrainConfig
from gpt.model import build_model
from gpt.training.resume import checkpoint_files, restore
from gpt.training.trainer import Trainer

TEXT = "the quick brown fox jumps over the lazy dog\n" * 8
TOKENIZER = CharTokenizer.train(TEXT)
TOKENS = TOKENIZER.encode(TEXT)
SMALL = GPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=4, n_layer=1, n_head=1, n_embd=4)
OLD = {"a": b"old a", "b": b"old b" * 1000}
NEW = {"a": b"new a" * 500, "b": b"new b", "c": b"new c"}


class Crash(BaseException):
    """The process ends here: nothing of ours runs any more, as far as a test can arrange that."""


class Disk:
    """Counts the calls that change the disk, and lets one of them fail, before it does anything or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException, after: bool = False) -> None:
        self.count, self.fail_at, self.error, self.after = 0, fail_at, error, after
        self.dead = False
        for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._around(getattr(os, name)))
        real_open = builtins.open

        def opened(path, mode="r", *args, **options):
            if "r" in mode or not isinstance(path, str | Path):
                return real_open(path, mode, *args, **options)
            file = self._around(real_open)(path, mode, *args, **options)
            return _File(file, self)

        monkeypatch.setattr(builtins, "open", opened)

    def _around(self, function):
        def called(*args, **options):
            if self.dead:
                raise Crash
            self.count += 1
            if self.count != self.fail_at:
                return function(*args, **options)
            self.dead = isinstance(self.error, Crash)
            if self.after and hasattr(result := function(*args, **options), "close"):
                result.close()
            raise self.error

        return called


class _File:
    """A file whose writes can fail half-way."""

    def __init__(self, file, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def write(self, content) -> None:
        half = content[: len(content) // 2]
        if self.disk.count + 1 == self.disk.fail_at:
            self.file.write(half)  # a crash in the middle of a write leaves part of it
            self.file.flush()
        self.disk._around(self.file.write)(content)

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self):
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()


def whole(folder: Path) -> dict[int, dict[str, bytes]]:
    """All checkpoints that can be read, by step."""
    found = {}
    for step in Checkpoints(folder).steps():
        try:
            found[step] = read_snapshot(Checkpoints(folder).path(step))
        except CheckpointError:
            assert step != 1, "the old one is not whole any more"
    return found


def save_disturbed(folder: Path, step: int, fail_at: int, error: BaseException, after: bool) -> int | None:
    """Save step ``step`` while one call fails; how many calls there were if none did."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, fail_at, error, after)
        try:
            checkpoints = Checkpoints(folder, keep_last=1)
            checkpoints.save(step, NEW.items())
        except (Crash, CheckpointError, OSError, KeyboardInterrupt):
            pass
    return disk.count if disk.count < fail_at else None


@pytest.mark.parametrize("step", [2, 1], ids=["beside the old one", "in place of the old one"])
@pytest.mark.parametrize("after", [False, True], ids=["not done", "done"])
@pytest.mark.parametrize(
    "error",
    [Crash(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()],
    ids=["crash", "full", "broken disk", "Ctrl-C"],
)
def test_a_failing_system_call_never_loses_a_checkpoint(tmp_path, error, after, step):
    """Each call in turn fails; a whole checkpoint is there each time, and the next attempt works."""
    fail_at, calls = 0, None
    while calls is None:
        fail_at += 1
        folder = tmp_path / str(fail_at)
        Checkpoints(folder).save(1, OLD.items())
        calls = save_disturbed(folder, step, fail_at, error, after)
        Checkpoints(folder).clean_up()
        found = whole(folder)
        assert found, f"no checkpoint is left after call {fail_at}"
        assert all(files == (OLD if files["a"] == OLD["a"] else NEW) for files in found.values())
        Checkpoints(folder, keep_last=1).save(3, NEW.items())
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000003"]
        assert read_snapshot(Checkpoints(folder).path(3)) == NEW
    assert calls > 15


def test_a_damaged_checkpoint_is_not_counted_among_the_kept_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(TrainingState, "from_files", lambda files, name: name)
    for step in (1, 2, 3):
        Checkpoints(tmp_path, keep_last=3).save(step, NEW.items())
    damaged = Checkpoints(tmp_path).path(3) / "a"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    assert checkpoints.load_latest() == str(checkpoints.path(2)) and "warning" in capsys.readouterr().err
    checkpoints.save(4, NEW.items())
    assert checkpoints.steps() == [2, 4]
    checkpoints.save(5, NEW.items(), best=2)
    assert checkpoints.steps() == [2, 4, 5]


def test_the_two_newest_checkpoints_are_kept_unless_another_number_is_given(tmp_path):
    for step in (1, 2, 3):
        Checkpoints(tmp_path).save(step, NEW.items())
    assert Checkpoints(tmp_path).steps() == [2, 3]


def test_a_failed_save_says_why_and_leaves_nothing_behind(tmp_path):
    Checkpoints(tmp_path).save(1, OLD.items())
    with pytest.MonkeyPatch.context() as patch:
        Disk(patch, 4, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(CheckpointError, match=r"no space left on device; free some space"):
            write_snapshot(Checkpoints(tmp_path).path(2), NEW.items())
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


# --- afterwards ----------------------------------------------------------------------------------------


def trainer(config: GPTConfig = SMALL) -> Trainer:
    return Trainer(build_model(config), TrainConfig(batch_size=2, steps=4, workers=1), TOKENS[:300], TOKENS[300:])


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory) -> Path:
    """A real checkpoint, small enough to be damaged in every place."""
    folder = tmp_path_factory.mktemp("run")
    training = trainer()
    for _ in range(2):
        training.update()
    checkpoints = Checkpoints(folder)
    checkpoints.save(2, checkpoint_files(training, training.optimizer.state_dict(), TOKENIZER, "gpt.train", {}))
    return checkpoints.path(2)


def load(folder: Path) -> None:
    """As a run that goes on does it."""
    state = TrainingState.from_files(read_snapshot(folder), str(folder))
    restore(trainer(state.model_config), TOKENIZER, state)


def complaint(folder: Path) -> str:
    """One sentence about a checkpoint that cannot be loaded. Anything else than a CheckpointError would be a bug."""
    with pytest.raises(CheckpointError) as raised:
        load(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_saved_checkpoint_can_be_loaded(snapshot):
    again = trainer()
    restore(again, TOKENIZER, TrainingState.from_files(read_snapshot(snapshot), ""))
    assert dict(checkpoint_files(again, again.optimizer.state_dict(), TOKENIZER, "gpt.train", {})) == read_snapshot(snapshot)
    assert again.step == 2


def test_thousands_of_damaged_files_are_all_detected(snapshot, tmp_path):
    """A bit flipped, a byte changed, a stretch taken out, put in, doubled or zeroed, the end cut off: in every file."""
    rng, folder = random.Random(int(os.environ.get("DAMAGE_SEED", "0"))), tmp_path / "damaged"
    shutil.copytree(snapshot, folder)
    tries = int(os.environ.get("DAMAGES", "2000"))
    for number in range(tries):
        file = rng.choice(sorted(folder.iterdir()))
        original = file.read_bytes()
        content = bytearray(original)
        at = rng.randrange(len(content))
        length = rng.randint(1, 16)
        match number % 7:
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                content[at] = rng.randrange(256)
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = rng.randbytes(length)
            case 4:
                content[at:at] = content[at : at + length]
            case 5:
                content[at : at + length] = bytes(len(content[at : at + length]))
            case 6:
                del content[at:]
        if content == original:
            continue
        file.write_bytes(content)
        with pytest.raises(CheckpointError):
            read_snapshot(folder)
        file.write_bytes(original)
    assert read_snapshot(folder) == read_snapshot(snapshot)


def test_a_missing_file_is_named(snapshot, tmp_path):
    for name in (*read_snapshot(snapshot), MANIFEST):
        folder = tmp_path / name
        shutil.copytree(snapshot, folder)
        (folder / name).unlink()
        assert name in complaint(folder)


# --- damage that comes with a manifest of its own: not by accident, so every part of it is looked at -----


def forged(snapshot: Path, tmp_path: Path, name: str, content: bytes) -> Path:
    folder = tmp_path / "forged"
    write_snapshot(folder, {**read_snapshot(snapshot), name: content}.items())
    return folder


def header(content: bytes, **changes: object) -> bytes:
    """A safetensors file with other entries in its header."""
    size = int.from_bytes(content[:8], "little")
    entries = json.dumps({**json.loads(content[8 : 8 + size]), **changes}).encode()
    return len(entries).to_bytes(8, "little") + entries + content[8 + size :]


@pytest.mark.parametrize("name", ["model.safetensors", OPTIMIZER])
def test_hostile_safetensors_are_refused(snapshot, tmp_path, name):
    content = read_snapshot(snapshot)[name]
    first = next(iter(safetensors.numpy.load(content)))
    size = int.from_bytes(content[:8], "little")
    twice = content[8 : 8 + size].rstrip()[:-1] + b', "' + first.encode() + b'": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    for hostile in (
        b"",
        (2**63).to_bytes(8, "little") + content[8:],
        b"\x80\x04." + content,
        header(content, **{first: {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
        header(content, **{first: {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        header(content, **{first: {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}),
        header(content, extra={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
        len(twice).to_bytes(8, "little") + twice + content[8 + size :],
        b"[" * 100_000,
    ):
        complaint(forged(snapshot, tmp_path, name, hostile))


def test_hostile_records_are_refused(snapshot, tmp_path):
    record = json.loads(read_snapshot(snapshot)[TRAINING])
    for change in (
        {"model": {**record["model"], "n_layer": 2}},
        {"model": {**record["model"], "n_layers": 1}},
        {"model": 3},
        {"training": {**record["training"], "steps": -1}},
        {"trainer": {}},
        {"trainer": {**record["trainer"], "step": "two"}},
        {"trainer": {**record["trainer"], "step": -2}},
        {"trainer": {**record["trainer"], "batches": {"generator": {"bit_generator": "MT19937"}}}},
        {"steps": {}},
        {"steps": {**record["steps"], "99": 1}},
        {"param_groups": []},
        {"data": {}},
        {"tokenizer_hash": "0"},
    ):
        complaint(forged(snapshot, tmp_path, TRAINING, json.dumps({**record, **change}).encode()))
    for text in (b"", b"null", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"):
        complaint(forged(snapshot, tmp_path, TRAINING, text))


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"files": []},
        {"files": {"../../etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}},
        {"files": {"a": {"bytes": -1, "sha256": ""}}},
        {"files": {"a": {"bytes": 10**400, "sha256": ""}}},
        {"files": {}},
        {"more": 1},
    ],
)
def test_hostile_manifests_are_refused(snapshot, tmp_path, change):
    folder = tmp_path / "forged"
    shutil.copytree(snapshot, folder)
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, **change}, indent=2) + "\n")
    complaint(folder)


def test_a_file_outside_of_the_folder_is_refused_even_if_its_checksum_is_right(snapshot, tmp_path):
    folder = tmp_path / "forged"
    shutil.copytree(snapshot, folder)
    (tmp_path / "outside").write_bytes(b"x")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"]["../outside"] = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    manifest["files"] = dict(sorted(manifest["files"].items()))
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    complaint(folder)


def test_a_snapshot_that_is_gone_already_can_be_removed(tmp_path):
    remove_snapshot(tmp_path / "step-000003")
    assert not list(tmp_path.iterdir())


def test_an_endless_manifest_is_refused(snapshot, tmp_path):
    folder = tmp_path / "forged"
    shutil.copytree(snapshot, folder)
    with open(folder / MANIFEST, "r+b") as file:
        file.truncate(2**32)
    assert "4,294,967,296 bytes" in complaint(folder)
