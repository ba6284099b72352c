"""When training goes wrong, the message says where and what to do; and what helps against too little memory changes no result."""

from __future__ import annotations

import dataclasses
import errno
import re
import resource
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

import gpt.training.run_folder
import tensorlite as tl
from gpt import errors
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import UserError, format_bytes, run_main
from gpt.finetuning.tasks import RowTrainer
from gpt.model import CausalSelfAttention, build_model
from gpt.train import main
from gpt.training.memory import MemoryEstimate, advise, estimate_memory
from gpt.training.rows import Row
from gpt.training.run_folder import FolderLock
from gpt.training.trainer import Trainer
from tensorlite import memory
from tensorlite.profile import Profile

ROOT = Path(__file__).parents[1]
MODEL = GPTConfig(vocab_size=17, block_size=16, n_layer=2, n_head=2, n_embd=32)
TOKENS = np.random.default_rng(0).integers(17, size=3000)
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 60


def trainer(model: GPTConfig = MODEL, dtype=tl.float32, recompute: bool = False, **settings) -> Trainer:
    tl.manual_seed(1)
    config = TrainConfig(**{"steps": 20, "batch_size": 4, "warmup_steps": 3, "eval_interval": 10, "eval_iters": 3, "shards": 2, **settings})
    built = build_model(model).to(dtype=dtype)
    for module in built.modules():
        if isinstance(module, CausalSelfAttention):
            module.recompute = recompute
    return Trainer(built, config, TOKENS[:2700], TOKENS[2700:])


def weights(run: Trainer) -> np.ndarray:
    return np.concatenate([parameter.numpy().ravel() for parameter in (p.detach() for p in run.model.parameters())])


# --- less memory, the same result -----------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_accumulated_batches_equal_one_large_batch(clip):
    """The same rows, drawn in the same order; in float64 only the order of a few sums differs."""
    whole, parts = (trainer(dtype=tl.float64, batch_size=16 // count, accumulation=count, grad_clip=clip, shards=1) for count in (1, 4))
    for _ in range(5):
        np.testing.assert_allclose(parts.update().item(), whole.update().item(), rtol=1e-13)
        np.testing.assert_allclose(float(parts.gradient_norm.array), float(whole.gradient_norm.array), rtol=1e-11)
    np.testing.assert_allclose(weights(parts), weights(whole), rtol=1e-9, atol=1e-12)


def test_recomputed_attention_gives_the_same_result():
    config = dataclasses.replace(MODEL, dropout=0.2)
    kept, recomputed = trainer(config), trainer(config, recompute=True)
    for _ in range(5):
        assert kept.update().item() == recomputed.update().item()
    assert estimate_memory(recomputed).activations < estimate_memory(kept).activations


def test_the_estimate_for_rows_is_that_of_the_longest():
    def rows(length):
        return [Row(np.zeros(n, np.int64), np.zeros(n, np.int64)) for n in (2, length)]

    def activations(length):
        model = build_model(GPTConfig(vocab_size=9, block_size=64, n_layer=1, n_head=2, n_embd=16))
        return estimate_memory(RowTrainer(model, TrainConfig(batch_size=4, workers=1), rows(length), rows(length))).activations

    assert 2 * activations(8) < activations(32)


@pytest.mark.parametrize(("free", "is_too_much"), [(None, False), (1100, False), (1099, True)])
def test_optimizer_and_activations_must_fit_into_what_is_free(free, is_too_much):
    estimate = MemoryEstimate(parameters=10, gradients=20, optimizer=100, activations=1000, free=free)
    assert (estimate.is_too_much, estimate.total) == (is_too_much, 1130)
    listed = "1.1 KiB (parameters 10 bytes, gradients 20 bytes, optimizer 100 bytes, activations 1,000 bytes)"
    assert str(estimate) == listed + ("" if free is None else "; 1.1 KiB free")


# --- numbers that are not finite ------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "parameter, op",
    [
        ("wte.weight", "embedding in wte"),
        ("h.0.ln_1.weight", "layernorm in h.0.ln_1"),
        ("h.1.attn.c_attn.weight", "linear in h.1.attn.c_attn"),
        ("h.1.mlp.c_fc.weight", "linear in h.1.mlp.c_fc"),
        ("ln_f.weight", "layernorm in ln_f"),
    ],
)
def test_the_first_op_with_a_nan_is_named(parameter, op):
    run = trainer(shards=1)
    run.update()
    dict(run.model.named_parameters())[parameter].array.reshape(-1)[0 if parameter != "wte.weight" else slice(None)] = np.nan
    before = weights(run)
    with pytest.raises(UserError) as raised:
        run.update()
    message = str(raised.value)
    assert message.startswith(f"the loss became nan at step 1: the first op whose output is not finite is {op} (")
    assert f"and the parameter {parameter} has " in message
    assert "smaller learning rate" in message
    np.testing.assert_array_equal(weights(run), before)  # the step was not made
    assert "forward" not in run.model.h[0].__dict__


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_overflow_is_distinguished_from_a_nan_in_the_inputs():
    run = trainer()
    run.model.h[1].mlp.c_fc.weight.array[...] = 1e38
    linear = r"is linear in h\.1\.mlp\.c_fc \([\d,]+ of [\d,]+ numbers\), made from finite ones up to 1e\+38"
    with pytest.raises(UserError, match=linear):
        run.update()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_backward_with_a_nan_is_named():
    run = trainer(shards=1, grad_clip=0.0)
    forward = run.model.h[1].mlp.forward
    big = tl.tensor(np.float32(1e30))

    def shrunk_and_blown_up(x):  # finite on the way there, and 1e60 on the way back
        return forward(x * big * big * (1 / big) * (1 / big))

    object.__setattr__(run.model.h[1].mlp, "forward", shrunk_and_blown_up)
    with pytest.raises(UserError) as raised:
        run.update()
    assert "is mul in h.1.mlp" in str(raised.value)


def test_a_run_that_diverges_leaves_a_complete_checkpoint(tmp_path, capsys):
    (tmp_path / "fox.txt").write_text(TEXT)
    options = [
        "--n-layer=1", "--n-head=2", "--n-embd=16", "--block-size=8", "--batch-size=4", "--warmup-steps=0",
        f"--data={tmp_path / 'fox.txt'}",
        "--steps=200", "--eval-interval=5", "--eval-iters=1", "--grad-clip=0", "--learning-rate=1e37", "--min-learning-rate=1e37",
        f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    with np.errstate(all="ignore"):
        assert run_main(lambda: main(options)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: the (loss|gradient) became \S+ .*at step \d+: the first op whose output is not finite is ", error), error
    assert (tmp_path / "run" / "checkpoints" / "step-000000" / "manifest.json").exists()


# --- memory ---------------------------------------------------------------------------------------------


def test_the_estimate_is_near_the_memory_of_a_run():
    """In a process of its own, since the peak is that of a process."""
    script = (
        "import numpy as np; from gpt.config import *; from gpt.model import build_model; from gpt.training.trainer import Trainer\n"
        "from gpt.training.memory import estimate_memory; from tensorlite.memory import peak_memory\n"
        "model = build_model(GPTConfig(vocab_size=300, block_size=128, n_layer=4, n_head=4, n_embd=192, dropout=0.1))\n"
        "tokens = np.arange(9000) % 300\n"
        "run = Trainer(model, TrainConfig(batch_size=24, steps=9, workers=1, shards=1), tokens, tokens)\n"
        "expected = estimate_memory(run); run.workers.__enter__(); before = peak_memory()\n"
        "run.update(); run.update(); print(expected.optimizer + expected.activations, peak_memory() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, taken = map(int, done.stdout.split())
    assert 0.6 < taken / expected < 1.4


def test_an_estimate_above_the_free_memory_gets_a_warning(tmp_path, capsys, monkeypatch):
    (tmp_path / "fox.txt").write_text(TEXT)
    monkeypatch.setattr("gpt.training.memory.free_memory", lambda: 1000)
    options = ["--n-embd=16", "--block-size=8", "--batch-size=4", f"--data={tmp_path / 'fox.txt'}", "--steps=1", "--eval-iters=1"]
    assert run_main(lambda: main([*options, f"--out={tmp_path / 'run'}"])) == 0
    out = capsys.readouterr().out
    assert "; 1,000 bytes free" in out
    assert "warning: that is more memory than is free." in out


def test_out_of_memory_gives_figures_and_advice(tmp_path, capsys, monkeypatch):
    (tmp_path / "fox.txt").write_text(TEXT)
    calls = []
    real = Trainer.update

    def update(self):
        calls.append(None)
        if len(calls) == 4:
            np.empty(2**60, np.uint8)
        return real(self)

    monkeypatch.setattr(Trainer, "update", update)
    options = ["--n-embd=16", "--block-size=8", "--batch-size=4", f"--data={tmp_path / 'fox.txt'}", "--eval-iters=1", "--eval-interval=2"]
    assert run_main(lambda: main([*options, f"--out={tmp_path / 'run'}"])) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory (Unable to allocate 1.00 EiB" in error
    for part in ("parameters", "gradients", "optimizer", "activations"):
        assert re.search(rf"{part} [\d.]+ (bytes|[KMG]iB)", error)
    assert "--batch-size 2 --accumulation 2" in error
    assert "a smaller --block-size than 8" in error
    assert "--attention-recompute true" in error
    assert f"The checkpoint of step 2 is complete: --resume {tmp_path / 'run'}." in error


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_a_real_memory_limit_gives_figures_and_advice(tmp_path):
    """What ``ulimit -v`` allows is enough to start, and not for the batch."""
    (tmp_path / "fox.txt").write_text(TEXT * 20)
    script = (
        "import resource, sys; from gpt.train import main; from gpt.errors import run_main\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 250 * 2**20,) * 2)\n"
        "sys.exit(run_main(main))\n"
    )
    options = [
        "--n-layer=2", "--n-embd=64", "--block-size=256", "--batch-size=128", "--workers=1", "--eval-iters=1",
        f"--data={tmp_path / 'fox.txt'}", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script, *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "warning: that is more memory than is free." in done.stdout
    assert "error: out of memory (" in done.stderr
    assert "The checkpoint of step 0 is complete" in done.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux says in /proc")
def test_peak_memory_counts_the_bytes_in_use(tmp_path):
    """128 MiB more in use raise the peak by as much, to a quarter: a wrong unit would be off by a thousand."""
    program = (
        "import numpy as np\nfrom tensorlite.memory import peak_memory\nbefore = peak_memory()\n"
        "kept = np.ones(2**27, np.uint8)\nprint(peak_memory() - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout)
    assert 0.75 * 2**27 < grown < 1.25 * 2**27


@pytest.mark.parametrize(
    "files, free",
    [
        ({"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    2048 kB\n"}, 2048 * 1024),
        ({"/sys/fs/cgroup/memory.max": "5000\n", "/sys/fs/cgroup/memory.current": "1200\n"}, 3800),
        ({"/sys/fs/cgroup/memory.max": "max\n", "/sys/fs/cgroup/memory.current": "1200\n"}, None),
        ({"/proc/self/status": "VmSize:\t     100 kB\n", "limit": 250 * 1024}, 150 * 1024),
        ({"/proc/self/status": "VmSize:\t     100 kB\n", "limit": resource.RLIM_INFINITY}, None),
        ({"/proc/self/status": "VmSize:\t     100 kB\n", "limit": 50 * 1024, "/proc/meminfo": "MemAvailable: 9 kB\n"}, 0),
        ({"/proc/meminfo": "MemAvailable: 7 kB\n", "/sys/fs/cgroup/memory.max": "9000", "/sys/fs/cgroup/memory.current": "3000"}, 6000),
        ({}, None),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource limits")
def test_free_memory_is_the_minimum_of_machine_container_and_limit(files, free, monkeypatch):
    monkeypatch.setattr(memory, "_text", lambda path: files.get(path, ""))
    monkeypatch.setattr("resource.getrlimit", lambda what: (files.get("limit", resource.RLIM_INFINITY), resource.RLIM_INFINITY))
    assert memory.free_memory() == free


@pytest.mark.parametrize("system, library", [("darwin", ""), ("win32", ""), ("linux", "musl"), ("darwin", "glibc")])
def test_only_glibcs_malloc_is_told_to_keep_what_was_freed(system, library, monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: (library, ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("the C library was loaded"))
    assert memory.keep_freed_memory.__wrapped__() is False


def test_glibc_keeps_all_that_is_freed_in_one_heap(monkeypatch):
    """mallopt(3): no mapping for a large block, the largest int as the trim threshold, one arena."""
    told = {}
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    library = types.SimpleNamespace(mallopt=lambda parameter, value: told.setdefault(parameter, value) == value)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert memory.keep_freed_memory.__wrapped__() is True
    assert told == {-4: 0, -1: 2**31 - 1, -8: 1}


@pytest.mark.parametrize("others", [[], ["a daemon"]])
def test_a_program_without_running_threads_ends_by_sys_exit(others, monkeypatch):
    threads = [threading.main_thread(), *(threading.Thread(daemon=True) for _ in others)]
    monkeypatch.setattr(errors.threading, "enumerate", lambda: threads)
    monkeypatch.setattr(errors.os, "_exit", lambda code: pytest.fail("no buffer was flushed"))
    with pytest.raises(SystemExit) as ended:
        errors.leave(3)
    assert ended.value.code == 3


def test_sizes_in_words():
    assert [format_bytes(n) for n in (0, 1023, 1024, 1536, 200 * 2**20, 3 * 2**40)] == [
        "0 bytes", "1,023 bytes", "1.0 KiB", "1.5 KiB", "200 MiB", "3.0 TiB",
    ]  # fmt: skip


def test_advice_omits_settings_that_cannot_be_reduced():
    run = trainer(batch_size=1, attention_recompute=True)
    text = advise(MemoryError(), run, estimate_memory(run))
    assert "the system gave no figure" in text
    assert "--batch-size" not in text
    assert "--attention-recompute" not in text


# --- the profile ----------------------------------------------------------------------------------------


def test_the_profile_counts_the_ops_of_a_step():
    run = trainer(shards=1)
    with Profile() as profile:
        run.update()
    lines = profile.records
    N, C, V = 4 * 16, 32, 17
    assert lines["linear", "forward"].calls == 4 * 2 + 1
    products = 2 * N * (2 * 12 * C * C + C * V)  # in each block 3 + 1 + 4 + 4 times C · C
    assert lines["linear", "forward"].flops == products
    assert lines["linear", "backward"].flops == 2 * products
    attention = next(line for (op, direction), line in lines.items() if "attention" in op and direction == "forward")
    assert attention.flops == 2 * (4 * 4 * 16 * 16 * C)  # two blocks, two products, 2 T T C each
    assert sum(line.seconds for line in lines.values()) <= profile.seconds
    table = profile.table()
    assert "outside of ops" in table
    assert re.search(r"^linear +backward +9 ", table, re.MULTILINE)


def test_attention_is_counted_by_its_own_lengths():
    q, k, v = tl.ones(2, 3, 5, 8), tl.ones(2, 3, 7, 8), tl.ones(2, 3, 7, 4)
    with Profile() as profile:
        tl.nn.functional.scaled_dot_product_attention(q, k, v)
    (line,) = profile.records.values()
    assert line.flops == 2 * (2 * 3 * 5 * 7 * 8) + 2 * (2 * 3 * 5 * 7 * 4)


def test_profiling_changes_no_result_and_ends_with_the_block():
    plain, profiled = trainer(workers=2), trainer(workers=2)
    with profiled.workers, Profile(2) as profile:
        losses = [profiled.update().item() for _ in range(3)]
    calls = sum(line.calls for line in profile.records.values())
    assert losses == [plain.update().item() for _ in range(3)]
    profiled.update()
    assert calls == sum(line.calls for line in profile.records.values())


def test_the_profile_from_the_command_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "fox.txt").write_text(TEXT)
    monkeypatch.chdir(tmp_path)
    options = ["--n-embd=16", "--block-size=8", "--batch-size=4", "--data=fox.txt", "--profile", "2"]

    class HalfASecond(Profile):
        def __exit__(self, *exception):
            super().__exit__(*exception)
            self.seconds = 0.5

    monkeypatch.setattr("gpt.train.Profile", HalfASecond)
    assert run_main(lambda: main(options)) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 steps of 32 tokens: 128 tokens a second\n")
    assert "linear" in out
    assert [path.name for path in tmp_path.iterdir()] == ["fox.txt"]
    assert run_main(lambda: main([*options[:-1], "0"])) == 2


# --- the lock -------------------------------------------------------------------------------------------


def test_a_lock_holds_until_it_is_released(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(UserError, match="is in use by process"):
        FolderLock(tmp_path)
    lock.release()
    lock.release()
    FolderLock(tmp_path).release()


def test_a_file_system_without_locks_gets_a_warning(tmp_path, monkeypatch, capsys):
    def unknown(descriptor):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(gpt.training.run_folder, "lock", unknown)
    FolderLock(tmp_path).release()
    assert "make sure that no other run uses it" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_at_all(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(UserError, match="the run folder cannot be locked"):
        FolderLock(tmp_path)
