"""Ranks of MPI: the bits of one process, whatever their number, and an end with a sentence for all of them.

mpiexec takes seconds to start a program, so each launch runs as many cases as it can.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.finetune import main as finetune
from gpt.model import build_model
from gpt.train import main
from gpt.training.ranks import run_on_ranks
from gpt.training.stopping import Stopped
from gpt.training.trainer import Trainer
from tensorlite.optim.state import SharedState
from tensorlite.parallel import BatchShards, Workers, make_team, ranks
from tensorlite.parallel.ranks import RankError, World
from tensorlite.parallel.tree import add_tree, largest_nodes
from tensorlite.random import make_generator
from tests.patience import PATIENCE
from tests.test_parallel_processes import batch, digest, extended

posix = pytest.mark.skipif(os.name != "posix", reason="the MPI that pip installs, MPICH, is for POSIX systems")


def launch(*programs):
    """Run programs, each a number of ranks and a command for Python, in one world of MPI; return what all of them print, and the code."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    parts = [["-n", str(count), sys.executable, *map(str, command)] for count, *command in programs]
    command = [str(mpiexec), *parts[0], *(word for part in parts[1:] for word in (":", *part))]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    return done.stdout + done.stderr, done.returncode


# --- the order of the sum -----------------------------------------------------------------------------


def test_the_tree_of_a_sum():
    def brackets(count):
        return add_tree((0, count), {(i, i + 1): str(i) for i in range(count)}, lambda a, b: f"({a}{b})")

    assert [brackets(count) for count in (1, 2, 3, 4, 6)] == ["0", "(01)", "((01)2)", "((01)(23))", "(((01)(23))(45))"]
    assert add_tree((0, 3), {(0, 2): None, (2, 3): "2"}, str.__add__) == "2"
    assert add_tree((0, 2), {(0, 1): None, (1, 2): None}, str.__add__) is None


@pytest.mark.parametrize("count", [1, 3, 6, 8, 12])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_ranks_have_all_shards_and_sum_them_in_the_same_order(count, size):
    world = World()
    world.size = size
    owned = [world.share(range(count), rank) for rank in range(size)]
    assert [i for own in owned for i in own] == list(range(count))
    assert owned[0].start == 0 < len(owned[0])
    nodes = [node for own in owned for node in largest_nodes((0, count), own)]
    names = {node: add_tree(node, {(i, i + 1): str(i) for i in range(count)}, lambda a, b: f"({a}{b})") for node in nodes}
    whole = add_tree((0, count), {(i, i + 1): str(i) for i in range(count)}, lambda a, b: f"({a}{b})")
    assert add_tree((0, count), names, lambda a, b: f"({a}{b})") == whole
    if count % size == 0 and count // size in (1, 2, 4, 8):
        assert len(nodes) == size  # one array from each rank
    slices = [world.slice_of(1000, rank) for rank in range(size)]
    assert [i for part in slices for i in range(1000)[part]] == list(range(1000))


def test_two_programs_that_share_the_state_of_an_optimizer_are_one(monkeypatch):
    """The weights of each slice, the files of both, and a way from either to the other."""
    halves = [slice(0, 70), slice(70, 10**6)]

    def make():
        model, _ = extended()
        return tl.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

    def bounded(part, length):
        return slice(part.start, min(part.stop, length))

    def step(optimizer, part=None, seed=0):
        (flat,) = optimizer.flats
        for number, p in enumerate(flat.parameters):
            p.grad = tl.tensor(np.random.default_rng([seed, number]).standard_normal(p.shape).astype(np.float32))
        spans = optimizer.begin_step()
        optimizer.update_slice(spans, flat, bounded(part or slice(0, 10**6), len(flat.data)))
        optimizer.end_step(spans)

    def as_bytes(state):
        return {i: {name: np.asarray(value).tobytes() for name, value in entry.items()} for i, entry in state["state"].items()}

    whole, parts, sent = make(), [make(), make()], []
    parts[1].share_state(SharedState(functools.partial(bounded, halves[1]), lambda array, _: sent.append(array)))
    parts[0].share_state(SharedState(functools.partial(bounded, halves[0]), lambda array, _: np.concatenate([array, sent.pop(0)])))
    step(whole)
    for optimizer, part in zip(parts, halves, strict=True):
        step(optimizer, part)
    assert parts[1].state_dict()["state"] == {}
    state = parts[0].state_dict()
    assert as_bytes(state) == as_bytes(whole.state_dict())
    step(whole, seed=1)
    for optimizer, part in zip(parts, halves, strict=True):
        optimizer.load_state_dict(state)
        step(optimizer, part, seed=1)
        np.testing.assert_array_equal(optimizer.flats[0].data[part], whole.flats[0].data[part])
    with pytest.raises(RuntimeError, match="the state is shared"):
        parts[0].add_param_group({"params": [tl.nn.Parameter(tl.ones(1))]})


# --- bits ---------------------------------------------------------------------------------------------


CASES = {2: [("processes", 6)], 3: [("threads", 4)], 4: [("threads", 1), ("threads", 6)]}  # of each number of ranks


def digests(world, cases):
    """Of dropout, accumulation, LoRA, tied and frozen weights, a parameter that some rows use, batches with fewer rows than shards."""
    found = {}
    for team, shards in cases:
        with make_team(team, 2) as workers:
            model, optimizer = extended()
            parallel, losses = BatchShards(model, optimizer.flats, shards, workers, world=world), []
            for step in range(2):
                rows = [batch(3 if i else 9, seed=10 * step + i) for i in range(2)]
                streams = [functools.partial(make_generator, 5, step, i) for i in range(2)]
                own = [parallel.accumulate(*both, scale=0.5) for both in zip(rows, streams, strict=True)]
                losses += [loss.item() for loss in parallel.add_gradients(own)]
                tl.optim.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            found[team, shards] = losses, digest(model, optimizer)
    return found


def own_loop(seed=1, **options):
    """The losses and the digest of two steps."""
    model, optimizer = extended()
    tl.manual_seed(seed)
    with tl.parallel.shared(model, optimizer, max_norm=0.1, shards=6, **options) as step:
        losses = [step(*batch(9, seed=i)).item() for i in range(2)]
        return losses, digest(model, optimizer), step


WORLDS = """
import re
import numpy as np
from mpi4py import MPI
from tensorlite.parallel.ranks import World, connect
from tests.test_parallel_processes import batch
from tests.test_ranks import CASES, digests, own_loop

for size in CASES:
    comm = MPI.COMM_WORLD.Split(MPI.COMM_WORLD.rank < size)
    if MPI.COMM_WORLD.rank < size:
        world = World(comm)
        found = world.gather_objects(digests(world, CASES[size]))
        if world.rank == 0:
            assert all(one == found[0] for one in found), found
            print(size, found[0], flush=True)
        try:
            with world.together():
                if world.rank == 1:
                    raise ValueError("rank 1 is wrong")
        except ValueError as error:
            assert str(error) == "rank 1 is wrong" and world.knows(error)
        else:
            raise AssertionError("nobody was told")

world = connect()
assert not re.search(r"/dev/shm/mpich_shm_\\w+$", open("/proc/self/maps").read(), re.MULTILINE), "a name that stays when ranks are killed"
losses, weights, step = own_loop(workers=1 + world.rank % 2)
print(losses, weights, flush=True) if world.rank == 0 else None
for wrong, message in (
    (lambda: own_loop(seed=world.rank), "the seed (tl.manual_seed) is "),
    (lambda: step(*batch(9, seed=world.rank == 2)), "the hash of the batch is "),
    (lambda: step(*batch(9), *[np.ones(3)][: world.rank]), "same number of rows, at least 1; got [9, 9, 3] rows"),
):
    try:
        wrong()
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(message)
"""


@posix
def test_the_number_of_ranks_changes_no_bit():
    printed, code = launch((4, "-c", WORLDS))
    expected = {size: digests(World(), cases) for size, cases in CASES.items()}
    assert code == 0, printed
    losses, weights, _ = own_loop(workers=1)
    assert printed.splitlines() == [*(f"{size} {expected[size]}" for size in CASES), f"{losses} {weights}"]


SETTINGS = [
    "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=6", "--eval-iters=3", "--sample-length=10", "--workers=1",
    "--dropout=0.2", "--accumulation=2", "--shards=4", "--steps=6", "--eval-interval=3", "--warmup-steps=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a text, and a run of one process."""
    path = tmp_path_factory.mktemp("ranks")
    (path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    assert main([*SETTINGS, f"--data={path / 'fox.txt'}", f"--out={path / 'one'}"]) == 0
    return path


def files(run, step=6):
    checkpoint = run / "checkpoints" / f"step-{step:06}"
    return [hashlib.sha256((checkpoint / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("model", "optimizer")]


def forget_the_end(run):
    shutil.rmtree(run / "checkpoints" / "step-000006")


@posix
def test_a_run_on_ranks_that_share_the_state_is_that_of_one_process_and_goes_on_with_any_number(folder):
    expected = files(folder / "one")
    run = folder / "three"
    printed, code = launch((3, "-m", "gpt.train", *SETTINGS, "--zero=1", f"--data={folder / 'fox.txt'}", f"--out={run}"))
    assert code == 0, printed
    assert "3 ranks of MPI, which share the optimizer's state, each with 1 worker" in printed
    assert printed.count("steps       6 of 6") == 1
    assert files(run) == expected

    forget_the_end(run)
    printed, code = launch((2, "-m", "mpi4py", "-m", "gpt.train", f"--resume={run}", "--zero=0"))
    assert (code, files(run)) == (0, expected), printed

    forget_the_end(run)
    assert main([f"--resume={run}"]) == 0
    assert files(run) == expected


FINETUNING = [  # classes and answers of many lengths, LoRA, frozen blocks, another text
    ["--data={}/classes.csv", "--task=classify", "--freeze-blocks=1"],
    ["--data={}/answers.jsonl", "--lora-rank=2", "--unknown=skip"],
    ["--data={}/fox.txt"],
]


def finetune_all(folder, name):
    """Three runs of finetuning; returns the code of the last that fails, or 0."""
    settings = ["--batch-size=5", "--steps=3", "--eval-interval=3", "--eval-iters=1", "--workers=1", "--shards=4", "--warmup-steps=1"]
    for i, options in enumerate(FINETUNING):
        given = [f"--checkpoint={folder}/one", *settings, f"--out={folder}/{name}-{i}", *(option.format(folder) for option in options)]
        if code := finetune([*given, "--dropout=0.1", "--sample-length=0"]):
            return code
    return 0


@posix
def test_finetuning_on_ranks_is_that_of_one_process(folder):
    words = ["fox", "lazy dog", "the quick brown fox", "over"]
    (folder / "classes.csv").write_text("text,label\n" + "".join(f"{words[i % 4]},{'dog' if i % 2 else 'fox'}\n" for i in range(16)))
    (folder / "answers.jsonl").write_text(
        "".join(json.dumps({"prompt": words[i % 4], "response": words[(i + 1) % 4]}) + "\n" for i in range(12))
    )
    assert finetune_all(folder, "alone") == 0
    program = "from gpt.training.ranks import run_on_ranks; from tests.test_ranks import finetune_all; import sys; "
    printed, code = launch((2, "-c", program + f"sys.exit(run_on_ranks(lambda: finetune_all({str(folder)!r}, 'ranks')))"))
    assert code == 0, printed
    assert printed.count("2 ranks of MPI, each with 1 worker") == len(FINETUNING)
    for i in range(len(FINETUNING)):
        alone, ranks_ = (folder / f"{name}-{i}" for name in ("alone", "ranks"))
        assert files(ranks_, step=3) == files(alone, step=3)
        losses = [json.loads((run / "config.json").read_text())["losses"] for run in (alone, ranks_)]
        assert losses[0] == losses[1]


# --- what can go wrong --------------------------------------------------------------------------------


class Told(World):
    """One rank, which keeps what it would have told the others at the end of each block."""

    def __init__(self):
        super().__init__()
        self.errors = []

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except BaseException as error:
            self.errors.append(error)
            raise


class Moments:
    """A profiler that calls ``act`` at moment ``number`` of those at which Python runs the handler of a signal: when a function is entered,
    and when one that is written in C returns. They are counted in ``files``, and where these enter or leave a context manager.
    """

    def __init__(self, number, files, act):
        self.number, self.files, self.act, self.count = number, files, act, 0

    def __call__(self, frame, event, _):
        while frame.f_code.co_filename == contextlib.__file__:
            frame = frame.f_back
        if event in ("call", "c_return") and frame.f_code.co_filename in self.files:
            self.count += 1
            if self.count == self.number:
                self.act(signal.SIGTERM, frame)

    def __enter__(self):
        sys.setprofile(self)
        return self

    def __exit__(self, *_):
        sys.setprofile(None)


def test_wherever_a_signal_arrives_in_a_step_all_ranks_are_told():
    tokens = np.arange(400) % 11
    model = build_model(GPTConfig(vocab_size=11, block_size=4, n_layer=1, n_head=1, n_embd=4))
    trainer = Trainer(model, TrainConfig(steps=500, batch_size=2, workers=1, shards=1), tokens, tokens)
    world = trainer.stepper.world = Told()
    files, raised = {sys.modules[name].__file__ for name in ("gpt.training.stepper", "gpt.training.stopping")}, []
    number, last = 0, 0
    while number <= last:  # the first step is not disturbed: it says how many moments there are
        with Moments(number, files, trainer.stop._handle) as moments:
            try:
                trainer.update()
            except Stopped as stopped:
                raised.append(stopped)
        number, last = number + 1, max(last, moments.count)
        trainer.stop.requested = trainer.stop._interruptible = False
    assert len(raised) > 3
    assert world.errors == raised


ENDED = """
import os, signal, sys
from gpt.train import main
from gpt.training.ranks import run_on_ranks
from gpt.training.trainer import Trainer
from tensorlite.parallel.ranks import connect

update = Trainer.update

def ended(self):
    if self.step == 4 and connect().rank == 1:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return update(self)

Trainer.update = ended
sys.exit(run_on_ranks(lambda: main(sys.argv[2:])))
"""


@posix
def test_a_rank_that_is_killed_or_answers_no_more_ends_all_and_the_run_goes_on_to_the_same_bits(folder):
    for name, sentence in (("SIGKILL", "EXIT STRING: Killed (signal 9)"), ("SIGSTOP", "error: rank 1 has not answered for 1.2 seconds")):
        run = folder / name
        settings = [*SETTINGS, "--rank-limit=0.02", f"--data={folder / 'fox.txt'}", f"--out={run}"]
        printed, code = launch((2, "-c", ENDED, name, *settings))
        assert code != 0
        assert sentence in printed
        assert main([f"--resume={run}"]) == 0
        assert files(run) == files(folder / "one")


@posix
def test_ranks_that_would_compute_something_else_are_told_before_the_first_step(folder):
    settings = [*SETTINGS, f"--data={folder / 'fox.txt'}", f"--out={folder / 'never'}"]
    printed, code = launch((1, "-m", "gpt.train", *settings), (1, "-m", "gpt.train", *settings, "--seed=7"))
    assert printed == "error: all ranks must run the same: --seed is 7 on rank 1, and not given on rank 0.\n"
    assert code == 2
    assert not (folder / "never").exists()


@pytest.mark.parametrize("pauses, is_given_up", [([100.0] + [0.5] * 18, False), ([0.5] * 22, True)], ids=["a sleep", "a silence"])
def test_time_in_which_a_rank_itself_was_stopped_is_no_waiting(pauses, is_given_up, monkeypatch):
    """Its limit is 10 seconds. A computer that sleeps for 100 stops all ranks; then each has its limit to answer."""
    world, clock = ranks.World(), iter(np.cumsum([0.0, *pauses]))
    world.limit = 10.0

    class Request:
        left = ranks.SPINS + len(pauses)

        @classmethod
        def Testall(cls, requests):
            cls.left -= 1
            return cls.left < 0

    def give_up():
        raise TimeoutError

    monkeypatch.setattr(ranks.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(world, "give_up", give_up)
    with pytest.raises(TimeoutError) if is_given_up else contextlib.nullcontext():
        world._wait([Request()])


@pytest.fixture
def launched(monkeypatch):
    """This process as one of two that a launcher has started."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    ranks.connect.cache_clear()
    yield monkeypatch
    ranks.connect.cache_clear()


def test_without_mpi4py_processes_of_a_launcher_are_told_what_to_install(launched, capsys):
    launched.setitem(sys.modules, "mpi4py", None)
    assert run_on_ranks(lambda: 0) == 2
    assert "error: mpiexec has started 2 processes, and they cannot use MPI" in capsys.readouterr().err
    launched.setenv("OMPI_COMM_WORLD_RANK", "1")
    assert run_on_ranks(lambda: 0) == 2
    assert not capsys.readouterr().err  # one process says it for all


def test_a_launcher_of_another_mpi_is_named(launched):
    class Alone:
        Get_library_version = staticmethod(lambda: "MPICH Version: 5.0.2\n")

        class COMM_WORLD:
            Get_size = staticmethod(lambda: 1)

    launched.setitem(sys.modules, "mpi4py", type(sys)("mpi4py"))
    launched.setitem(sys.modules, "mpi4py.MPI", Alone)
    sys.modules["mpi4py"].MPI = Alone
    with pytest.raises(
        RankError, match=r"has started 2 processes, but each of them finds a world of 1: the launcher \(OMPI_COMM_WORLD_SIZE\)"
    ):
        ranks.connect()


def test_settings_that_cannot_work():
    for settings, message in (
        ({"zero": 2}, "zero is 0 or 1"),
        ({"zero": 1, "optimizer": "muon"}, "muon updates whole matrices"),
        ({"rank_limit": 0.0}, "rank_limit must be above 0 minutes"),
    ):
        with pytest.raises(ValueError, match=message):
            TrainConfig(**settings)


def test_several_ranks_refuse_to_accumulate_on_a_sum():
    model, optimizer = extended()
    with Workers(1) as team:
        parallel = BatchShards(model, optimizer.flats, 2, team)
        parallel._is_added = True
        model.rare.grad = tl.ones(1)
        with pytest.raises(RuntimeError, match=r"already: call zero_grad\(\) first"):
            parallel.accumulate(batch(4), make_generator)
