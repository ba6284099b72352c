"""A team of processes: the bits of threads, and a clean end whatever happens to any of them."""

import copy
import functools
import hashlib
import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.finetuning.instructions import ResponseLoss
from gpt.finetuning.lora import LoraLinear
from gpt.model import GPT
from gpt.training.rows import Row
from gpt.training.trainer import Trainer
from tensorlite.nn import functional as F
from tensorlite.op import use_kernels
from tensorlite.parallel import BatchShards, Processes, TeamError, Workers, make_team, shared_memory
from tensorlite.random import make_generator
from tests.patience import PATIENCE

CONFIG = GPTConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=8, dropout=0.3, tied_head=True)
TEAMS = [(name, count) for name in ("threads", "processes") for count in (1, 2, 3, 4)]
posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


def batch(rows=7, seed=0, width=6):
    ids = np.random.default_rng(seed).integers(0, 11, (2, rows, width))
    return tl.tensor(ids[0]), tl.tensor(ids[1])


class Extended(tl.nn.Module):
    """Tied weights, dropout, frozen weights, LoRA, a batch norm, and a parameter that only some rows use."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(CONFIG)
        self.gpt.h[0].requires_grad_(False)
        self.gpt.h[0].attn.c_attn = LoraLinear(self.gpt.h[0].attn.c_attn, rank=2, alpha=2.0)
        self.norm = tl.nn.BatchNorm1d(6)
        self.rare = tl.nn.Parameter(tl.ones(1))

    def forward(self, x, y):
        logits, loss = self.gpt(x, y)
        loss = loss + self.norm(logits).square().mean()
        return logits, loss * self.rare if (x.array == 3).sum() > 5 else loss


def extended():
    tl.manual_seed(1)
    model = Extended()
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, tl.optim.AdamW(trained, lr=1e-2)


def digest(model, optimizer):
    """Of all parameters, buffers and what the optimizer keeps."""
    state = optimizer.state_dict()["state"]
    arrays = [tensor.numpy() for tensor in model.state_dict().values()]
    arrays += [np.asarray(value) for number in sorted(state) for _, value in sorted(state[number].items())]
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


def train(team, model, optimizer, steps=3, shards=4):
    parallel = BatchShards(model, optimizer.flats, shards, team, optimizer=optimizer)
    losses = []
    for step in range(steps):
        for i in range(2):  # accumulated, with fewer rows than shards in the last batch
            rows = batch(3 if i else 9, seed=10 * step + i)
            losses.append(parallel.forward_backward(rows, functools.partial(make_generator, 5, step, i), scale=0.5).item())
        _, factor = tl.optim.clip_factor(model.parameters(), 0.1)
        team.update(optimizer, factor)
        optimizer.zero_grad()
    return losses, digest(model, optimizer)


@functools.cache
def by_one_thread():
    with Workers(1) as team:
        return train(team, *extended())


@pytest.mark.parametrize(("name", "count"), TEAMS)
def test_the_team_and_its_size_change_no_bit(name, count):
    with make_team(name, count) as team:
        assert train(team, *extended()) == by_one_thread()


def test_the_shards_do():
    with Workers(1) as team:
        assert train(team, *extended(), shards=2)[1] != by_one_thread()[1]


def test_what_changes_between_two_steps_reaches_the_processes():
    """Another mode, the book's pairs, numpy.errstate, values written in place and whole arrays, thawed weights."""

    def run(team):
        model, optimizer = extended()
        optimizer.add_param_group({"params": list(model.gpt.h[0].mlp.parameters())})
        parallel, digests = BatchShards(model, optimizer.flats, 2, team), []

        def step(seed):
            parallel.forward_backward(batch(8, seed), functools.partial(make_generator, seed))
            optimizer.step()
            optimizer.zero_grad()
            digests.append(digest(model, optimizer))

        step(0)
        model.eval()
        step(1)
        model.train()
        with use_kernels("book"):
            step(2)
        model.gpt.wpe.weight.array[...] *= 2
        model.gpt.h[0].ln_1.weight.data = tl.ones(8) * 3  # frozen
        model.gpt.h[1].ln_1.weight.data = tl.ones(8) * 3
        step(3)
        model.gpt.h[0].mlp.requires_grad_(True)
        step(4)
        model.gpt.h[1].ln_1.weight.data = tl.ones(8) * 1e30
        with np.errstate(all="raise"), pytest.raises(FloatingPointError):
            step(5)
        assert len(set(digests)) == 5
        return digests

    with Workers(2) as threads, Processes(2) as processes:
        assert run(processes) == run(threads)


def trainer(team):
    tokens = np.arange(400) % 11
    tl.manual_seed(2)
    config = TrainConfig(batch_size=5, steps=6, accumulation=2, eval_interval=3, eval_iters=2, workers=2, shards=3, team=team)
    return Trainer(GPT(CONFIG), config, tokens, tokens)


def test_a_run_of_one_team_goes_on_with_another():
    def go_on(first, second):
        one, two = trainer(first), trainer(second)
        with one.workers:
            for _ in range(3):
                one.update()
        state = one.model.state_dict(), one.optimizer.state_dict(), one.state_dict()
        for part, saved in zip((two.model, two.optimizer, two), state, strict=True):
            part.load_state_dict(saved)
        two.train()
        return digest(two.model, two.optimizer), two.last

    whole = trainer("threads")
    whole.train()
    expected = digest(whole.model, whole.optimizer), whole.last
    assert go_on("threads", "processes") == expected
    assert go_on("processes", "threads") == expected


def test_rows_of_different_lengths_and_another_loss():
    rows = [Row(ids := np.random.default_rng(n).integers(0, 11, n), ids) for n in (2, 3, 6, 4, 1)]
    ids = [np.stack([np.pad(row.x, (0, width - len(row.x))) for row in rows if len(row.x) <= width]) for width in (4, 6)]

    def run(team):
        tl.manual_seed(3)
        model = ResponseLoss(GPT(CONFIG), 3.0)
        optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2)
        parallel = BatchShards(model, optimizer.flats, 3, team)
        for step in range(4):
            x = tl.tensor(ids[step % 2])
            parallel.forward_backward((x, x), functools.partial(make_generator, step))
            optimizer.step()
            optimizer.zero_grad()
        return digest(model, optimizer)

    with Workers(2) as threads, Processes(2) as processes:
        assert run(processes) == run(threads)


# --- what can go wrong --------------------------------------------------------------------------------


def stepping(team, shards=2):
    """A function that makes a step on rows that all have the id that it is given."""
    tl.manual_seed(1)
    model = GPT(CONFIG)
    optimizer = tl.optim.AdamW(model.parameters(), lr=1e-2)
    parallel = BatchShards(model, optimizer.flats, shards, team)

    def step(last_id=1, seed=0):
        x, y = batch(8)
        x.array[-1] = last_id
        parallel.zero_grad()
        parallel.forward_backward((x, y), functools.partial(make_generator, seed))
        optimizer.step()
        return digest(model, optimizer)

    return step


def test_an_exception_in_a_process_is_raised_here_and_the_next_step_is_as_if_nothing_had_happened():
    with Workers(1) as team:
        step = stepping(team)
        expected = [step(), step()]
    with Processes(2) as team:
        step = stepping(team)
        assert step() == expected[0]
        with pytest.raises(IndexError, match="99") as caught:
            step(99)
        assert "in a worker process" in caught.value.__notes__[0]
        assert step() == expected[1]


@posix
def test_a_process_that_is_killed_ends_the_step_with_its_last_words():
    with Workers(1) as team:
        step = stepping(team)
        expected = [step(), step()]
    with Processes(2) as team:
        step = stepping(team)
        assert step() == expected[0]
        team._others[0]._process.kill()
        with pytest.raises(TeamError, match="a worker process was ended by SIGKILL, perhaps because memory was short"):
            step()
        assert step() == expected[1]


def test_an_interrupted_step_leaves_nothing(monkeypatch):
    with Workers(1) as team:
        step = stepping(team, shards=3)
        expected = [step(), step()]
    backward, calls = tl.Tensor.backward, []

    def interrupted(self, *gradient):
        backward(self, *gradient)
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with Processes(2) as team:
        step = stepping(team, shards=3)
        assert step() == expected[0]
        monkeypatch.setattr(tl.Tensor, "backward", interrupted)
        calls.append(None)
        with pytest.raises(KeyboardInterrupt):
            step()
        assert not team._others
        assert step() == expected[1]


class Net(tl.nn.Module):
    """A linear layer, whose activation is whatever it is given."""

    def __init__(self, activation=F.relu):
        super().__init__()
        self.layer, self.activation = tl.nn.Linear(3, 2), activation

    def forward(self, x):
        return self.activation(self.layer(x))


def test_a_model_that_cannot_be_pickled_is_one_sentence():
    step = tl.parallel.shared(
        model := Net(lambda x: x), tl.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, team="processes", workers=2
    )
    with step, pytest.raises(TeamError, match=r"cannot be sent to another process \(.*lambda.*\); with the team threads"):
        step(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1]))


PROGRAM = """
import sys, numpy as np, tensorlite as tl
from tensorlite.nn import functional as F

class Net(tl.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = tl.nn.Linear(3, 2)
    def forward(self, x):
        return self.layer(x)

model = Net()
step = tl.parallel.shared(model, tl.optim.SGD(model.parameters(), lr=0.1), F.cross_entropy, team=sys.argv[1], workers=2)
print(step(np.ones((4, 3), np.float32), np.array([0, 1, 0, 1])).shape)
"""


@pytest.mark.parametrize("team", ["threads", "processes"])
def test_a_class_of_the_program_itself_trains_with_threads_and_gets_a_sentence_from_processes(team):
    done = subprocess.run([sys.executable, "-c", PROGRAM, team], capture_output=True, encoding="utf-8", timeout=PATIENCE)
    if team == "threads":
        assert (done.returncode, done.stdout) == (0, "()\n"), done.stderr
    else:
        last = done.stderr.splitlines()[-1]
        assert "Net is defined in the program itself: move it to a file that is imported); with the team threads it need not be." in last


@posix
def test_memory_that_is_too_small_is_one_sentence(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "_anonymous_file", full)
    with (
        Processes(2) as team,
        pytest.raises(TeamError, match=r"processes need 0\.\d MiB of shared memory.*No space left.*use the team threads"),
    ):
        stepping(team)()


ENDLESS = """
import functools, sys, time, numpy as np, tensorlite as tl
from gpt.model import GPT
from tests import test_parallel_processes as here

if __name__ == "__main__":
    with here.Processes(3) as team:
        here.stepping(team, shards=3)()
        print(*(other._process.pid for other in team._others), flush=True)
        team._others[0].send(None)  # an answer that nobody reads
        time.sleep(1000)
"""


@posix
def test_no_process_outlives_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, encoding="utf-8")
    others = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(others) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + PATIENCE
    while any(map(is_running, others)):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    """Whether there is such a process, and it is not only waiting for its end to be noticed."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, encoding="ascii").stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 3, 4), (3, 0)])
def test_an_array_in_shared_memory_has_the_order_of_its_axes(shape):
    original = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    arrays = [original, original.T, original.swapaxes(0, -1) if shape else original, original.astype(np.int64)]
    plan = shared_memory.Plan()
    places = [plan.add(array) for array in arrays]
    memory = shared_memory.SharedMemory(plan.size)
    for array, place in zip(arrays, places, strict=True):
        memory.array(place)[...] = array
    for array, place in zip(arrays, places, strict=True):
        view = memory.array(place)
        assert (view.shape, view.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(view, array)
        if array.size:
            assert view.strides == array.strides
            assert view.ctypes.data % shared_memory.ALIGNMENT == 0


def test_an_unknown_team_is_refused():
    with pytest.raises(ValueError, match="unknown team 'fibres': it is one of threads, processes"):
        make_team("fibres", 2)


def test_an_op_is_pickled_and_copied_as_itself():
    for op in (F.relu, F.causal_self_attention):
        assert pickle.loads(pickle.dumps(op)) is op
        assert copy.deepcopy(op) is op
