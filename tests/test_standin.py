"""The stand-in for CuPy is as strict as CuPy, and the program runs on it: the same losses, the same texts, no value read in between."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tensorlite as tl
from gpt import __main__ as program
from gpt.config import GPTConfig, TrainConfig
from gpt.model import GPT
from gpt.training.trainer import Trainer
from tensorlite.backend import Device, DeviceUnavailableError
from tensorlite.kernels.cuda.graph import CaptureError, Recorder
from tensorlite.op import use_kernels
from tests.standin import library, machine

MODEL = GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=2, n_embd=16)
TOKENS = np.random.default_rng(0).integers(0, 11, 400).astype(np.uint16)


# --- strictness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        lambda x, n: np.asarray(x),
        np.add,
        lambda x, n: x + n,
        lambda x, n: n * x,
        lambda x, n: x @ n,
        lambda x, n: x.__iadd__(n),
        lambda x, n: x.__setitem__(0, n[0]),
        lambda x, n: np.stack([n, x]),
    ],
    ids=["asarray", "numpy's add", "plus", "times", "matmul", "in place", "setitem", "stack"],
)
def test_numpy_arrays_are_refused_and_never_made_implicitly(use, standin):
    n = np.ones((3, 3), np.float32)
    with pytest.raises(TypeError):
        use(standin.asarray(n), n)


@pytest.mark.parametrize("name", ["errstate", "vecdot", "memmap", "no_such_name"])
def test_names_that_cupy_does_not_have_are_missing(name, standin):
    assert name not in library.names_of("cupy")
    with pytest.raises(AttributeError):
        getattr(standin, name)


def test_every_name_of_the_standin_is_one_of_cupys(standin):
    for module, real in ((standin, "cupy"), (standin.cuda, "cupy.cuda"), (standin.cuda.runtime, "cupy.cuda.runtime")):
        ours = {name for name in vars(module) if not name.startswith("_")} - {"is_stand_in", "cublas"}  # CuPy loads cublas when asked
        assert ours <= library.names_of(real), f"{real}: {sorted(ours - library.names_of(real))}"


@pytest.mark.parametrize("join", ["stack", "concatenate"])
def test_a_graph_cannot_join_more_than_eight_arrays(join, standin):
    """CuPy would record a copy of their addresses from memory of the host that is gone when the graph is launched."""
    arrays = [standin.ones(2, "float32") for _ in range(9)]
    recorder = Recorder()
    recorder.record(lambda: getattr(standin, join)(arrays[:8]))
    with pytest.raises(CaptureError, match="not permitted when stream is capturing"):
        Recorder().record(lambda: getattr(standin, join)(arrays))
    assert getattr(standin, join)(arrays).size == 18


def test_host_reads_are_recorded_and_can_be_forbidden(standin):
    x = standin.arange(4.0)
    for read in (float, bool, int):
        read(x.sum())
    x.get(), x[x > 1], x.tolist()
    assert len(machine.machine.reads) == 6 and all("test_standin.py" in read for read in machine.machine.reads)
    with machine.forbid_host_reads(), pytest.raises(AssertionError, match="the host reads a value of the device here"):
        float(x[0])


def test_memory_is_poisoned_counted_and_limited(standin):
    pool = standin.get_default_memory_pool()
    x = standin.empty(1000, "float32")
    assert np.isnan(x.get()).all()
    assert pool.used_bytes() == 4096
    del x
    assert pool.used_bytes() == 0 and pool.total_bytes() == 4096
    pool.set_limit(size=8192)
    with pytest.raises(standin.cuda.memory.OutOfMemoryError, match="allocating 40,448 bytes"):
        standin.zeros(10_000, "float32")


def test_an_index_out_of_range_does_not_raise(standin):
    x = standin.arange(4.0)
    assert x[standin.asarray(np.array([5]))].get() == 1


# --- the program -------------------------------------------------------------------------------------------


def trainer(backend, tokens=TOKENS, **changes):
    tl.manual_seed(1)
    settings = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 2, "cuda_graph": False, "workers": 1, "shards": 1}
    config = TrainConfig(backend=backend, **{**settings, **changes})
    return Trainer(GPT(MODEL).to(backend), config, tokens, TOKENS)


def test_on_a_gpu_one_worker_is_enough(standin):
    assert trainer("cupy", workers=None).workers.count == 1


@pytest.mark.parametrize("accumulation", [1, 2])
def test_losses_and_weights_are_numpys_bit_for_bit_where_the_arithmetic_is_the_same(accumulation, standin):
    with use_kernels("book"):
        numpys, ours = (trainer(backend, accumulation=accumulation, grad_clip=0.0) for backend in ("numpy", "cupy"))
        for _ in range(6):
            assert numpys.update().item() == ours.update().item()
    for a, b in zip(numpys.model.parameters(), ours.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.array, b.array.get())


@pytest.mark.parametrize("precision, error", [("float32", 1e-4), ("tf32", 5e-3), ("bfloat16", 3e-2), ("float16", 5e-3)])
def test_losses_in_every_precision_are_near_numpys(precision, error, standin):
    numpys, ours = trainer("numpy"), trainer("cupy", precision=precision)
    from tensorlite.precision import use_precision

    with use_precision(precision):
        losses = [(numpys.update().item(), ours.update().item()) for _ in range(6)]
    for right, found in losses:
        assert abs(found - right) <= error * right


def test_no_value_is_read_between_the_model_and_the_step(standin):
    run = trainer("cupy", accumulation=2)
    run.update()
    with machine.forbid_host_reads():
        for _ in range(3):
            run.update()


def test_train_generate_and_finetune_on_the_command_line(standin, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    small = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", "--block-size", "8", "--batch-size", "4", "--eval-iters", "2"]
    common = ["--steps", "4", "--eval-interval", "4", "--sample-length", "0", "--backend", "cupy"]
    run(["--mode", "train", "--data", "text.txt", "--tokenizer", "char", "--out", "run", *small, *common])
    run(["--mode", "generate", "--checkpoint", "run", "--prompt", "The", "--max-new-tokens", "5", "--seed", "1"])
    run(["--mode", "finetune", "--checkpoint", "run", "--data", "text.txt", "--out", "tuned", "--lora-rank", "2", *common])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == 4 and np.isfinite(lines[-1]["val_loss"])


def run(arguments):
    assert not program.main(arguments)


# --- bad input ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble, words",
    [
        ({"present": False}, "NVIDIA GPU and its driver"),
        ({"driver": 11040}, "driver"),
    ],
    ids=["no GPU", "a driver older than CuPy's CUDA"],
)
def test_an_unusable_gpu_gives_one_sentence(trouble, words, standin):
    for name, value in trouble.items():
        setattr(machine.machine, name, value)
    with pytest.raises(DeviceUnavailableError, match=words):
        Device("cupy").module  # noqa: B018


def test_an_old_cupy_or_a_missing_gpu_is_an_error(standin, monkeypatch):
    with pytest.raises(DeviceUnavailableError, match=r"'cupy:3' does not exist"):
        tl.zeros(2, device="cupy:3")
    monkeypatch.setattr(standin, "__version__", "13.6.0")
    with pytest.raises(DeviceUnavailableError, match=r"13\.6\.0"):
        Device("cupy").module  # noqa: B018


def test_two_backends_in_one_expression_are_refused(standin):
    with pytest.raises(RuntimeError, match="different devices"):
        tl.zeros(2) + tl.zeros(2, device="cupy")


def test_ids_out_of_range_are_refused_before_they_reach_the_device(standin):
    run = trainer("cupy", tokens=np.array([0, 99] * 50, np.uint16))
    with pytest.raises(ValueError, match="99"):
        run.update()
