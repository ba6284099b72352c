"""A training step captured as a CUDA graph: the plain step's bits, and nothing of it lost on Python's side."""

from __future__ import annotations

import ctypes
import gc
import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

import tensorlite as tl
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import UserError
from gpt.finetuning.tasks import RowTrainer
from gpt.model import build_model
from gpt.training.pretraining import Pretraining
from gpt.training.stepper import WARM_UP, GPUStepper
from gpt.training.trainer import Trainer
from tensorlite import optim
from tensorlite.kernels.cuda.cublas import COMPUTE_FLOAT32, DEFAULT_ALGORITHM, get_handle
from tensorlite.kernels.cuda.graph import CaptureError, Recorder
from tensorlite.op import use_kernels
from tensorlite.random import make_generator, use_generator
from tests.standin import machine
from tests.standin.machine import forbid_host_reads

MODEL = GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=16, bias=True)
TOKENS = np.random.default_rng(0).integers(20, size=500).astype(np.uint16)
STEPS = WARM_UP + 4


def trainer(cuda_graph, dropout=0.0, kind=Trainer, **settings):
    """The learning rate rises and falls while a graph is launched."""
    settings = {"steps": STEPS, "warmup_steps": WARM_UP + 1, "batch_size": 4, "eval_iters": 2, "eval_interval": 100, **settings}
    config = TrainConfig(backend="cupy", cuda_graph=cuda_graph, **settings)
    with use_generator(make_generator(1)):
        model = build_model(GPTConfig(**{**vars(MODEL), "dropout": dropout})).to(device="cupy").train()
    return kind(model, config, TOKENS[:400], TOKENS[400:])


def everything(run):
    """All that a step leaves behind, fit for comparison."""
    state = run.optimizer.state_dict()
    arrays = {f"{number} {name}": value for number, entry in state["state"].items() for name, value in entry.items()}
    weights = {name: p.array.get() for name, p in run.model.named_parameters()}
    facts = {
        "versions": [p.version.count for p in run.model.parameters()],
        "gradients": [p.grad for p in run.model.parameters()],
        "rates": [group["lr"] for group in run.optimizer.param_groups],
        "trainer": json.dumps(run.state_dict()),
    }
    return {**arrays, **weights, **facts}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


SETTINGS = {
    "as it is": {},
    "accumulated": {"accumulation": 3},
    "accumulated often": {"accumulation": 9, "steps": WARM_UP + 2},  # two launches: each takes the stand-in long
    "always clipped": {"grad_clip": 0.05},
    "never clipped": {"grad_clip": 0.0},
    "two shards": {"shards": 2, "accumulation": 2},
    "all weights decay": {"weight_decay": 0.5, "schedule": "linear"},
    "dropout": {"dropout": 0.3, "accumulation": 2, "shards": 2},
    "Muon": {"optimizer": "muon"},
    "many rows": {"batch_size": 70, "steps": WARM_UP + 2},  # from 64 rows on the book adds the positions' gradients in another way
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_launched_step_equals_a_plain_step_bit_for_bit(any_cupy, name):
    plain, captured = trainer(False, **SETTINGS[name]), trainer(True, **SETTINGS[name])
    for _ in range(plain.config.steps):
        losses = [run.update().item() for run in (plain, captured)]
        norms = [run.gradient_norm.item() for run in (plain, captured)]
        assert losses[0] == losses[1] and norms[0] == norms[1]
        assert_same(everything(plain), everything(captured))
    assert captured.stepper.graph_memory > 0 and captured.stepper.why_eager is None


@pytest.mark.parametrize(("cuda_graph", "optimizer"), [(False, "adamw"), (True, "adamw"), (True, "muon")])
def test_nothing_is_read_from_the_device_in_a_step(standin, cuda_graph, optimizer):
    run = trainer(cuda_graph, accumulation=2, optimizer=optimizer)
    with forbid_host_reads():
        losses = [run.update() for _ in range(STEPS)]
    assert np.isfinite(losses[-1].item())


def test_evaluations_between_two_steps_do_not_change_training(any_cupy):
    quiet, busy = trainer(True), trainer(True)
    for _ in range(STEPS):
        quiet.update()
        busy.update()
        busy.evaluate()
        any_cupy.get_default_memory_pool().free_all_blocks()
    assert_same(everything(quiet), everything(busy))


def test_a_launch_continues_from_a_state_loaded_before_it(any_cupy):
    """The optimizer's arrays are others then: what was recorded is of no use any more."""
    plain, captured = trainer(False, steps=20), trainer(True, steps=20)
    for run in (plain, captured):
        for _ in range(STEPS):
            run.update()
        run.optimizer.load_state_dict(run.optimizer.state_dict())
        for _ in range(STEPS):
            run.update()
    assert_same(everything(plain), everything(captured))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(precision, any_cupy, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 30, encoding="utf-8")
    shape = GPTConfig(block_size=8, n_layer=1, n_head=1, n_embd=8)
    config = TrainConfig(
        data=str(text), tokenizer="char", backend="cupy", precision=precision, cuda_graph=True, batch_size=4, schedule="constant",
        eval_interval=100, eval_iters=1, log_interval=3, sample_length=0,
    )  # fmt: skip
    for steps, name in ((12, "whole"), (6, "parts")):
        assert Pretraining.new(shape, replace(config, steps=steps, out=str(tmp_path / name))).run() == 0
    assert Pretraining.resume(tmp_path / "parts", {"steps": 12}).run() == 0
    assert capsys.readouterr().out.count("recorded as a CUDA graph") == 3
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")))


# --- where there can be no graph ---------------------------------------------------------------------------


def reads_its_loss(run):
    """As an op would that looks at a value."""
    gradients = run.stepper.gradients

    def looking(*args):
        result = gradients(*args)
        result.loss.item()
        return result

    run.stepper.gradients = looking
    return run


def test_a_step_that_cannot_be_recorded_runs_plain_with_a_warning(standin, capsys):
    plain, captured = trainer(False), reads_its_loss(trainer("auto"))
    for _ in range(STEPS):
        plain.update()
        captured.update()
    assert_same(everything(plain), everything(captured))
    assert f"step {WARM_UP}: no CUDA graph, every op is queued by Python: cudaErrorStreamCaptureUnsupported" in capsys.readouterr().out


def test_a_required_graph_that_cannot_be_recorded_is_an_error(standin):
    run = reads_its_loss(trainer(True))
    for _ in range(WARM_UP):
        run.update()
    with pytest.raises(UserError, match="--cuda-graph true, but the step cannot be recorded: cudaErrorStreamCaptureUnsupported"):
        run.update()


def test_rows_of_different_lengths_and_the_books_rules_run_without_a_graph(standin, capsys):
    rows = [type("Row", (), {})() for _ in range(3)]
    with use_kernels("book"):
        assert type(trainer("auto").stepper) is GPUStepper
        assert "no CUDA graph, every op is queued by Python: TENSORLITE_KERNELS=book" in capsys.readouterr().out
    del rows
    assert RowTrainer.batches_have_one_shape is False
    RowsLikeThat = type("RowsLikeThat", (Trainer,), {"batches_have_one_shape": False})
    run = trainer("auto", kind=RowsLikeThat)
    for _ in range(STEPS):
        run.update()
    assert run.stepper.graph_memory == 0
    assert "no CUDA graph, every op is queued by Python: batches are as wide as their longest row." in capsys.readouterr().out


# --- the recorder ----------------------------------------------------------------------------------------


def test_a_launch_reads_the_present_values_in_memory(any_cupy):
    x = any_cupy.zeros(4, "float32")
    recorder = Recorder()
    recorder.run(lambda: x + 1)
    recording = recorder.record(lambda: x + 1)
    for value in (3, 5):
        x[...] = value
        recording.launch()
        np.testing.assert_array_equal(recording.result.get(), np.full(4, value + 1, np.float32))


def test_recording_runs_no_kernel(any_cupy):
    x = any_cupy.zeros(4, "float32")
    recording = Recorder().record(lambda: x.fill(7))
    assert (x.get() == 0).all()
    recording.launch()
    assert (x.get() == 7).all()


def test_a_failed_recording_leaves_the_stream_usable(any_cupy):
    x, recorder = any_cupy.ones(4, "float32"), Recorder()
    with pytest.raises(CaptureError):
        recorder.record(lambda: float(x.sum()))
    assert float(recorder.run(x.sum)) == 4


def test_an_error_of_the_recorded_code_is_not_reported_as_a_capture_error(any_cupy):
    with pytest.raises(ZeroDivisionError):
        Recorder().record(lambda: 1 / 0)


def test_the_memory_limit_holds_for_both_pools_together(standin):
    common = standin.get_default_memory_pool()
    held = standin.zeros(1 << 18, "float32")  # 1 MiB
    common.set_limit(size=3 << 20)
    recorder = Recorder()
    with pytest.raises(MemoryError, match="limit set to"):
        recorder.run(lambda: standin.zeros(3 << 18, "float32"))
    recorder.run(lambda: standin.zeros(1 << 18, "float32"))
    recording = recorder.record(lambda: None)
    assert common.get_limit() == (2 << 20) and recorder.memory == 1 << 20
    del recording
    gc.collect()
    assert common.get_limit() == 3 << 20, "as before the recording"
    del held


def test_memory_of_a_graph_is_not_freed_during_its_capture(standin):
    """CuPy's pool does that by itself where cudaMalloc fails or its limit is reached."""
    recorder = Recorder()
    recorder.run(lambda: standin.zeros(1 << 18, "float32"))

    def short_of_memory():
        recorder._pool.free_all_blocks()
        return standin.zeros(4, "float32")

    with pytest.raises(CaptureError, match="some that the graph uses was returned to the driver"):
        recorder.record(short_of_memory)


def test_muon_in_float16_runs_without_a_graph(standin, capsys):
    """The loss scaler then asks the device whether the step is made: only AdamW's kernel finds that out by itself."""
    run = trainer("auto", optimizer="muon", precision="float16")
    assert type(run.stepper) is GPUStepper
    assert "no CUDA graph, every op is queued by Python: in float16 the device decides" in capsys.readouterr().out


def test_a_step_that_fits_only_without_a_graph_stays_plain(standin, capsys):
    run = trainer("auto")
    gradients, recorded = run.stepper.gradients, machine.machine

    def too_large(*args):
        if recorded.graph is not None:
            raise machine.OutOfMemoryError(1 << 30, 0, 1 << 20)
        return gradients(*args)

    run.stepper.gradients = too_large
    for _ in range(STEPS):
        loss = run.update()
    assert np.isfinite(loss.item()) and run.stepper.why_eager.startswith("Out of memory allocating")


def test_values_written_into_captured_memory_between_two_launches_are_lost(standin):
    """So it may be on a GPU, where another array of the graph lay there before."""
    made = []

    def work():
        made.append(standin.zeros(4, "float32"))
        return made[0] + 1

    recording = Recorder().record(lambda: (standin.empty(4, "float32"), work())[1])
    recording.launch()
    np.testing.assert_array_equal(recording.result.get(), np.ones(4, np.float32))
    late = []
    recording = Recorder().record(lambda: (late.append(standin.empty(4, "float32")), late[0] + 1)[1])
    late[0][...] = 1
    recording.launch()
    assert np.isnan(recording.result.get()).all()


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_freed_in_a_capture_is_another_arrays_before_it_ends(keeps, standin):
    """A fault planted: a product is given the address of an array that nobody holds any more. A later array of the graph may lie there."""
    one, zero = ctypes.c_float(1), ctypes.c_float(0)

    def work(keeps):
        a, b, out = standin.ones((2, 2), "float32") * 2, standin.ones((2, 2), "float32"), standin.empty((2, 2), "float32")
        held, address = ([a] if keeps else []), a.data.ptr
        del a
        factors = 0, 0, 2, 2, 2, ctypes.addressof(one), address, 0, 2, b.data.ptr, 0, 2
        get_handle(standin).gemm(*factors, ctypes.addressof(zero), out.data.ptr, 0, 2, COMPUTE_FLOAT32, DEFAULT_ALGORITHM)
        return out, held

    recorder = Recorder()
    recorder.run(lambda: work(True))
    recording = recorder.record(lambda: work(keeps))
    recording.launch()
    assert np.isnan(recording.result[0].get()).all() == (not keeps)
    assert not keeps or (recording.result[0].get() == 4).all()


# --- the optimizer's device scalars -------------------------------------------------------------------------------


def test_device_scalars_hold_rate_and_step_and_count_like_a_step(any_cupy):
    weights = [tl.nn.Parameter(any_cupy.ones(size, "float32")) for size in (3, 5)]
    optimizer = optim.AdamW([{"params": weights[:1], "lr": 0.5}, {"params": weights[1:], "lr": 0.25}])
    for weight in weights:
        weight.sum().backward()
    optimizer.step()
    scalars = optimizer.device_scalars()
    optimizer.param_groups[1]["lr"] = 0.125
    scalars.advance()
    assert [float(lr) for lr in scalars.lr] == [0.5, 0.125] and [int(step) for step in scalars.step] == [2, 2]
    assert [entry["step"] for entry in optimizer.state_dict()["state"].values()] == [2, 2]
    assert [weight.version.count for weight in weights] == [2, 2]
    assert scalars.are_valid()
    optimizer.load_state_dict(optimizer.state_dict())
    assert not scalars.are_valid()


def test_step_with_device_scalars_equals_step(any_cupy):
    start = np.random.default_rng(0).standard_normal((3, 32), dtype=np.float32)
    stepped, dialled = (tl.nn.Parameter(any_cupy.asarray(start)) for _ in range(2))
    optimizers = [optim.AdamW([weight], lr=0.1) for weight in (stepped, dialled)]
    for _ in range(3):
        for weight in (stepped, dialled):
            (weight * weight).sum().backward()
        optimizers[0].step()
        scalars = optimizers[1].device_scalars()
        scalars.advance()
        optimizers[1].step_with(scalars)
        for optimizer in optimizers:
            optimizer.zero_grad()
    np.testing.assert_array_equal(stepped.array.get(), dialled.array.get())
