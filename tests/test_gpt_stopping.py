"""Ctrl-C and other signals are acknowledged at once and lose nothing; a second Ctrl-C ends the program at once."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import EXIT_USER_ERROR, run_main
from gpt.model import build_model
from gpt.train import main
from gpt.training.progress import Progress
from gpt.training.stopping import Stopped, StopRequest
from gpt.training.trainer import Trainer
from tensorlite.parallel import Workers
from tests.patience import PATIENCE
from tests.test_gpt_chat import Terminal

ROOT = Path(__file__).parents[1]
SHAPE = [
    "--n-layer=1",
    "--n-head=1",
    "--n-embd=8",
    "--block-size=8",
    "--batch-size=2",
    "--workers=2",
    "--eval-iters=3",
    "--sample-length=0",
]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals between processes")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@posix
def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends_at_once(capfd):
    for number in set(StopRequest.SIGNALS) - {signal.SIGINT}:
        with StopRequest() as stop:
            stop.check()
            send(number)
            send(number)
            with pytest.raises(Stopped):
                stop.check()
    with StopRequest() as stop:
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@posix
def test_an_outer_stop_request_still_catches_signals_after_an_inner_block():
    """A signal after the last step must not interrupt the saving of the weights."""
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        with stop:
            pass
        send(signal.SIGTERM)
        assert stop.requested
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_sighup_that_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            send(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stop_request_skips_the_remaining_batches_of_an_evaluation(monkeypatch):
    tokens = np.arange(200) % 11
    model = build_model(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8))
    trainer = Trainer(model, TrainConfig(batch_size=2, eval_iters=50, workers=2), tokens, tokens)
    made, forward = [], type(model).forward

    def counted(self, *args):
        made.append(None)
        trainer.stop.requested = True  # while the first batches are on their way
        return forward(self, *args)

    monkeypatch.setattr(type(model), "forward", counted)
    with trainer.workers, pytest.raises(Stopped):
        trainer.evaluate()
    assert 1 <= len(made) <= 2


@posix
def test_an_interrupted_evaluation_ends_without_waiting_for_its_batches(monkeypatch):
    tokens = np.arange(200) % 11
    model = build_model(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8))
    trainer = Trainer(model, TrainConfig(batch_size=2, eval_iters=4, workers=2), tokens, tokens)
    begun, released, ended = threading.Event(), threading.Event(), []

    def forward(*args):
        begun.set()
        assert released.wait(PATIENCE)
        ended.append(None)
        raise RuntimeError

    monkeypatch.setattr(type(model), "forward", forward)
    interrupt = threading.Thread(target=lambda: (begun.wait(PATIENCE), send(signal.SIGINT)))
    try:
        interrupt.start()
        with trainer.stop, pytest.raises(Stopped), trainer.workers:
            trainer.evaluate()
        assert not ended
    finally:
        released.set()
        interrupt.join()


@posix
@pytest.mark.parametrize(("team", "workers"), [("threads", 1), ("threads", 2), ("processes", 2)])
@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_an_interrupted_step_is_repeated_with_the_same_batches(monkeypatch, phase, team, workers):
    """The weights after an interrupted run that goes on are those of a run without a pause, bit for bit."""
    tokens = np.arange(400) % 11
    shape = GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8, dropout=0.1)
    config = TrainConfig(steps=5, batch_size=4, accumulation=2, eval_iters=1, workers=workers, shards=2, team=team)
    whole, paused = (Trainer(build_model(shape), config, tokens, tokens) for _ in range(2))
    paused.model.load_state_dict(whole.model.state_dict())
    whole.train()

    owner = type(paused.model) if phase == "forward" else tl.Tensor
    function, calls, released = getattr(owner, phase), [], threading.Event()

    def interrupt(*args):
        result = function(*args)  # a part of the gradient is there
        if tl.is_grad_enabled() and paused.step == 2:
            calls.append(None)
            if len(calls) == 2:  # the other shard of the first of two batches; of processes the first shard of the second batch
                send(signal.SIGINT)  # the main thread is told, which may be this one
                assert released.wait(PATIENCE)
        return result

    monkeypatch.setattr(owner, phase, interrupt)
    with pytest.raises(Stopped):
        paused.train()
    assert paused.step == 2 and len(calls) == 2
    released.set()
    paused.stop.requested = False
    paused.train()
    for a, b in zip(whole.model.parameters(), paused.model.parameters(), strict=True):
        assert a.array.tobytes() == b.array.tobytes()
    assert whole.batches.state_dict() == paused.batches.state_dict()


def test_workers_wait_for_interrupted_work_before_they_start_again():
    workers, released, ended = Workers(2), threading.Event(), []

    def work(_):
        assert released.wait(PATIENCE)
        ended.append(None)

    def interrupted_block():
        with workers:
            workers._pool.submit(work, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_block()
    assert not ended
    threading.Timer(0.05, released.set).start()
    with workers:
        assert ended


# Steps, their gradients, or the batches of an evaluation that never end: whether the program does cannot depend on how fast they are.
ENDLESS = """
import threading, sys
from gpt.errors import leave, run_main
from gpt.train import main
from gpt.training.trainer import Trainer
from tensorlite.parallel import BatchShards

def endless(self, *_):
    print("has begun", file=sys.stderr, flush=True)
    self.workers.map(lambda _: threading.Event().wait(), range(100))

{method} = endless
leave(run_main(main))
"""


@posix
@pytest.mark.parametrize("method, signals", [("Trainer.update", 2), ("BatchShards.accumulate", 1), ("Trainer._losses", 1)])
def test_a_first_ctrl_c_is_acknowledged_and_stops_and_a_second_ends_at_once(tmp_path, method, signals):
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    options = [*SHAPE, f"--data={tmp_path / 'fox.txt'}", f"--out={tmp_path / 'run'}"]
    command = [sys.executable, "-c", ENDLESS.format(method=method), *options]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert isinstance(process.stderr, io.BufferedReader)
        for awaited in (b"has begun", b"SIGINT: stopping and saving; Ctrl-C once more ends at once."):
            line = b""
            while awaited not in line:
                line = process.stderr.readline()
                assert line, "the process has ended"
            if awaited == b"has begun":  # not before: until then nobody has said what is to be done at a SIGINT
                process.send_signal(signal.SIGINT)
        if signals == 2:
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130
    if signals == 2:
        assert f"Ended in step 1. The checkpoint of step 0 is complete: --resume {tmp_path / 'run'}." in err.decode()
    else:
        assert f"Stopped after step 0 of 3000. The weights are saved in {tmp_path / 'run'}." in out.decode()
    assert b"Traceback" not in err


# --- how far it is ------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test advances."""
    now = [100.0]
    monkeypatch.setattr("gpt.training.progress.time.monotonic", lambda: now[0])
    return now


def test_a_log_gets_lines_instead_of_a_bar(clock, capsys):
    with Progress(total=100, done=10, on_terminal=False) as progress:
        for seconds in (1, 1, 1, 8, 1):
            clock[0] += seconds
            progress.set_status(f"loss {seconds}")
            progress.step()
        with progress.evaluation("validation text", 4) as batch_done:
            for _ in range(4):
                clock[0] += 9
                batch_done()
        progress.write("step    15: evaluated")
    out, err = capsys.readouterr()
    assert out == "step    15: evaluated\n"
    assert err.splitlines() == [
        "step 12/100, 00:02 gone, 01:28 to go, loss 1",
        "step 15/100, 00:12 gone, 03:24 to go, loss 1",
        "step 15: evaluating, 2 of 4 batches of the validation text",
        "step 15/100, 00:48 gone, 13:36 to go, loss 1",
    ]


def test_an_evaluation_shows_its_progress(clock, monkeypatch, capsys):
    tokens = np.arange(200) % 11
    model = build_model(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8))
    trainer = Trainer(model, TrainConfig(batch_size=2, eval_iters=4, workers=1), tokens, tokens)
    forward = type(model).forward

    def slow(self, *args):
        clock[0] += 3
        return forward(self, *args)

    monkeypatch.setattr(type(model), "forward", slow)
    with Progress(total=5, on_terminal=False) as progress:
        trainer.evaluate(progress)
    assert "step 0: evaluating, 1 of 4 batches of the training text" in capsys.readouterr().err
    assert tl.is_grad_enabled()


@posix
def test_a_terminal_has_a_bar(tmp_path):
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    terminal = Terminal("-m", "gpt.train", *SHAPE, f"--data={tmp_path / 'fox.txt'}", f"--out={tmp_path / 'run'}", "--steps=1000000")
    termios.tcsetwinsize(terminal.screen, (24, 100))  # a bar is drawn into what room there is
    terminal.until(r"\| \d+/1000000 \[")
    terminal.type("\x03")
    terminal.until("SIGINT: stopping and saving")
    assert "To go on: python -m gpt.train --resume" in terminal.until("--resume")
    assert terminal.exit_code() == 130


@posix
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_worker_process_that_is_killed_ends_the_run_with_a_whole_checkpoint(tmp_path, accumulation):
    """And the run that goes on from it comes to the bits of a run that nobody disturbed."""
    (tmp_path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    settings = [*SHAPE, f"--data={tmp_path / 'fox.txt'}", "--shards=2", "--steps=6", f"--accumulation={accumulation}", "--dropout=0.1"]
    assert run_main(lambda: main([*settings, f"--out={tmp_path / 'whole'}", "--team=threads"])) == 0

    command = [sys.executable, "-c", KILLED, *settings, f"--out={tmp_path / 'killed'}", "--team=processes"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE, cwd=ROOT)
    assert done.returncode == EXIT_USER_ERROR, done.stderr
    assert "a worker process was ended by SIGKILL, perhaps because memory was short: fewer --workers need less" in done.stderr
    assert "The checkpoint of step 3 is complete: --resume" in done.stderr
    assert run_main(lambda: main([f"--resume={tmp_path / 'killed'}", "--team=threads"])) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


KILLED = """
from gpt.errors import leave, run_main
from gpt.train import main
from gpt.training.trainer import Trainer

update = Trainer.update

def killing(self):
    if self.step == 3:
        self.workers._others[0]._process.kill()
    return update(self)

Trainer.update = killing
leave(run_main(main))
"""
