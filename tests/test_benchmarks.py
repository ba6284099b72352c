"""The benchmarks run, compare the same work, and the documents show the recorded results. No test checks a speed."""

import dataclasses
import json
import math
import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tensorlite as tl
from benchmarks import (
    common,
    generate,
    gpu_side,
    gpu_stages,
    learning,
    matmul,
    nanogpt_cpu,
    ops,
    own_loop,
    report,
    scaling,
    scaling_gpu,
    serve,
    smollm2,
    step_parts,
    train_step,
)
from benchmarks.__main__ import BENCHMARKS
from benchmarks.__main__ import main as run_benchmark
from benchmarks.configurations import CONFIGURATIONS, Configuration, flops_per_step
from benchmarks.turns import Side, in_turn, sides
from data.tokenizer import CharTokenizer
from gpt.checkpoints.model_folder import save_model
from gpt.config import GPTConfig
from gpt.errors import UserError
from gpt.model import GPT, build_model
from gpt.training.stepper import WARM_UP
from tensorlite.precision import PRECISIONS
from tests import test_gguf, test_gpt_llama
from tests.standin import gpu_machine


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder for results, and processes that leave each other some of the machine."""
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")

    def read(name):
        content = json.loads((tmp_path / "results" / f"{name}.json").read_text())
        assert {"processor", "cores", "python", "numpy", "torch", "blas"} <= set(content["machine"])
        return content["results"]

    return read


def assert_spread(spread, count):
    assert 0 < spread["min"] <= spread["median"] <= spread["max"] < math.inf
    assert spread["count"] == count


def test_flops_against_a_count_of_every_product():
    config = GPTConfig(vocab_size=11, block_size=5, n_layer=3, n_head=2, n_embd=8, bias=False)
    B, T, C, V, H = 7, 5, 8, 11, 2
    D = C // H

    def product(n, k, m):
        return 2 * n * k * m

    linear = [product(B * T, C, 3 * C), product(B * T, C, C), product(B * T, C, 4 * C), product(B * T, 4 * C, C)]
    attention = [B * H * product(T, D, T) / 2, B * H * product(T, T, D) / 2]  # half of the scores is masked
    forward = 3 * (sum(linear) + sum(attention)) + product(B * T, C, V)
    assert flops_per_step(Configuration("", "", config, B, 1)) == 3 * forward  # backward: two products for each


def test_flops_of_a_llama():
    config = GPTConfig(model="llama", vocab_size=11, block_size=5, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, n_inner=24)
    B, T, C, D = 7, 5, 16, 4
    weights = C * (4 + 2 * 2) * D + C * C + C * 2 * 24 + 24 * C  # c_attn, c_proj, c_fc with value and gate, c_proj
    forward = 3 * (2 * B * T * weights + 2 * B * 4 * 2 * T * T * D / 2) + 2 * B * T * C * 11
    assert flops_per_step(Configuration("", "", config, B, 1)) == 3 * forward


def test_the_llama_of_torch_is_ours():
    import torch

    from benchmarks.torch_gpt import TorchGPT

    config = GPTConfig(model="llama", vocab_size=31, block_size=16, n_layer=2, n_head=6, n_kv_head=2, n_embd=48)
    model, twin = GPT(config).double(), TorchGPT(config).double()
    twin.load_state_dict({name: torch.from_numpy(value.detach().numpy()) for name, value in model.state_dict().items()})
    idx = np.random.default_rng(0).integers(31, size=(3, 16))
    ours, theirs = model(tl.tensor(idx))[0].detach().numpy(), twin(torch.from_numpy(idx))[0].detach().numpy()
    assert abs(ours - theirs).max() < 1e-5  # torch's table of cosines is in float32


def test_table():
    rows = [{"side": "ours", "tokens/s": 12345.6, "ratio": 1.2345}, {"side": "torch", "tokens/s": 9.0, "ratio": "none"}]
    assert common.table(rows).splitlines() == [
        "| side  | tokens/s | ratio |",
        "| ----- | -------- | ----- |",
        "| ours  | 12,346   | 1.23  |",
        "| torch | 9        | none  |",
    ]
    assert common.table([]) == ""


def test_spread():
    assert common.spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0, "count": 4}


def test_all_sides_of_train_step_do_the_same_computation(results):
    names = ("ours", "book", "torch", "torch untuned")
    with sides([Side(name, "benchmarks.side", name, "smoke") for name in names]) as processes:
        losses = {side.name: [side.ask(count)["result"] for count in (1, 2, 3)] for side in processes}
    for name in names:
        np.testing.assert_allclose(losses[name], losses["torch"], rtol=1e-5, err_msg=name)
    assert len(set(losses["torch"])) == 3, "training changes the loss"


def test_a_side_that_stops_is_named():
    side = Side("ours", "benchmarks.side", "ours", "no such configuration")
    with sides([side]), pytest.raises(RuntimeError, match="'ours' stopped with exit code 1"):
        side.ask(1)


def test_turns():
    asked = []

    class Recorder:
        def __init__(self, name):
            self.name = name

        def ask(self, count):
            asked.append((self.name, count))
            return {"seconds": len(asked)}

    assert in_turn([Recorder("a"), Recorder("b")], rounds=3, count=5) == {"a": [1, 4, 5], "b": [2, 3, 6]}
    assert asked == [("a", 5), ("b", 5), ("b", 5), ("a", 5), ("a", 5), ("b", 5)]


def test_train_step(results, capsys, monkeypatch):
    monkeypatch.setattr(matmul, "PEAK_SIZES", (64,))
    train_step.main(["smoke", "--rounds", "2", "--steps", "1", "--sides", "ours", "torch"])
    (result,) = results("train_step")
    assert result["gflop_per_step"] == flops_per_step(CONFIGURATIONS["smoke"]) / 1e9
    assert set(result["sides"]) == {"ours", "torch"}
    for side in result["sides"].values():
        assert_spread(side["seconds_per_step"], 2)
        assert_spread(side["speed_relative_to_torch"], 2)
        assert 10 < side["peak_memory_mb"] < 2000
    assert result["sides"]["torch"]["speed_relative_to_torch"]["median"] == 1
    assert "| smoke         | ours  |" in capsys.readouterr().out


def test_matmul(results, tmp_path):
    pytest.importorskip("matplotlib")
    matmul.main(["--sizes", "16", "32", "--rounds", "2"])
    products = results("matmul")["products"]
    assert [product["n"] for product in products[:: len(products) // 2]] == [16, 32]
    for product in products:
        assert_spread(product["gflops"], 2)
    assert (tmp_path / "results" / "matmul.png").read_bytes().startswith(b"\x89PNG")


def test_sgemm_peak(monkeypatch):
    monkeypatch.setattr(matmul, "PEAK_SIZES", (32, 64))
    assert 1e6 < matmul.sgemm_peak() < 1e15


def test_ops_has_an_entry_for_every_faster_pair():
    assert ops.missing() == []


SMOKE = ops.Sizes.of("smoke")


@pytest.mark.parametrize("name", ops.entries(SMOKE))
def test_ops_measures_the_same_function(name):
    """Our op and torch's give the same output from the arrays of the entry."""
    import torch

    entry, op = ops.entries(SMOKE)[name], ops.REGISTRY[ops.op_of(name)]
    arrays = entry.arrays()
    ours, theirs = op(*arrays, **entry.options).numpy(), entry.torch(*map(torch.from_numpy, arrays)).numpy()
    assert ours.shape == theirs.shape
    if "dropout" not in name:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_ops(results, monkeypatch):
    monkeypatch.setattr(ops, "keep_freed_memory", lambda: True)  # it would hold for all tests that follow
    ops.main(["layernorm", "attention", "--configurations", "smoke", "--rounds", "2"])
    measured = results("ops")
    assert {result["op"] for result in measured} == {"layernorm", "attention", "attention with dropout"}
    for result in measured:
        assert result["pair"] == "cpu"
        assert_spread(result["speed_relative_to_torch"], 2)
        assert_spread(result["speed_relative_to_book"], 2)
        assert set(result["seconds"]) == {"pair", "book", "torch"}


def test_ops_names_a_pair_without_an_entry(results, monkeypatch):
    monkeypatch.delitem(entries := ops.entries(SMOKE), "layernorm")
    monkeypatch.setattr(ops, "entries", lambda sizes: entries)
    with pytest.raises(SystemExit, match="no entry for layernorm, which has a faster pair"):
        ops.main([])


@pytest.mark.skipif(os.name != "posix", reason="the MPI that pip installs, MPICH, is for POSIX systems")
def test_scaling(results, capsys):
    scaling.main(["--configuration", "smoke", "--ranks", "2", "--steps", "2", "--bandwidth", "25"])
    plain, zero = results("scaling_link")
    assert (plain["zero"], zero["zero"]) == (False, True)
    assert plain["sha256"] == zero["sha256"]
    for result in (plain, zero):
        assert_spread(result["milliseconds"], 2)
        assert_spread(result["sum_milliseconds"], 2)
        assert abs(result["sent"] - result["sent_by_model"]) < 1000  # slices begin at multiples of 64 numbers
    assert "| ranks | ms a step | of it for the sum | sum by the model |" in capsys.readouterr().out
    assert "a cable that is held to 200 Mbit/s" in report.report(report.recorded(report.SCALING_SECTIONS))


def test_the_time_of_a_sum_is_that_of_a_ring():
    assert scaling.milliseconds_by_model(4, 10**6, latency=0.5, bandwidth=100.0) == 2 * 3 * (0.5 + 2.5)
    assert scaling.bytes_by_model(4, 1000, zero=False) == 1500 and scaling.bytes_by_model(4, 1000, zero=True) == 2250


def test_generate(results):
    name = next(iter(generate.TEXTS))
    generate.main([name, "--rounds", "1", "--tokens", "3"])
    (result,) = results("generate")
    assert set(result["sides"]) == set(generate.SIDES) >= {"ours", "torch", "torch cache"}
    for name, side in result["sides"].items():
        assert_spread(side["tokens_per_second"], 1)
        assert (side["share_of_bandwidth"] is not None) == (name in ("ours", "torch cache"))


@pytest.mark.parametrize("writer", [generate.our_writer, generate.torch_writer, generate.caching_torch_writer])
def test_a_writer_generates_the_requested_number_of_tokens(writer, monkeypatch):
    monkeypatch.setattr("tensorlite.memory.keep_freed_memory", lambda: True)  # this and the threads would stay for all tests that follow
    monkeypatch.setattr("data.cores.available_cores", lambda: 1)
    assert writer(generate.Text("tiny", 7))(7) == 8


def test_serve(results, tmp_path):
    """Servers as processes, in float32 and in 8 bits, beside another one of ours."""
    tokenizer = CharTokenizer("".join(sorted(set("".join(serve.PROMPTS)))))
    config = GPTConfig(model="llama", vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=1, n_embd=32, n_inner=32)
    save_model(tmp_path / "a", build_model(config), tokenizer)
    with serve.started(str(tmp_path / "a"), slots=2) as other:
        beside = ["--beside", f"theirs={other.address}", "--beside-clients", "1"]
        serve.main([str(tmp_path / "a"), "--int8", "--clients", "1", "2", "--tokens", "4", "--rounds", "2", *beside])
        assert serve.read_text(other.address, "a", 0, 4)[0] == 4
        with pytest.raises(RuntimeError, match="answers 404"):
            serve.read_text(other.address, "b", 0, 4)
        if Path("/proc/self/status").exists():
            assert 10 < other.memory_mb("VmRSS") <= other.memory_mb("VmHWM") < 2000
    (result,) = results("serve")
    assert result["model"] == "a"
    alone, together = [("ours", 1), ("ours --int8", 1), ("theirs", 1)], [("ours", 2), ("ours --int8", 2)]
    assert [(one["server"], one["clients"]) for one in result["servers"]] == alone + together
    for one in result["servers"]:
        assert_spread(one["tokens_per_second"], 2)
        assert_spread(one["first_token_seconds"], 2 * one["clients"])
        known = one["server"] != "theirs" and Path("/proc/self/status").exists()  # nobody has named that one's process
        for memory in (one["idle_memory_mb"], one["peak_memory_mb"]):
            assert 10 < memory < 2000 if known else memory is None
    lines = serve.rows(results("serve"))
    assert [bool(line["peak, MB"]) for line in lines] == [one["peak_memory_mb"] is not None for one in result["servers"]]
    refused = pytest.raises(RuntimeError, match="none --port 0 --slots 1 --int8 has not started")
    with refused, serve.started(str(tmp_path / "none"), 1, "--int8"):
        pass


@pytest.fixture
def small_llama(tmp_path):
    """A GGUF file with a chat template and room for the question."""
    path = tmp_path / "small.gguf"
    template = "{% for message in messages %}<|endoftext|>{{ message.content }}{% endfor %}"
    test_gguf.write(path, dataclasses.replace(test_gguf.CONFIG, block_size=512), "Q8_0", tokenizer__chat_template=template)
    return str(path)


def test_smollm2(results, small_llama, tmp_path, capsys, monkeypatch):
    """One of the optional sides is not installed, another one stops; a second call adds its rounds."""
    (tmp_path / "xllamacpp.py").write_text("raise SystemExit(3)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parent.parent)]))
    optional = {"transformers": [("json", "no_such_module"), ("nor_this",)], "llama.cpp": [("neither_this",), ("json",)]}
    monkeypatch.setattr(smollm2, "OPTIONAL", optional)
    smollm2.main(["--checkpoint", small_llama, "--rounds", "1", "--tokens", "3"])
    smollm2.main(["--checkpoint", small_llama, "--rounds", "2", "--tokens", "3", "--parts", "widened", "--add"])
    found = results("smollm2")
    reasons = ("no_such_module or nor_this is not installed", "the side 'llama.cpp' stopped with exit code 3")
    assert tuple(found["missing"].items()) == (("transformers", reasons[0]), ("llama.cpp", reasons[1]))
    assert f"Not measured: transformers ({reasons[0]}), llama.cpp ({reasons[1]}).\n" in capsys.readouterr().out
    (round_,) = found["conversation"]
    assert set(round_) == {"products alone", "ours", "ours --int8"}
    assert all(seconds[part] > 0 for seconds in round_.values() for part in ("prompt", "answer"))
    assert found["peak_memory_mb"].keys() == {"ours", "ours --int8"} and all(10 < mb < 2000 for mb in found["peak_memory_mb"].values())
    assert [set(round_) for round_ in found["texts"]] == [{str(texts) for texts in smollm2.TEXTS}]
    assert [set(round_) for round_ in found["widened"]] == 3 * [set(smollm2.KINDS)]
    with pytest.raises(UserError, match="answer was 3, and is 4 now"):
        smollm2.main(["--checkpoint", small_llama, "--rounds", "1", "--tokens", "4", "--parts", "widened", "--add"])
    monkeypatch.setattr(smollm2, "SIDES", ("no such side",))
    with pytest.raises(RuntimeError, match="'no such side' stopped with exit code 1"):  # it is not optional
        smollm2.measure(small_llama, ["conversation"], 1, 3)


def test_what_the_user_can_correct_is_told_in_one_sentence(tmp_path, capsys, monkeypatch):
    for checkpoint, message in (("none.gguf", "none.gguf cannot be read"), ("plain.gguf", "has no chat template")):
        test_gguf.write(tmp_path / "plain.gguf", test_gguf.CONFIG)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["benchmarks", "smollm2", "--checkpoint", checkpoint])
        with pytest.raises(SystemExit) as ended:
            run_benchmark()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_ours_and_transformers_write_the_same_answer(tmp_path, monkeypatch):
    import torch
    import transformers

    theirs = test_gpt_llama.their_model()
    theirs.save_pretrained(tmp_path)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda folder, gguf_file, dtype: theirs)
    monkeypatch.setattr(smollm2, "load_model", lambda checkpoint, int8: (GPT.from_pretrained(tmp_path), None, None))
    monkeypatch.setattr(smollm2, "path_of_gguf", Path)
    monkeypatch.setattr(smollm2, "keep_freed_memory", lambda: True)  # this and the threads would stay for all tests that follow
    monkeypatch.setattr(smollm2, "available_cores", torch.get_num_threads)
    monkeypatch.setattr(smollm2, "timed", lambda tokens: [int(token) for token in tokens])
    answers = [work("a.gguf", [3, 1, 4, 1, 5, 9])(16) for work in (smollm2.our_work, smollm2.transformers_work)]
    assert answers[0] == answers[1]
    assert len(answers[0]) == 16 and len(set(answers[0])) > 1


def test_llama_cpp_is_measured_by_its_pieces_and_asked_whether_it_did_the_work(monkeypatch):
    """A stand-in for xllamacpp, whose clock is that of the test."""
    clock = iter([10.0, 10.5, 11.0, 13.0] * 2)
    monkeypatch.setattr(smollm2.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(smollm2, "path_of_gguf", Path)
    asked = []

    class Server:
        def __init__(self, parameters):
            assert parameters.model.path == "a.gguf"

        def handle_completions(self, request, receive):
            asked.append(request)
            usage = {"prompt_tokens": len(request["prompt"]), "completion_tokens": 2}
            assert not any(receive(piece) for piece in ({}, {}, {"usage": usage}))

    parameters = SimpleNamespace(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "xllamacpp", SimpleNamespace(CommonParams=lambda: parameters, Server=Server))
    work = smollm2.xllamacpp_work("a.gguf", [7, 8, 9])
    assert work(2) == {"prompt": 0.5, "answer": 2.5}
    assert asked[0]["prompt"] == [7, 8, 9] and asked[0]["n_predict"] == 2
    with pytest.raises(RuntimeError, match="was to read 3 tokens and to write 5"):
        work(5)


def test_weights_in_fewer_bits_give_the_product_of_what_they_stand_for():
    """In tiles that do not divide the rows. The bounds are half a step of each kind of number, for 32 products with 1."""
    weight = np.random.default_rng(0).standard_normal((70, 32)).astype(np.float32)
    bits, x = smollm2.InFewerBits(weight), np.ones(32, np.float32)
    bits.step = 16
    steps = dict(zip(smollm2.KINDS, (0, 2**-7, 1 / 127, 1 / 127, 2**-10), strict=True))  # bfloat16 is cut off, so a whole step
    for kind, step in steps.items():
        y = np.full(70, np.nan, np.float32)
        for rows in (range(30), range(30, 70)):
            bits.product(kind, x, y, rows)
        difference = abs(y - weight.sum(axis=1, dtype=np.float64))
        assert (difference <= 32 * (step + 1e-6) * abs(weight).max(axis=1)).all(), kind
        assert kind == "float32" or difference.max() > 1e-4, "it has fewer bits"


def test_the_tables_of_smollm2(results, monkeypatch):
    """A ratio is that of one round, and only of a round that has both sides."""
    first = {"products alone": 1.0, "ours": 2.0, "transformers": 4.0}
    second = {"products alone": 1.0, "ours": 4.0, "transformers": 4.0, "ours --int8": 8.0}
    rounds = [{side: {"prompt": 0.1, "answer": time} for side, time in round_.items()} for round_ in (first, second)]
    nothing = {"versions": {}, "peak_memory_mb": {}, "conversation": [], "texts": [], "widened": []}
    base = {**nothing, "prompt": 100, "answer": 9, "weights_mb": 538.0, "missing": {"llama.cpp": "it is away", "ours --int8": "it was"}}
    found = smollm2.merge(
        {**base, "conversation": rounds[:1], "peak_memory_mb": {"ours": 700.0}},
        {**base, "conversation": rounds[1:], "peak_memory_mb": {"ours": 690.0}, "versions": {"transformers": "5.1"}},
    )
    assert found["missing"] == {"llama.cpp": "it is away"}
    lines = {line.pop("side"): list(line.values()) for line in smollm2.rows(found)}
    assert lines == {
        "products alone": ["1,000 (1,000 – 1,000)", "", "8.0 (8.0 – 8.0)", "", "", ""],
        "ours": ["1,000 (1,000 – 1,000)", "1.00 (1.00 – 1.00)", "3.0 (2.0 – 4.0)", "1.50 (1.00 – 2.00)", "38% (25% – 50%)", "700"],
        "transformers": ["1,000 (1,000 – 1,000)", "", "2.0 (2.0 – 2.0)", "", "25% (25% – 25%)", ""],
        "ours --int8": ["1,000 (1,000 – 1,000)", "1.00 (1.00 – 1.00)", "1.0 (1.0 – 1.0)", "0.50 (0.50 – 0.50)", "", ""],
    }
    found["texts"] = [{str(texts): 0.5 for texts in smollm2.TEXTS}]
    found["widened"] = [{"float32": {"1": 0.25, "2": 0.125}}]
    common.save("smollm2", found)
    page = report.report(report.recorded(report.GENERATION_SECTIONS))
    texts, widened = "| 8             | 500 (500 – 500) | 16 (16 – 16) |", "| float32           | 250 (250 – 250) | 125 (125 – 125) |"
    for part in ("Not measured: llama.cpp (it is away).", "Versions: transformers 5.1.", texts, widened):
        assert part in page


def test_nanogpt_cpu(results, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    nanogpt_cpu.main(["--data", str(text), "--steps", "12", "--eval-iters", "1", "--rounds", "1"])
    result = results("nanogpt_cpu")
    ours, torch = result["sides"]["ours"], result["sides"]["torch"]
    # Other weights, but the same texts in the same order, the same schedule and the same evaluation.
    assert ours["val_loss"]["median"] == pytest.approx(torch["val_loss"]["median"], rel=0.1)
    assert ours["val_loss"]["median"] < math.log(28), "it has learnt something"


def test_step_parts(results):
    step_parts.main(["smoke", "--blocks", "2"])
    [found] = results("step_parts")
    assert found["rows"] >= 1
    assert found["shares"].keys() >= {"products", "attention", "gelu", "layernorm", "clipping and AdamW"}
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["products_of_sgemm_peak"] > 0


def test_own_loop(results):
    own_loop.main(["--layers", "1", "--width", "24", "--context", "8", "--batch", "4", "--dropout", "0", "--rounds", "1"])
    found = {one["side"]: one for one in results("own_loop")}
    assert tuple(found) == own_loop.SIDES
    assert found["alone"]["first_loss"] == pytest.approx(found["shared"]["first_loss"], rel=1e-5)
    assert found["shared"]["first_loss"] == found["processes"]["first_loss"]
    assert all(0 < one["first_loss"] < 6 and one["speed_relative_to_torch"]["median"] > 0 for one in found.values())


def test_learning(results, tmp_path):
    """A second call keeps the results of the first."""
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    options = ["--data", str(text), "--steps", "3", "--seeds", "1", "--eval-iters", "1"]
    learning.main(["--sides", "tiny", *options])
    learning.main(["--sides", "tiny muon", *options])
    found = {one["side"]: one for one in results("learning")}
    assert found.keys() == {"tiny", "tiny muon"}
    runs = [found[side]["runs"]["1"] for side in ("tiny", "tiny muon")]
    assert all(run["val_loss"] < math.log(28) and run["cpu_seconds"] > 0 for run in runs)
    assert runs[0]["val_loss"] != runs[1]["val_loss"]


def test_a_new_run_of_learning_replaces_the_one_with_its_seed():
    known = [{"side": "tiny", "steps": 9, "runs": {"2": {"val_loss": 3.0}, "1": {"val_loss": 2.0}}}]
    new = [{"side": "tiny", "steps": 9, "runs": {"1": {"val_loss": 1.0}}}, {"side": "modern", "steps": 9, "runs": {"1": {"val_loss": 0.0}}}]
    merged = learning.merge(known, new)
    assert [(one["side"], one["runs"]) for one in merged] == [
        ("modern", {"1": {"val_loss": 0.0}}),
        ("tiny", {"1": {"val_loss": 1.0}, "2": {"val_loss": 3.0}}),
    ]


def _updated(document):
    return report.updated(document, report.report(report.recorded()))


def test_the_documents_show_what_is_recorded():
    assert report.is_recorded(report.PERFORMANCE.read_text(encoding="utf-8")), "run `python -m benchmarks report`"
    for page, sections in ((report.SCALING, report.SCALING_SECTIONS), (report.GENERATION, report.GENERATION_SECTIONS)):
        shown = report.cut(page.read_text(encoding="utf-8"))[1]
        assert shown == report.report(report.recorded(sections)), f"{page.name} says something else: run `python -m benchmarks report`"
    for path, words in report.READMES.items():
        shown = report.cut(path.read_text(encoding="utf-8"))[1]
        assert shown == report.summary(words), f"{path.name} says something else: run `python -m benchmarks report`"


def test_the_table_of_the_readmes_follows_the_results(results):
    assert report.summary(report.ENGLISH) == "", "nothing is measured"
    spread = {"median": 1.25, "min": 1.0, "max": 1.5, "count": 9}
    side = {"tokens_per_second": 20000.0, "speed_relative_to_torch": spread}
    sides = {"ours": side, "torch": side | {"tokens_per_second": 16000.0}}
    common.save("train_step", [{"configuration": name, "sides": sides} for name in ("A", "B16")])
    sides = sides | {"torch compiled": side | {"tokens_per_second": 18000.0}}
    common.save("train_step_gpu", [{"configuration": "gpt2", "precision": "float32", "sides": sides}], gpu="NVIDIA Something, driver 1")
    run = {"seconds": spread, "speed_relative_to_torch": spread}
    common.save("nanogpt_cpu", {"steps": 2000, "sides": {"ours": run, "torch": run | {"seconds": spread | {"median": 2.5}}}})
    lines = {}
    for words in (report.ENGLISH, report.CHINESE):
        rows = report.summary(words).splitlines()
        assert "NVIDIA Something" in rows[-1] and "driver" not in rows[-1]
        lines[words] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:-2]]
    assert lines[report.ENGLISH] == [
        ["training step, 6 layers, 384 wide, block 256, CPU", "20,000 tokens/s", "16,000 tokens/s", "**1.25**"],
        ["nanoGPT's training run for a CPU, 2,000 steps", "1.2 s", "2.5 s", "**1.25**"],
        ["training step of GPT-2, float32, GPU", "20,000 tokens/s", "16,000 tokens/s", "**1.25** (compiled: 1.11)"],
    ]
    numbers = {words: [re.findall(r"\d+(?:[,.]\d+)*", " ".join(row)) for row in rows] for words, rows in lines.items()}
    assert numbers[report.ENGLISH] == numbers[report.CHINESE]


def test_a_report_may_lack_a_new_result_but_not_contain_a_wrong_figure(results, monkeypatch):
    monkeypatch.setattr(
        common, "machine", lambda: dict.fromkeys(("date", "cores", "processor", "system", "python", "numpy"), "x") | {"blas": []}
    )
    row = {"what": "xz -dc alone", "seconds": 2.0}
    common.save("prepare", {"characters": 10**6, "documents": {"train": 3}, "rows": [row]})
    readme = _updated(f"{report.BEGIN}\n{report.END}")
    assert report.is_recorded(readme)
    for name in ("matmul", "matmul_gpu"):  # shown before the other, and after it
        common.save(name, {"products": [{"n": 64, "setting": "float32", "gflops": {"median": 5.0}}]}, gpu="another machine")
    assert report.is_recorded(readme)
    assert report.is_recorded(_updated(readme)) and _updated(readme) != readme
    for old, new in (("| 2 ", "| 3 "), ("1 million", "2 million"), ("Measured on x", "Measured on y")):
        assert readme.count(old) == 1
        assert not report.is_recorded(readme.replace(old, new)), "it says what nobody has measured"
    common.save("prepare", {"characters": 10**6, "documents": {"train": 3}, "rows": [row | {"seconds": 4.0}]})
    assert not report.is_recorded(readme), "it has been measured again"


def test_report(results):
    spread = {"median": 1.25, "min": 1.0, "max": 1.5, "count": 9}
    side = {
        "seconds_per_step": spread,
        "tokens_per_second": 20000.0,
        "share_of_sgemm_peak": 0.5,
        "peak_memory_mb": 1234.0,
        "speed_relative_to_torch": spread,
    }
    step = {"configuration": "A", "description": "small", "sgemm_peak_gflops": 99.0, "torch_sgemm_peak_gflops": 98.0, "sides": {}}
    step["sides"] = dict.fromkeys(("ours", "torch", "book"), side) | {"torch untuned": side | {"tokens_per_second": 10000.0}}
    op = {"op": "gelu", "configuration": "A", "speed_relative_to_book": spread, "speed_relative_to_torch": spread}
    run = {"seconds": spread, "val_loss": spread, "speed_relative_to_torch": spread}
    readme = f"before\n{report.BEGIN}\nwhat was here\n{report.END}\nafter\n"
    assert _updated(readme) == readme, "without results nothing is written"

    common.save("train_step", [step])
    common.save("ops", [op])
    common.save("nanogpt_cpu", {"steps": 2000, "text": "text.txt", "sides": {"ours": run, "torch": run}})
    common.save("matmul", {"products": [{"n": n, "setting": "float32", "gflops": spread | {"median": float(n)}} for n in (64, 256, 128)]})
    new = _updated(readme)
    assert new.startswith(f"before\n{report.BEGIN}\nMeasured on ")
    assert new.endswith(f"\n{report.END}\nafter\n")
    assert "what was here" not in new
    assert new.count("Measured on") == 1, "one machine is named once"
    assert "| A: small" in new
    assert "**1.25** (1.00 – 1.50)" in new
    assert "| to torch untuned |" in new
    assert "| 2.00 " in new
    assert "scaled_dot_product_attention, fused AdamW" in new
    assert "| gelu | 1.25 / 1.25 |" in new
    assert "float32: 256 (n = 256)" in new
    assert _updated(new) == new
    with pytest.raises(ValueError, match="once each and in this order"):
        _updated("no comments")


def test_results_of_a_gpu_appear_in_the_report(results):
    spread = {"median": 1.25, "min": 1.0, "max": 1.5, "count": 5}
    ops_measured = [
        {"op": op, "configuration": "gpt2", "dtype": dtype, "speed_relative_to_torch": spread}
        for op, dtype in (("gelu", "float32"), ("gelu", "bfloat16"), ("add", "bfloat16"))
    ]
    side = {
        "seconds_per_step": spread,
        "tokens_per_second": 200000.0,
        "share_of_product_peak": 0.5,
        "gpu_memory_mb": 1234.0,
        "loss": 3.0,
        "speed_relative_to_torch": spread,
    }
    compiled = side | {"tokens_per_second": 160000.0}
    step = {"configuration": "gpt2", "description": "large", "precision": "bfloat16"}
    step["sides"] = {"ours": side, "torch": side, "torch compiled": compiled}
    products = [{"n": n, "setting": "GPU tf32", "gflops": spread | {"median": float(n)}} for n in (4096, 8192)]
    crossover = [{"setting": "GPU tf32", "data on the GPU": 256, "data brought and fetched": 1024}]
    for name, content in (
        ("ops_gpu", ops_measured),
        ("train_step_gpu", [step]),
        ("matmul_gpu", {"products": products, "crossover": crossover}),
    ):
        common.save(name, content, gpu="NVIDIA Something")
    new = _updated(f"{report.BEGIN}\n{report.END}\n")
    assert new.count("Measured on") == 1 and "GPU: NVIDIA Something." in new
    for line in ("| gelu | 1.25          | 1.25           |", "| add  |               | 1.25           |"):
        assert line in new
    assert "GPU tf32: 8,192 (n = 8192)" in new and "| GPU tf32 | 256             | 1024 " in new
    cells = [cell.strip() for cell in next(line for line in new.splitlines() if line.startswith("| gpt2: large")).strip("|").split("|")]
    assert cells[1:] == ["bfloat16", "200,000", "**1.25** (1.00 – 1.50)", "1.25", "", "50%", "1,234 (1,234)"]


def test_our_side_on_a_gpu_trains_in_the_precision_that_is_measured(any_cupy):
    smoke = CONFIGURATIONS["smoke"]
    first = {}
    for precision in PRECISIONS:
        steps, memory = gpu_side.our_steps(smoke, precision, graph="auto")
        losses = [steps(1) for _ in range(WARM_UP + 2)]
        assert all(abs(loss - math.log(smoke.model.vocab_size)) < 0.5 for loss in losses)
        assert memory() > 4 * sum(p.array.nbytes for p in GPT(smoke.model).parameters())  # with gradients and AdamW's two means
        first[precision] = losses[0]
    assert len(set(first.values())) == len(PRECISIONS)  # each rounds in its own way


def test_a_side_that_prints_among_its_answers_is_no_longer_understood(monkeypatch, tmp_path):
    """The fault that the process is there for, planted: `serve` leaves standard output as it is."""
    text = (Path(__file__).resolve().parent.parent / "benchmarks" / "turns.py").read_text(encoding="utf-8")
    assert text.count("answers, sys.stdout = sys.stdout, sys.stderr") == 1
    (tmp_path / "careless.py").write_text(text.replace("answers, sys.stdout = sys.stdout, sys.stderr", "answers = sys.stdout"))
    (tmp_path / "careless_side.py").write_text(
        "import careless\nfrom benchmarks import gpu_side\ngpu_side.serve = careless.serve\ngpu_side.main('ours', 'smoke', 'bfloat16')\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parent.parent)]))
    with sides([Side("ours", "tests.standin", "careless_side")]) as (side,), pytest.raises(json.JSONDecodeError):
        side.ask(WARM_UP + 1)


# --- the stages of `make gpu` -----------------------------------------------------------------------------


def test_each_gpu_stage_takes_at_most_ten_minutes_and_names_existing_files():
    root = Path(__file__).resolve().parent.parent
    for commands in gpu_stages.STAGES.values():
        assert sum(limit for _, limit in commands.values()) <= 600
        for command, _ in commands.values():
            assert all((root / word).exists() for word in command.split() if word.startswith("tests/"))
            module, name = command.split()[:2]
            assert module == "pytest" or (module == "benchmarks" and name in BENCHMARKS)


def test_a_stage_that_fails_or_hangs_does_not_stop_the_next(results, tmp_path, monkeypatch, capsys):
    stages = {
        1: {"fails": ("json.tool no_such_file", 60.0), "hangs": ("timeit -n 1 -r 1 __import__('time').sleep(60)", 0.5)},
        2: {"works": ("platform", 60.0)},
    }
    monkeypatch.setattr(gpu_stages, "STAGES", stages)
    with pytest.raises(SystemExit, match="failed: fails, hangs; see their logs"):
        gpu_stages.main([])
    assert (tmp_path / "results" / "works.log").read_text()
    out = capsys.readouterr().out
    assert "hangs: stopped after 0 seconds" in out and "works: exit code 0" in out
    gpu_stages.main(["2"])
    with pytest.raises(SystemExit):
        gpu_stages.main(["7"])


LESS = {  # of what the stages do: without a GPU each kernel is computed thread by thread
    "train_step_bfloat16": {" gpt2 course smollm2": " gpt2", " --rounds 5": " --rounds 1 --steps 1", " --compile": ""},
    "ops": {" --backend": " rotary_embedding --rounds 1 --configurations gpt2 --backend"},
    "generate_gpu": {" generate_gpu": " generate_gpu --rounds 2 --tokens 3"},
}


def test_commands_of_the_stages_come_to_their_end_on_a_machine_with_a_gpu(results, tmp_path, monkeypatch):
    """In processes, on the machine that `tests.standin.gpu_machine` pretends: ours and torch's sides, captured as a graph and not."""
    for name, value in {**gpu_machine.environment(tmp_path), "TENSORLITE_RESULTS": str(tmp_path / "results")}.items():
        monkeypatch.setenv(name, value)
    known = {name: command for commands in gpu_stages.STAGES.values() for name, (command, _) in commands.items()}
    stage = {}
    for name, changes in LESS.items():
        for old, new in changes.items():
            assert known[name].count(old) == 1
            known[name] = known[name].replace(old, new)
        stage[name] = known[name], 600.0
    monkeypatch.setattr(gpu_stages, "STAGES", {1: stage})
    gpu_stages.main([])
    (step,) = results("train_step_gpu")
    assert set(step["sides"]) == {"ours", "ours, no graph", "torch"}
    for side in step["sides"].values():
        assert_spread(side["speed_relative_to_torch"], 1)
        assert side["loss"] == pytest.approx(math.log(gpu_machine.PADDED), abs=0.5)
    written = results("generate_gpu")
    assert [(result["model"], result["texts"]) for result in written] == [("gpt2", 1), ("gpt2", 8), ("smollm2", 1), ("smollm2", 8)]
    for result in written:
        assert_spread(result["sides"]["ours"]["speed_relative_to_transformers"], 2)
        assert_spread(result["sides"]["transformers"]["tokens_per_second"], 2)
    assert "one text, and eight" in report.written_on_a_gpu(written)
    assert [(result["op"], result["dtype"]) for result in results("ops_gpu")] == [
        ("rotary_embedding", "float32"), ("rotary_embedding", "bfloat16"),
    ]  # fmt: skip


def test_ops_keeps_what_is_measured_before_and_after_a_failure(results, monkeypatch, capsys):
    right = ops.measure

    def measure(name, *arguments, **options):
        if name == "gelu":
            raise ValueError("planted")
        return right(name, *arguments, **options)

    monkeypatch.setattr(ops, "measure", measure)
    monkeypatch.setattr(ops, "keep_freed_memory", lambda: True)
    with pytest.raises(SystemExit, match="not measured: gelu; see above"):
        ops.main(["layernorm", "gelu", "--configurations", "smoke", "--rounds", "1"])
    assert [result["op"] for result in results("ops")] == ["layernorm", "gelu by tanh"]
    assert "gelu in smoke, float32: planted" in capsys.readouterr().err


def test_a_side_that_prints_still_answers_and_a_side_that_hangs_is_ended(tmp_path, monkeypatch):
    (tmp_path / "talkative.py").write_text(
        "import sys, time\nfrom benchmarks.turns import serve\n"
        "def work(count):\n    print('compiling, please wait')\n    time.sleep(60 * (count == 7))\n    return count\nserve(work)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parent.parent)]))
    with sides([Side("talkative", "talkative")]) as (side,):
        assert side.ask(3)["result"] == 3
        with pytest.raises(RuntimeError, match="the side 'talkative' did not answer within 0 seconds"):
            side.ask(7, limit=0.2)


def test_one_gpu_does_not_scale(standin, capsys):
    scaling_gpu.main([])
    assert capsys.readouterr().out == "This machine has one GPU, so there is nothing to measure.\n"
