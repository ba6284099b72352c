"""TensorBoard's events: the logged numbers, read back from the bytes on the disk."""

from __future__ import annotations

import json
import struct
import sys

import numpy as np
import pytest

from gpt.errors import run_main
from gpt.train import main
from gpt.training.metrics import numbers_in
from gpt.training.run_folder import RunFolder

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60
TINY = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--warmup-steps=2",
    "--steps=12", "--eval-interval=5", "--eval-iters=2", "--log-interval=4", "--sample-length=0", "--tensorboard=true",
]  # fmt: skip


@pytest.fixture
def options(tmp_path):
    (tmp_path / "fox.txt").write_text(TEXT)
    return [*TINY, f"--data={tmp_path / 'fox.txt'}", f"--out={tmp_path / 'run'}"]


def events(folder):
    """(tag, step, value) of every scalar in the one file that there is.

    A record is its length (8 bytes), a checksum of that (4), the event, and a checksum of it (4).
    """
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (folder / "tensorboard").iterdir()
    content, place, found = file.read_bytes(), 0, []
    while place < len(content):
        (length,) = struct.unpack("<Q", content[place : place + 8])
        event = Event.FromString(content[place + 12 : place + 12 + length])
        found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        place += 12 + length + 4
    assert place == len(content)
    return found


def logged(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(name, record["step"], float(np.float32(value))) for record in records for name, value in numbers_in(record) if name != "step"]


def run(*argv):
    return run_main(lambda: main([str(argument) for argument in argv]))


def test_the_events_are_the_numbers_of_the_metrics(tmp_path, options):
    assert run(*options) == 0
    found = events(tmp_path / "run")
    assert found == logged(tmp_path / "run")
    assert {"loss", "val_loss", "learning_rate", "gradient_norms/h.0", "tokens_per_second"} <= {tag for tag, _, _ in found}


def test_a_resumed_run_writes_each_number_once(tmp_path, options):
    assert run(*options, "--steps=9", "--schedule=constant") == 0
    assert run("--resume", tmp_path / "run", "--steps=12") == 0
    found = events(tmp_path / "run")
    assert found == logged(tmp_path / "run")
    assert [step for tag, step, _ in found if tag == "val_loss"] == [0, 5, 9, 10, 12]


def test_events_can_be_turned_on_when_a_run_is_resumed(tmp_path, options):
    assert run(*options, "--tensorboard=false") == 0
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert run("--resume", tmp_path / "run", "--tensorboard=true") == 0
    assert events(tmp_path / "run") == logged(tmp_path / "run")


def test_a_missing_extra_is_named_before_a_folder_is_made(tmp_path, options, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("gpt.training.metrics.importlib.util.find_spec", lambda name: None)
    assert run(*options) == 2
    assert "--tensorboard needs tensorboardX: pip install 'tensorlite[tensorboard]'." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_events_that_cannot_be_written_give_one_warning(tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    folder.open_tensorboard()

    def full(record):
        raise OSError(28, "No space left on device")

    folder._events.write = full
    folder.log(step=1, loss=2.0)
    folder.log(step=2, loss=1.0)
    folder.close()
    assert capsys.readouterr().err.count("the metrics are not being written") == 1
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 2
