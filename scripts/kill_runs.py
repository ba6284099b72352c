"""Kill 20 training runs at random moments, and resume them:  python scripts/kill_runs.py [COUNT] [SEED]

A run has a team of processes, two ranks of MPI, or two ranks with a team of processes each. While it starts, makes a step, evaluates or
saves, a worker, a rank or mpiexec is sent a signal. What is looked for is a run that does not end within five seconds (after its limit,
if a rank or a worker was stopped), says nothing, leaves a process, shared memory or a temporary file, or does not come to the bits of a
run that nobody disturbed when it is resumed, with another team. For Linux. Other programs of MPI leave files in /dev/shm as well:

    unshare --mount sh -c "mount -t tmpfs tmpfs /dev/shm && python scripts/kill_runs.py"
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, WITHIN = 60, 5.0  # steps; seconds until all must have ended
LIMITS = {"rank": 3.0, "worker": 10.0}  # seconds until one that is stopped is given up; a worker that starts has no heartbeat yet
SETTINGS = [
    "--n-layer=2", "--n-head=2", "--n-embd=64", "--block-size=32", "--batch-size=12", "--dropout=0.2", "--shards=4", f"--steps={STEPS}",
    "--eval-interval=20", "--eval-iters=6", "--checkpoint-interval=4", "--sample-length=0", "--log-interval=5", "--warmup-steps=2",
]  # fmt: skip
TEAMS = {"processes": (0, "--workers=3", "--team=processes"), "ranks": (2, "--workers=1"), "both": (2, "--workers=2", "--team=processes")}
SIGNALS = {"worker": ("SIGKILL", "SIGTERM", "SIGSTOP"), "rank": ("SIGKILL", "SIGTERM", "SIGSTOP"), "launcher": ("SIGTERM", "SIGINT")}
SENTENCE = re.compile(r"^(?:error: |Stopped after |Ended in step |YOUR APPLICATION TERMINATED WITH THE EXIT STRING: ).*$", re.MULTILINE)

PROGRAM = """
import os, sys
from gpt.errors import leave
from gpt.train import main
from gpt.training.ranks import run_on_ranks
from gpt.training.run import Run
from gpt.training.trainer import Trainer
from tensorlite.parallel import Processes

Processes.limit = float(os.environ["WORKER_LIMIT"])

def announce(owner, name):
    method = getattr(owner, name)
    def announced(self, *arguments):
        with open(os.environ["MOMENTS"], "a") as file:
            print(name, file=file)
        return method(self, *arguments)
    setattr(owner, name, announced)

announce(Trainer, "update")
announce(Trainer, "evaluate")
announce(Run, "save")
leave(run_on_ranks(main))
"""


@dataclass
class Launched:
    """A run, with all processes that belong to it: each has the mark in its environment."""

    team: str
    arguments: list[str]
    folder: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        ranks, *options = TEAMS[self.team]
        launcher = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks else []
        self.folder.mkdir()
        (self.folder / "temporary").mkdir()
        self.moments = self.folder / "moments"
        self.moments.touch()
        self.output = open(self.folder / "output", "w+", encoding="utf-8")  # noqa: SIM115 - until the run is judged
        self.process = subprocess.Popen(
            [*launcher, sys.executable, "-c", PROGRAM, *options, *self.arguments],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output,
            env=os.environ | {
                "MARK": self.mark, "TMPDIR": str(self.folder / "temporary"), "MOMENTS": str(self.moments),
                "WORKER_LIMIT": str(LIMITS["worker"]),
            },
        )  # fmt: skip

    def processes(self) -> Iterator[tuple[int, str]]:
        """The processes that run, each with what it is: rank, worker or launcher. A program without ranks is called a rank."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, IndexError):
                if not entry.name.isdecimal() or f"MARK={self.mark}".encode() not in (entry / "environ").read_bytes():
                    continue
                command = (entry / "cmdline").read_bytes()
                if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    kind = "worker" if b"parallel.worker" in command else "rank" if b"python" in command.split(b"\0")[0] else "launcher"
                    yield int(entry.name), kind

    def said(self) -> str:
        """All that its processes have printed."""
        self.output.seek(0)
        return self.output.read()


def find_victim(run: Launched, kind: str) -> int | None:
    """One of the processes of this kind, when there is one; None if the run has ended."""
    while run.process.poll() is None:
        if kind == "launcher":
            return run.process.pid
        if found := [pid for pid, what in run.processes() if what == kind]:
            return random.choice(found)
    return None


def wait_for(run: Launched, moment: str) -> None:
    """Wait until a random one of the steps, evaluations or savings has begun, and a moment longer."""
    if moment == "start":
        time.sleep(random.uniform(0, 2.5))
        return
    wanted = random.randint(1, {"update": 40, "evaluate": 3, "save": 10}[moment])
    while run.process.poll() is None and run.moments.read_text().split().count(moment) < wanted:
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.03))


def hashes(folder: Path) -> list[str]:
    """Of the weights and of what the optimizer keeps."""
    checkpoint = folder / "checkpoints" / f"step-{STEPS:06}"
    return [hashlib.sha256((checkpoint / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("model", "optimizer")]


def kill(folder: Path, number: int, arguments: list[str]) -> tuple[str, list[str], Path]:
    """Start a run and send one of its processes a signal. Returns what was done, what is wrong, and the run's folder."""
    team = random.choice(list(TEAMS))
    kind = random.choice({"processes": ["worker", "rank"], "ranks": ["rank", "launcher"], "both": ["worker", "rank"]}[team])
    name, moment = random.choice(SIGNALS[kind]), random.choice(["start", "update", "evaluate", "save"])
    if team == "processes" and kind == "rank" and name == "SIGSTOP":
        name = "SIGKILL"  # nobody waits for it
    if moment == "start" and (kind == "worker" or name == "SIGSTOP"):
        moment = "update"  # the first step starts the workers; before they have met, ranks wait for each other for ten minutes
    silent, out = LIMITS[kind] if name == "SIGSTOP" else 0.0, folder / str(number) / "run"
    shared_before = set(os.listdir("/dev/shm"))
    limit = [f"--rank-limit={silent / 60}"] if silent and kind == "rank" else []
    run = Launched(team, [*arguments, *limit, f"--out={out}"], folder / str(number))
    wait_for(run, moment)
    victim = find_victim(run, kind)
    begin = time.monotonic()
    if victim is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, getattr(signal, name))
    while (left := list(run.processes())) and time.monotonic() < begin + WITHIN + silent:
        time.sleep(0.01)
    seconds = time.monotonic() - begin
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    code, said = run.process.wait(), run.said()
    sentences = SENTENCE.findall(said)
    wrong = [f"{kind} {pid} was left" for pid, kind in left]
    wrong += ["traceback"] if "Traceback" in said else []
    alone = team == "processes" and kind == "rank"  # nobody is left who could say something
    wrong += ["no sentence"] if code and not sentences and not (alone and code < 0) and kind != "launcher" else []
    wrong += [f"left {name}" for name in {*os.listdir(folder / str(number) / "temporary"), *(set(os.listdir("/dev/shm")) - shared_before)}]
    done = sorted(int(path.name[5:]) for path in out.glob("checkpoints/step-*"))
    what = f"{team:<10}{kind:<9}{name:<8}{moment:<9}{seconds:5.1f} s  {code:>4}  {done[-1] if done else 'none':>4}  "
    return what + (sentences[-1][:100] if sentences else "").replace(str(folder), "…"), wrong, out


def main(count: int = 20, seed: int = 0) -> None:
    """Print a line for each run; end with code 1 if one is wrong."""
    random.seed(seed)
    faults = 0
    print(f"{'run':<4}{'team':<10}{'process':<9}{'signal':<8}{'moment':<9}{'ended':<8}{'code':>4}  step  last words")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 200)
        arguments = [*SETTINGS, f"--data={folder / 'fox.txt'}"]
        whole = Launched("ranks", [*arguments, f"--out={folder / 'whole' / 'run'}"], folder / "whole")
        if whole.process.wait():
            sys.exit(whole.said())
        expected = hashes(folder / "whole" / "run")
        for number in range(count):
            what, wrong, out = kill(folder, number, arguments)
            goes_on = [f"--resume={out}"] if (out / "checkpoints").exists() and list(out.glob("checkpoints/step-*")) else None
            again = Launched(random.choice(list(TEAMS)), goes_on or [*arguments, f"--out={out}-again"], folder / f"{number}-again")
            code = again.process.wait()
            if code or hashes(out if goes_on else Path(f"{out}-again")) != expected:
                wrong.append("other bits when resumed" if not code else f"cannot be resumed: {again.said()[-300:]}")
            faults += bool(wrong)
            print(f"{number:<4}{what}{'  WRONG: ' + ', '.join(wrong) if wrong else ''}", flush=True)
    print(f"{count} runs, {faults} with a fault")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
