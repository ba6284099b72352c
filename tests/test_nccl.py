"""Several GPUs on the stand-in: each rank of MPI pretends one, and what NCCL is given goes through MPI.

mpiexec takes seconds to start a program, so one launch runs all that needs several ranks, and its first rank prints what it finds.
"""

import contextlib
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.model import build_model
from gpt.train import main
from gpt.training import speed, stepper, trainer
from gpt.training.ranks import run_on_ranks
from tensorlite.backend import Device
from tensorlite.kernels.cuda.graph import Recorder
from tensorlite.optim.flat import FlatParameters
from tensorlite.parallel import Workers
from tensorlite.parallel.gradient_sum_on_gpus import SumAcrossGPUs
from tensorlite.parallel.nccl import Communicator, choose_gpu
from tensorlite.parallel.ranks import RankError, World
from tensorlite.parallel.tree import add_tree
from tensorlite.precision import use_precision
from tensorlite.random import make_generator, use_generator
from tests import standin as stand_in
from tests.standin import machine
from tests.standin import nccl as theirs
from tests.test_ranks import files, launch, posix

MODEL = GPTConfig(vocab_size=12, block_size=4, n_layer=1, n_head=1, n_embd=8, bias=True)
TOKENS = np.random.default_rng(0).integers(12, size=200).astype(np.uint16)
CASES = {  # of each number of ranks
    2: {"shards": 3, "dropout": 0.2, "accumulation": 2},
    4: {"shards": 4, "precision": "bfloat16", "zero": 1},
}
STEPS = 2  # an eager one, and one that is recorded and launched
DOCS = Path(__file__).parent.parent / "docs" / "gpu.md"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    hurry(monkeypatch)


def hurry(patch):
    """The stand-in takes long for a step."""
    patch.setattr(stepper, "WARM_UP", 1)
    patch.setitem(speed.SIZE, "cupy", 16)
    patch.setattr(speed, "PEAK_SECONDS", 0.0)


def trained(world, dropout=0.0, **settings):
    """A run of some steps, and the SHA-256 of its losses, weights and optimizer."""
    config = TrainConfig(backend="cupy", cuda_graph=True, steps=STEPS, warmup_steps=2, batch_size=4, learning_rate=0.1, **settings)
    with use_generator(make_generator(1)):
        model = build_model(GPTConfig(**{**vars(MODEL), "dropout": dropout})).to(device="cupy").train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "join_ranks", lambda config: world)
        run = trainer.Trainer(model, config, TOKENS[:150], TOKENS[150:])
    digest = hashlib.sha256()
    with use_precision(config.precision):
        for _ in range(STEPS):
            digest.update(run.update().array.get().tobytes())
    digest.update(run.optimizer.flats[0].data.get().tobytes())
    for entry in run.optimizer.state_dict()["state"].values():
        digest.update(b"".join(np.asarray(value).tobytes() for value in entry.values()))
    return run, digest.hexdigest()


def trace(run):
    """The calls of NCCL in the recorded step of ``run``: the group, the call, the buffer, the other rank and the bytes."""
    added, (flat,) = run.stepper.shards._across_ranks, run.optimizer.flats
    buffers = {"losses": added._losses, "gradients": flat.grad, "received": added._received[0], "weights": flat.data}
    calls, lines = [call for call in machine.machine.nccl if call.captured], []
    for call in calls:
        address = call.send or call.receive
        name, array = next((name, array) for name, array in buffers.items() if 0 <= address - array.data.ptr < array.nbytes)
        first = (address - array.data.ptr) // array.itemsize
        place = f"{name}[{first}:{first + call.size // array.itemsize}]"
        whom = {"send": f"to rank {call.peer}", "allGather": "to all ranks"}.get(call.op, f"from rank {call.peer}")
        lines.append(f"{call.group - calls[0].group + 1}  {call.op:<9}  {place:<20}  {whom:<12}  {call.size:>4} bytes")
    return lines


# --- one program on four ranks ------------------------------------------------------------------------


@contextlib.contextmanager
def gpus(comm, devices=4):
    """The world of ``comm``, on a machine with so many GPUs, one of them in use."""
    with stand_in.installed(), theirs.carried_by(comm):
        machine.machine.devices = devices
        world = World(comm)
        Device("cupy", choose_gpu(world)).use()
        yield world


def without_nccl(comm):
    with gpus(comm) as world:
        sys.modules["cupy.cuda.nccl"].available = world.rank != 1
        Communicator(world)


def too_few_gpus(comm):
    with gpus(comm, devices=3):
        pass


def added_in_the_order_of_the_tree(comm):
    """Whether the sum of a vector of each rank has the bits of the tree."""
    vectors = np.random.default_rng(0).standard_normal((comm.size, 1040)).astype(np.float32)
    with gpus(comm) as world:
        p = tl.nn.Parameter(tl.zeros(1040, device="cupy"))
        flat = FlatParameters([p])
        p.grad_buffer[...] = tl.tensor(vectors[world.rank], device="cupy").array
        p.grad = tl.Tensor.wrap(p.grad_buffer)
        added = SumAcrossGPUs([flat], world, comm.size, Workers(1))
        losses = added.add([[p]], [[flat.grad]], [[tl.tensor(float(world.rank), device="cupy")]])
        assert [loss.item() for loss in losses[0]] == list(range(comm.size))
        expected = add_tree((0, comm.size), {(i, i + 1): vector for i, vector in enumerate(vectors)}, np.add)
        assert np.array_equal(p.grad.numpy(), expected), "the bits differ"


def on_another_stream(patch):
    def group(self, of=Communicator._group):
        with of(self) as stream:
            yield stream + 1

    patch.setattr(Communicator, "_group", contextlib.contextmanager(group))


def in_another_order(patch):
    def exchange(self, sends, receives, exchange=Communicator.exchange):
        arrays = [array for _, array in receives]
        exchange(self, sends, [(rank, array) for (rank, _), array in zip(receives, [*arrays[1:], arrays[0]], strict=True)])

    patch.setattr(Communicator, "exchange", exchange)


def a_slice_off_by_one(patch):
    def slice_of(self, length, rank=None, slice_of=World.slice_of):
        found = slice_of(self, length, rank)
        return slice(found.start, min(length, found.stop + (self.rank == 1)))

    patch.setattr(World, "slice_of", slice_of)


FAULTS = {
    on_another_stream: "queued on a stream that is not the current one",
    in_another_order: "the bits differ",
    a_slice_off_by_one: "bytes to rank 1, which receives",
}


def complaint(function, comm):
    """What ``function`` raises, on the first rank that has something to say."""
    try:
        function(comm)
    except (AssertionError, RankError) as error:
        told = str(error)
    else:
        told = ""
    return next((one for one in comm.allgather(told) if one), "")


def four_ranks(settings):
    """What `launched` runs."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    sys.stdout = sys.stdout if comm.rank == 0 else sys.stderr
    found = {"refused": [complaint(function, comm) for function in (without_nccl, too_few_gpus)]}
    found["faults"] = [complaint(added_in_the_order_of_the_tree, comm)]
    for plant in FAULTS:
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            found["faults"].append(complaint(added_in_the_order_of_the_tree, comm))
    for size, case in CASES.items():
        part = comm.Split(comm.rank < size)
        if comm.rank < size:
            with gpus(part) as world:
                run, digest = trained(world, **case)
                found[f"digests of {size}"] = part.allgather(digest)[:1] if case.get("zero") else part.allgather(digest)
                found[f"trace of {size}"] = part.allgather(trace(run))[1]
    with stand_in.installed():
        machine.machine.devices = 4
        code = run_on_ranks(lambda: main(settings))
    if comm.rank == 0:
        print(json.dumps({**found, "code": code}), flush=True)


PROGRAM = """
import sys
import pytest
from tests.test_nccl import four_ranks, hurry

hurry(pytest.MonkeyPatch())
four_ranks(sys.argv[1:])
"""
SETTINGS = [
    "--backend=cupy", "--n-layer=1", "--n-head=1", "--n-embd=8", "--block-size=4", "--batch-size=4", "--eval-iters=1", "--sample-length=0",
    "--shards=4", "--steps=3", "--eval-interval=2", "--warmup-steps=1", "--zero=1", "--cuda-graph=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What four ranks print, what the first has found, and the folder of their run."""
    path = tmp_path_factory.mktemp("gpus")
    (path / "fox.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    printed, code = launch((4, "-m", "mpi4py", "-c", PROGRAM, *SETTINGS, f"--data={path / 'fox.txt'}", f"--out={path / 'four'}"))
    assert code == 0, printed
    (found,) = [line for line in printed.splitlines() if line.startswith("{")]
    return printed, json.loads(found), path


@posix
@pytest.mark.parametrize("size", CASES)
def test_the_number_of_gpus_changes_no_bit(size, launched, standin):
    _, expected = trained(World(), **CASES[size])
    assert set(launched[1][f"digests of {size}"]) == {expected}


@posix
def test_the_documents_show_the_calls_of_a_recorded_step(launched):
    shown = re.search(r"<!-- nccl: begin -->\n```\n(.*?)```\n", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert shown[1].splitlines() == launched[1]["trace of 4"]


@posix
def test_faults_are_seen(launched):
    right, *complaints = launched[1]["faults"]
    assert right == ""
    for found, expected in zip(complaints, FAULTS.values(), strict=True):
        assert expected in found


@posix
def test_what_cannot_work_is_said_in_a_sentence(launched):
    missing, few = launched[1]["refused"]
    assert missing == 'several GPUs need NCCL, which CuPy does not find: pip install -e ".[nccl12]".'
    assert re.fullmatch(
        r"ranks 0 and 3 would both compute on GPU 0000:00:00.0 of \S+, and NCCL takes one rank for each GPU: "
        r"\S+ has 3, so start at most so many ranks there\.",
        few,
    )


@posix
def test_a_run_of_four_gpus_is_that_of_one_and_goes_on_with_one(launched, standin):
    printed, found, path = launched
    assert found["code"] == 0
    assert "4 ranks of MPI, which share the optimizer's state, each with a GPU" in printed
    assert printed.count("recorded as a CUDA graph") >= 1 and printed.count("steps       3 of 3") == 1
    assert main([*SETTINGS, f"--data={path / 'fox.txt'}", f"--out={path / 'one'}"]) == 0
    assert files(path / "four", 3) == files(path / "one", 3)
    shutil.rmtree(path / "four" / "checkpoints" / "step-000003")
    assert main([f"--resume={path / 'four'}"]) == 0
    assert files(path / "four", 3) == files(path / "one", 3)


# --- one process --------------------------------------------------------------------------------------


class GivenUp(Exception):
    pass


@pytest.fixture
def alone(standin):
    """A communicator of one GPU, which gives up after a moment."""
    world = World()
    world.limit = 0.01

    def give_up():
        raise GivenUp

    world.give_up = give_up
    return Communicator(world)


def test_the_host_does_not_wait_for_ever(alone, monkeypatch):
    alone.wait()
    machine.machine.is_done = False
    with pytest.raises(GivenUp):
        alone.wait()

    def lost(self):
        raise theirs.NcclError(6)

    monkeypatch.setattr(theirs.NcclCommunicator, "check_async_error", lost)
    with pytest.raises(RankError, match=r"NCCL has lost another rank \(NCCL_ERROR_REMOTE_ERROR: .*\); --resume goes on"):
        alone.wait()


def test_a_graph_contains_what_nccl_is_given(alone, standin):
    x, y = standin.arange(4.0), standin.zeros(4)
    recording = Recorder().record(lambda: alone.exchange([(0, x)], [(0, y)]))
    assert (y.get() == 0).all()
    x[...] = 7
    recording.launch()
    assert (y.get() == 7).all()
    with pytest.raises(AssertionError, match="destroyed before the graphs"):
        alone._communicator.destroy()
    del recording
    alone._communicator.destroy()


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda x, xp, gpu: Recorder().record(lambda: gpu.broadcast(x + 1)), "allocated in the capture"),
        (lambda x, xp, gpu: gpu.exchange([(0, x)], [(0, xp.zeros(3))]), "sends .* which receives"),
        (lambda x, xp, gpu: gpu._communicator.send(x.data.ptr, 99, 8, 0, 0), "not all in one array that is alive"),
        (lambda x, xp, gpu: gpu._communicator.send(x.data.ptr, 4, 8, 0, 5), "not the current one"),
        (lambda x, xp, gpu: gpu._communicator.send(x.data.ptr, 4, 8, 1, 0), "INVALID_ARGUMENT"),
        (lambda x, xp, gpu: Recorder().record(lambda: Communicator(gpu.world)), "not permitted when stream is capturing"),
    ],
    ids=["memory of the capture", "other lengths", "past the end", "another stream", "no such rank", "connected in a capture"],
)
def test_the_standin_refuses_what_nccl_cannot_do(misuse, words, alone, standin):
    with pytest.raises((AssertionError, RuntimeError), match=words):
        misuse(standin.arange(4.0), standin, alone)


def test_memory_that_a_graph_sends_must_outlive_it(alone, standin):
    sent, received = [(0, standin.arange(4.0))], [(0, standin.zeros(4))]
    recording = Recorder().record(lambda: alone.exchange(sent, received))
    sent.clear()
    with pytest.raises(AssertionError, match="not all in one array that is alive"):
        recording.launch()
