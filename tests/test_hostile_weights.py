"""Untrusted weights and metadata: any fault gives one sentence, before a large array or model is created."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

import gpt.model
import tensorlite as tl
from data.errors import DataError
from gpt.checkpoints.adapter import CONFIG as ADAPTER
from gpt.checkpoints.adapter import save_adapter
from gpt.checkpoints.loading import load_model
from gpt.checkpoints.model_folder import METADATA, WEIGHTS, load_model_folder, save_model
from gpt.checkpoints.training_state import OPTIMIZER, TRAINING, TrainingState
from gpt.checkpoints.weights import CHECKSUM, CheckpointError, WeightsError, WeightsFile, weight_shapes
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import UserError
from gpt.finetuning.classifier import HEAD, Classifier, load_classifier
from gpt.finetuning.lora import LoraError, add_lora
from gpt.finetuning.run import read_pretraining_record
from gpt.generation.chat_template import TEMPLATE, ChatTemplate, load_template
from gpt.model import GPT, build_model
from gpt.training.resume import checkpoint_files, restore
from gpt.training.trainer import Trainer
from tests.test_checkpoint import CONFIGS, TOKEN, make

SMALL = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=8, n_layer=1, n_head=2, n_embd=8, bias=True)


def written(path: Path, header: dict[str, Any], numbers: bytes = b"", **ours: Any) -> Path:
    """A safetensors file with this header, and our metadata in it."""
    if ours:
        header = {"__metadata__": {METADATA: json.dumps(ours)}, **header}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + numbers)
    return path


def without_a_seal(folder: Path, **changes: Any) -> None:
    """Change something of what a file of weights says about its model."""
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        ours = json.loads(file.metadata()[METADATA])
    ours = {name: value for name, value in {**ours, **changes}.items() if name != CHECKSUM}
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(folder / WEIGHTS), {METADATA: json.dumps(ours)}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "ours", make(SMALL), TOKEN)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    return make(SMALL).save_pretrained(tmp_path / "theirs", TOKEN)


@pytest.fixture
def no_model(monkeypatch):
    """Building a model is an error."""

    def build(config):
        raise AssertionError(f"a model of {config} was built before its weights were looked at")

    monkeypatch.setattr(gpt.model, "build_model", build)


# --- before a model is made -------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*CONFIGS.values(), SMALL, GPTConfig(head_bias=True), GPTConfig(tied_head=False, bias=True)])
def test_shapes_are_known_without_a_model(config):
    own = {name: tuple(tensor.shape) for name, tensor in build_model(config).state_dict().items()}
    if config.tied_head and config.model == "gpt":
        del own["lm_head.weight"]
    assert list(weight_shapes(config)) == list(own.items())


HUGE = {
    "layers": {"n_layer": 10**9},
    "width": {"n_embd": 2**40},
    "vocabulary": {"vocab_size": 10**12},
    "context": {"block_size": 10**12},
    "sinusoids": {"block_size": 10**9, "positions": "sinusoidal"},
    "heads": {"n_head": 10**15 - 1, "n_embd": 10**15},
    "bigram": {"model": "bigram", "vocab_size": 10**6},
}


@pytest.mark.parametrize("changes", HUGE.values(), ids=HUGE)
def test_a_small_file_cannot_make_a_huge_model(changes, tmp_path, no_model):
    config = {**dataclasses.asdict(SMALL), **changes}
    entry = {"wte.weight": {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}}
    file = written(tmp_path / WEIGHTS, entry, bytes(4), config=config, tokenizer=TOKEN.to_dict())
    with pytest.raises(CheckpointError, match=r"do not fit its config|n_embd must be divisible by n_head"):
        load_model_folder(file)


@pytest.mark.parametrize("changes", [{"n_layer": 10**9}, {"n_embd": 2**40, "n_inner": None}, {"n_positions": 10**12, "n_ctx": None}])
def test_a_small_transformers_folder_cannot_make_a_huge_model(changes, theirs, no_model):
    record = json.loads((theirs / "config.json").read_text())
    (theirs / "config.json").write_text(json.dumps({**record, **changes}))
    with pytest.raises(CheckpointError, match="do not fit its config"):
        GPT.from_pretrained(theirs)


@pytest.mark.parametrize("changes", [*HUGE.values()], ids=HUGE)
def test_a_small_checkpoint_of_a_run_cannot_make_a_huge_model(changes):
    run = trainer()
    files = dict(checkpoint_files(run, run.optimizer.state_dict(), TOKEN, "gpt.train", {}))
    record = json.loads(files[TRAINING])
    record["model"].update(changes)
    with pytest.raises(CheckpointError, match=r"do not fit its config|n_embd must be divisible by n_head"):
        TrainingState.from_files({**files, TRAINING: json.dumps(record).encode()}, "it")


# --- types of numbers -------------------------------------------------------------------------------------


def in_type(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Rewrite the weights in ``folder`` in another type; returns them, as torch widens them again."""
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        metadata = file.metadata()
    if METADATA in metadata:
        metadata = {METADATA: json.dumps({name: value for name, value in json.loads(metadata[METADATA]).items() if name != CHECKSUM})}
    narrow = {name: tensor.to(dtype) for name, tensor in safetensors.torch.load_file(folder / WEIGHTS).items()}
    safetensors.torch.save_file(narrow, folder / WEIGHTS, metadata)
    return {name: tensor.float() for name, tensor in narrow.items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precisions_are_widened_as_torch_does(dtype, saved, theirs):
    expected = in_type(saved, dtype)
    for name, tensor in load_model_folder(saved)[0].state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), expected[name if name in expected else "wte.weight"].numpy())
        assert tensor.dtype == np.float32
    expected = {name.removeprefix("transformer."): tensor for name, tensor in in_type(theirs, dtype).items()}
    for name, tensor in GPT.from_pretrained(theirs).state_dict().items():
        wanted = expected[name if name in expected else "wte.weight"].numpy()
        np.testing.assert_array_equal(tensor.numpy(), wanted.T if "weight" in name and name.startswith("h.") else wanted)


def test_every_bfloat16_is_read_as_in_torch(tmp_path):
    halves = np.arange(2**16, dtype=np.uint16).view(np.int16)
    safetensors.torch.save_file({"a": torch.from_numpy(halves).view(torch.bfloat16)}, tmp_path / "a")
    expected = torch.from_numpy(halves).view(torch.bfloat16).float().numpy()
    for source in (tmp_path / "a", (tmp_path / "a").read_bytes()):
        np.testing.assert_array_equal(WeightsFile(source).read("a"), expected)


def test_a_model_in_bfloat16_can_be_loaded(tmp_path):
    pytest.importorskip("ml_dtypes")
    model = make(SMALL).to(dtype=tl.bfloat16)
    save_model(tmp_path, model, TOKEN)
    for name, tensor in load_model_folder(tmp_path)[0].state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), model.state_dict()[name].numpy().astype(np.float32))


@pytest.mark.parametrize("kind, size", [("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("F4", 0.5), ("C64", 8), ("I16", 2), ("XX", 1)])
def test_other_types_are_refused_by_name(kind, size, saved, theirs):
    for folder, name, load in ((saved, "ln_f.weight", load_model_folder), (theirs, "transformer.ln_f.weight", GPT.from_pretrained)):
        content = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(content[:8], "little")
        header, numbers, at = json.loads(content[8 : 8 + length]), b"", 0
        for weight, entry in header.items():
            if weight == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            piece = bytes(int(8 * size)) if weight == name else content[8 + length + begin : 8 + length + end]
            if weight == name:
                entry["dtype"] = kind
            entry["data_offsets"] = [at, at + len(piece)]
            numbers, at = numbers + piece, at + len(piece)
        written(folder / WEIGHTS, header, numbers)
        with pytest.raises(CheckpointError) as raised:
            load(folder)
        assert kind in str(raised.value)
        assert "\n" not in str(raised.value)


def test_more_dimensions_than_numpy_allows_are_refused(tmp_path, saved):
    entry = {"a": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}
    with pytest.raises(WeightsError, match="a has 65 dimensions, and 32 are possible"):
        WeightsFile(written(tmp_path / "a", entry, bytes(4))).read("a")
    file = written(tmp_path / "b", entry, bytes(4), config=dataclasses.asdict(SMALL), tokenizer=TOKEN.to_dict())
    with pytest.raises(CheckpointError, match="a too many"):
        load_model_folder(file)


def test_only_regular_files_are_opened(saved, theirs):
    for folder, load in ((saved, load_model_folder), (theirs, GPT.from_pretrained)):
        (folder / WEIGHTS).unlink()
        if hasattr(os, "mkfifo"):
            os.mkfifo(folder / WEIGHTS)  # nobody will ever write to it
        else:
            (folder / WEIGHTS).mkdir()
        with pytest.raises(CheckpointError, match="is not a file, but a folder, a pipe or a device"):
            load(folder)


def test_the_causal_mask_of_old_transformers_files_is_not_read(theirs):
    """Older files of transformers contain it; its shape is not checked."""
    weights = safetensors.numpy.load_file(theirs / WEIGHTS)
    content = safetensors.numpy.save({**weights, "h.0.attn.bias": np.ones(4, np.uint8)})
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["h.0.attn.bias"]["shape"] = [4, *[1] * 70]
    written(theirs / WEIGHTS, header, content[8 + length :])
    GPT.from_pretrained(theirs)


def test_null_in_a_config_means_the_default(theirs):
    record = json.loads((theirs / "config.json").read_text())
    nulls = (
        "resid_pdrop",
        "embd_pdrop",
        "attn_pdrop",
        "layer_norm_epsilon",
        "activation_function",
        "scale_attn_weights",
        "tie_word_embeddings",
    )
    (theirs / "config.json").write_text(json.dumps({**record, **dict.fromkeys(nulls)}))
    assert GPT.from_pretrained(theirs).config == dataclasses.replace(SMALL, dropout=0.1, activation="gelu_tanh")


# --- everything else that is said about weights ------------------------------------------------------------

VALUES = [
    None, True, False, -1, 0, 2, 10**9, 10**30, 10**400, 0.5, -0.5, float("inf"), float("nan"), 1e308,
    "", "x", "../x", "a\0b", "\ud800", [], {}, [1], [[]], {"a": 1}, ["x"], ...,
]  # fmt: skip


def places(record: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where there is something in a JSON document; of long lists, in the first few places."""
    yield path
    inside = record.items() if isinstance(record, dict) else enumerate(record[:3]) if isinstance(record, list) else ()
    for key, value in inside:
        yield from places(value, (*path, key))


def changed(record: Any, path: tuple, value: Any) -> Any:
    """``record`` with another value in one place, or without that place."""
    if not path:
        return value
    record = copy.deepcopy(record)
    at = record
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return record


def try_everything(record: Any, use: Callable[[Any], object], every: int = 1) -> None:
    """Each value in each place, or every so many: it works, or it is one sentence."""
    for path, value in itertools.islice(itertools.product(places(record), VALUES), 0, None, every):
        if not path and value is ...:
            continue
        said = ""
        try:
            use(changed(record, path, value))
        except (UserError, DataError) as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{value!r} at {path} is no sentence") from error
        assert "\n" not in said, (path, value)


def test_any_metadata_is_read_or_refused(saved):
    with safetensors.safe_open(saved / WEIGHTS, framework="numpy") as file:
        ours = json.loads(file.metadata()[METADATA])
    weights = safetensors.numpy.load_file(saved / WEIGHTS)
    del ours[CHECKSUM]

    def use(record):
        (saved / WEIGHTS).write_bytes(safetensors.numpy.save(weights, {METADATA: json.dumps(record)}))
        load_model_folder(saved)

    try_everything(ours, use)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_any_transformers_config_is_read_or_refused(theirs, name):
    (theirs / WEIGHTS).rename(theirs / "part.safetensors")
    names = list(safetensors.numpy.load_file(theirs / "part.safetensors"))
    (theirs / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "part.safetensors")}))
    record = json.loads((theirs / name).read_text())

    def use(record):
        (theirs / name).write_text(json.dumps(record))
        load_model(theirs)

    use(record)
    try_everything(record, use)


def adapter(folder: Path, base: Path) -> Path:
    model = load_model_folder(base)[0]
    add_lora(model, rank=2)
    save_adapter(folder, model, finetuned_from=str(base))
    return folder


def test_any_adapter_is_read_or_refused(saved, tmp_path):
    folder = adapter(tmp_path / "adapter", saved)
    record = json.loads((folder / ADAPTER).read_text())
    del record[CHECKSUM]

    def use(record):
        (folder / ADAPTER).write_text(json.dumps(record))
        load_model(folder)

    use(record)
    try_everything(record, use)
    (folder / ADAPTER).write_text("[" * 100_000)
    with pytest.raises(LoraError, match="cannot be read"):
        load_model(folder)


def test_adapters_that_refer_to_each_other_are_refused(saved, tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        adapter(tmp_path / name, saved)
        record = json.loads((tmp_path / name / ADAPTER).read_text())
        (tmp_path / name / ADAPTER).write_text(json.dumps({**record, "finetuned_from": str(tmp_path / other)}))
    with pytest.raises(CheckpointError, match="belongs, by way of others, to itself"):
        load_model(tmp_path / "a")


def test_any_classifier_is_read_or_refused(saved):
    Classifier(load_model_folder(saved)[0], ["a", "b"]).save(saved)
    with safetensors.safe_open(saved / HEAD, framework="numpy") as file:
        record = json.loads(file.metadata()["classifier"])
    weights = safetensors.numpy.load_file(saved / HEAD)
    del record[CHECKSUM]

    def use(record):
        (saved / HEAD).write_bytes(safetensors.numpy.save(weights, {"classifier": json.dumps(record)}))
        load_classifier(saved)

    use(record)
    try_everything(record, use)


def test_any_template_is_read_or_refused(tmp_path):
    def use(record):
        (tmp_path / TEMPLATE).write_text(json.dumps(record))
        load_template(tmp_path)

    try_everything(dataclasses.asdict(ChatTemplate()), use)
    (tmp_path / TEMPLATE).write_text("[" * 100_000)
    with pytest.raises(UserError, match="is no template"):
        load_template(tmp_path)


def test_any_record_of_training_is_read_or_refused(tmp_path):
    """Nothing that finetuning would stumble over comes out of it."""

    def use(record):
        (tmp_path / "config.json").write_text(json.dumps(record))
        known = read_pretraining_record(str(tmp_path))
        assert known["data"] is None or isinstance(known["data"], str)
        assert 0 < known["val_fraction"] < 1
        assert 0 < known["learning_rate"] < float("inf")

    known = {name: value for name, value in dataclasses.asdict(TrainConfig()).items() if name in ("data", "val_fraction", "learning_rate")}
    try_everything({"training": known}, use)
    try_everything({"training": known, "pretraining": known}, use)


def trainer(config: GPTConfig = SMALL) -> Trainer:
    tokens = TOKEN.encode("the quick brown fox\n" * 50)
    return Trainer(build_model(config), TrainConfig(batch_size=2, steps=4, workers=1), tokens[:800], tokens[800:])


def test_any_checkpoint_of_a_run_is_read_or_refused():
    run = trainer()
    run.update()
    files = dict(checkpoint_files(run, run.optimizer.state_dict(), TOKEN, "gpt.train", {}))

    def use(record):
        state = TrainingState.from_files({**files, TRAINING: json.dumps(record).encode()}, "it")
        restore(trainer(state.model_config), TOKEN, state)

    use(json.loads(files[TRAINING]))
    try_everything(json.loads(files[TRAINING]), use, every=5)


@pytest.mark.parametrize("kind, size", [("F8_E4M3", 4), ("BF16", 8)])
def test_optimizer_state_of_another_type_is_refused(kind, size, tmp_path):
    run = trainer()
    run.update()
    files = dict(checkpoint_files(run, run.optimizer.state_dict(), TOKEN, "gpt.train", {}))
    file = written(tmp_path / "a", {"0.exp_avg": {"dtype": kind, "shape": [4], "data_offsets": [0, size]}}, bytes(size))

    def load():
        restore(trainer(), TOKEN, TrainingState.from_files({**files, OPTIMIZER: file.read_bytes()}, "it"))

    with pytest.raises(CheckpointError):
        load()
