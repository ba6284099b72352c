"""Saving and loading: a loaded model has the same bits, nothing is lost, and damage is reported in one sentence."""

import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

import tensorlite as tl
from data.tokenizer import CharTokenizer, load_tokenizer
from gpt.checkpoints.model_folder import CONFIG, METADATA, TOKENIZER, WEIGHTS, load_model_folder, save_model
from gpt.checkpoints.weights import CHECKSUM, CheckpointError
from gpt.config import GPTConfig, TrainConfig
from gpt.errors import UserError
from gpt.model import LanguageModel, build_model
from tensorlite import random

TOKEN = CharTokenizer.train("the quick brown fox\n")
SMALL = GPTConfig(vocab_size=TOKEN.vocab_size, block_size=8, n_layer=2, n_head=2, n_embd=8)
CONFIGS = {
    "tied": SMALL,
    "course": dataclasses.replace(SMALL, tied_head=False, bias=True, head_bias=True, activation="relu", dropout=0.2),
    "sinusoidal": dataclasses.replace(SMALL, positions="sinusoidal", tied_head=False),
    "tied with a bias": dataclasses.replace(SMALL, bias=True, head_bias=True),
    "bigram": dataclasses.replace(SMALL, model="bigram"),
    "padded vocabulary": dataclasses.replace(SMALL, vocab_size=64),
}


def make(config: GPTConfig = SMALL, seed: int = 0) -> LanguageModel:
    """A model in which no weight is 0 or 1, as most are at first."""
    with random.use_generator(random.make_generator(seed)) as rng:
        model = build_model(config)
        for parameter in model.parameters():
            parameter.array[...] = 0.5 * rng.standard_normal(parameter.shape)
    return model


def logits(model: LanguageModel) -> np.ndarray:
    return model(tl.tensor([[1, 2, 3, 4, 5]]))[0].detach().numpy()


def complaint(path: str | Path) -> str:
    with pytest.raises(CheckpointError) as raised:
        load_model_folder(path)
    message = str(raised.value)
    assert isinstance(raised.value, UserError)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(tmp_path / "runs" / "small", make(), TOKEN)


def rewrite(folder: Path, tensors: dict | None = None, **ours: object) -> None:
    """Change something in the file of weights, which stays a valid safetensors file; None takes it away. It has no seal afterwards."""
    with safetensors.safe_open(folder / WEIGHTS, framework="numpy") as file:
        metadata = json.loads(file.metadata()[METADATA])
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata, weights = (
        {name: value for name, value in {**old, **new}.items() if value is not None}
        for old, new in ((metadata, {CHECKSUM: None, **ours}), (weights, tensors or {}))
    )
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save(weights, {METADATA: json.dumps(metadata)}))


# --- there and back -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_loaded_model_has_the_same_bits(tmp_path: Path, config: GPTConfig) -> None:
    model = make(config).eval()
    save_model(tmp_path, model, TOKEN)
    for path in (tmp_path, str(tmp_path), tmp_path / WEIGHTS):
        again, tokenizer, config_again = load_model_folder(path)
        assert config_again == config == again.config
        assert tokenizer == TOKEN
        assert not any(module.training for module in again.modules())
        np.testing.assert_array_equal(logits(again), logits(model))
        for (name, a), (name_again, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
            assert name == name_again
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_one_file_is_enough(saved: Path, tmp_path: Path) -> None:
    (saved / WEIGHTS).rename(tmp_path / "alone")
    model, tokenizer, _ = load_model_folder(tmp_path / "alone")
    np.testing.assert_array_equal(logits(model), logits(make()))
    assert tokenizer == TOKEN


def test_a_tied_weight_is_stored_once_and_still_tied(saved: Path) -> None:
    names = safetensors.numpy.load_file(saved / WEIGHTS).keys()
    assert "wte.weight" in names
    assert "lm_head.weight" not in names
    model, _, _ = load_model_folder(saved)
    assert model.lm_head.weight is model.wte.weight


def test_a_file_with_the_tied_weight_twice_can_be_loaded(saved: Path) -> None:
    rewrite(saved, {"lm_head.weight": safetensors.numpy.load_file(saved / WEIGHTS)["wte.weight"]})
    np.testing.assert_array_equal(logits(load_model_folder(saved)[0]), logits(make()))


def test_weights_of_any_memory_layout(tmp_path: Path) -> None:
    model = make(CONFIGS["course"])
    before = logits(model.eval())
    for parameter in model.parameters():
        parameter.array = np.asfortranarray(parameter.array)
    assert not model.lm_head.weight.array.flags.c_contiguous
    save_model(tmp_path, model, TOKEN)
    np.testing.assert_allclose(logits(load_model_folder(tmp_path)[0]), before, rtol=1e-5)
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / WEIGHTS)["lm_head.weight"], model.lm_head.weight.array)


def test_double_precision_is_kept(tmp_path: Path) -> None:
    model = make(CONFIGS["course"]).to(dtype=tl.float64).eval()
    model.wte.weight.array[0, 0] = 1 + 2**-40
    save_model(tmp_path, model, TOKEN)
    again, _, _ = load_model_folder(tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {np.dtype("float64")}
    np.testing.assert_array_equal(logits(again), logits(model))


def test_saving_over_an_older_checkpoint(saved: Path) -> None:
    save_model(saved, make(seed=1), TOKEN)
    np.testing.assert_array_equal(logits(load_model_folder(saved)[0]), logits(make(seed=1)))
    assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS, TOKENIZER]


def test_the_same_model_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    for _ in range(5):
        save_model(tmp_path / "again", make(), TOKEN)
        for file in saved.iterdir():
            assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_loading_draws_no_numbers_from_the_callers_generator(saved: Path) -> None:
    tl.manual_seed(7)
    expected = random.default_generator().random(3)
    tl.manual_seed(7)
    load_model_folder(saved)
    np.testing.assert_array_equal(random.default_generator().random(3), expected)


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model = make().train()
    before = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    save_model(tmp_path, model, TOKEN)
    assert model.training
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), before[name])


def test_the_json_files_hold_settings_step_loss_versions_and_tokenizer(tmp_path: Path) -> None:
    training = TrainConfig(steps=7)
    save_model(tmp_path, make(), TOKEN, training, step=7, val_loss=1.5)
    record = json.loads((tmp_path / CONFIG).read_text())
    assert GPTConfig(**record["model"]) == SMALL
    assert TrainConfig(**record["training"]) == training
    assert (record["step"], record["val_loss"]) == (7, 1.5)
    assert record["tokenizer_hash"] == TOKEN.hash
    assert record["versions"].keys() == {"tensorlite", "numpy", "python", "platform"}
    assert load_tokenizer(tmp_path / TOKENIZER) == TOKEN


# --- a disk that does not take it ---------------------------------------------------------------------


@pytest.mark.parametrize("room_for", [0, 1, 2])
def test_a_full_disk_loses_nothing(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int) -> None:
    save_model(tmp_path / "other", make(seed=1), TOKEN, step=1)
    old, new = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (saved, tmp_path / "other"))
    calls = iter(range(100))
    real = os.fsync

    def full(descriptor: int) -> None:
        if next(calls) == 2 * room_for:  # each file is synced, then its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=rf"{saved.name}: no space left on device; free some space or choose another folder\."):
        save_model(saved, make(seed=1), TOKEN, step=1)
    written = [WEIGHTS, CONFIG, TOKENIZER][:room_for]  # the weights come first
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == {**old, **{name: new[name] for name in written}}
    np.testing.assert_array_equal(logits(load_model_folder(saved)[0]), logits(make(seed=1 if written else 0)))


def test_ctrl_c_while_saving_loses_nothing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(saved, make(seed=1), TOKEN)
    assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS, TOKENIZER]
    np.testing.assert_array_equal(logits(load_model_folder(saved)[0]), logits(make()))


def test_a_file_with_the_name_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    for folder in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(CheckpointError, match="a file of that name is in the way"):
            save_model(folder, make(), TOKEN)
    assert (tmp_path / "run").read_text() == "a file"


def test_a_folder_without_write_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("data.files.open", denied, raising=False)  # root may write everywhere, so no chmod would show it
    with pytest.raises(CheckpointError, match=r"cannot be saved: .*: permission denied; choose a folder that you may write to"):
        save_model(tmp_path, make(), TOKEN)


# --- nothing there ------------------------------------------------------------------------------------


def test_a_misspelt_folder_gets_the_nearest_name(saved: Path) -> None:
    assert complaint(saved.parent / "smal").endswith(f"did you mean {saved}?")


def test_a_missing_folder_among_others(saved: Path) -> None:
    assert complaint(saved.parent / "zzzzzz").endswith("runs has small.")


def test_without_any_runs_the_advice_is_to_train_first(tmp_path: Path) -> None:
    assert "train a model first" in complaint(tmp_path / "runs" / "tiny")
    assert "train a model first" in complaint(tmp_path / "zzzzzz")


def test_the_folder_of_all_runs(saved: Path) -> None:
    assert complaint(saved.parent).endswith(f"has no model.safetensors; did you mean {saved}?")
    quantised = saved.parent / "another" / "smol.gguf"
    quantised.parent.mkdir()
    quantised.touch()
    assert complaint(quantised.parent).endswith(f"has no model.safetensors; did you mean {quantised}?")


def test_a_folder_without_weights(saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    assert "has not saved any weights yet" in complaint(saved)


def test_a_file_without_read_permission_is_an_error(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("gpt.checkpoints.weights.open", denied, raising=False)
    assert "permission denied" in complaint(saved)


# --- damaged ------------------------------------------------------------------------------------------


def test_a_file_truncated_at_any_byte_is_refused(saved: Path) -> None:
    whole = (saved / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) // 2, len(whole) - 1):
        (saved / WEIGHTS).write_bytes(whole[:length])
        message = complaint(saved)
        assert ("is empty" if length == 0 else "not a safetensors file" if length < 9 else "cut short") in message


def test_bytes_after_the_end_are_refused(saved: Path) -> None:
    with open(saved / WEIGHTS, "ab") as file:
        file.write(b"more")
    assert "damaged" in complaint(saved)


@pytest.mark.parametrize("content", [pickle.dumps({"weights": 1}), b"PK\x03\x04" + bytes(100)], ids=["pickle", "torch"])
def test_pickles_are_never_opened(saved: Path, content: bytes) -> None:
    (saved / "model.pt").write_bytes(content)
    message = complaint(saved / "model.pt")
    assert "can run code" in message
    assert "convert it to safetensors" in message


def test_a_text_file_is_refused_as_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("To be, or not to be, that is the question")
    assert "is not a safetensors file" in complaint(tmp_path / "notes.txt")


def test_weights_of_another_program(tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(safetensors.numpy.save({"weight": np.zeros(3)}))
    assert "no config and tokenizer" in complaint(tmp_path)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(saved: Path) -> None:
    rewrite(
        saved,
        {
            "ln_f.weight": None,
            "extra.weight": np.zeros(3, np.float32),
            "wpe.weight": np.zeros((7, 8), np.float32),
            "h.0.ln_1.weight": np.ones(8, np.int64),
        },
    )
    message = complaint(saved)
    assert "ln_f.weight missing" in message
    assert "extra.weight too many" in message
    assert "wpe.weight is F32 (7, 8) and should be (8, 8)" in message
    assert "h.0.ln_1.weight is I64 (8,) and should be (8,) of F64, F32, F16, BF16" in message


def test_a_missing_tied_weight(saved: Path) -> None:
    rewrite(saved, {"wte.weight": None})
    assert "wte.weight missing" in complaint(saved)


def test_many_missing_tensors_make_no_long_message(saved: Path) -> None:
    rewrite(saved, config=dataclasses.asdict(dataclasses.replace(SMALL, n_layer=50)))
    message = complaint(saved)
    assert "more missing" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("ours", "reason"),
    [
        ({"config": []}, "must be a mapping"),
        ({"config": 7}, "must be a mapping"),
        ({"config": None}, "no 'config'"),
        ({"config": {"n_layers": 3}}, "n_layers"),
        ({"config": {"n_head": 3, "n_embd": 8}}, "8 is not divisible by 3"),
        ({"config": {"n_embd": "wide"}}, "n_embd must be a whole number, got 'wide'"),
        ({"config": {"activation": "swoosh"}}, "swoosh"),
        ({"tokenizer": None}, "no 'tokenizer'"),
        ({"tokenizer": []}, "not a tokenizer"),
        ({"tokenizer": {"type": "bpe"}}, "got 'bpe'"),
        ({"tokenizer": {"type": "char", "characters": []}}, "at least one character"),
    ],
)
def test_an_invalid_config_or_tokenizer_is_refused(saved: Path, ours: dict, reason: str) -> None:
    rewrite(saved, **ours)
    message = complaint(saved)
    assert f"the config or tokenizer in {saved / WEIGHTS} is not one that this version knows" in message
    assert reason in message


@pytest.mark.parametrize("text", ["{", "[]", "null", "7", '"text"'])
def test_unknown_metadata_is_refused(saved: Path, text: str) -> None:
    (saved / WEIGHTS).write_bytes(safetensors.numpy.save(safetensors.numpy.load_file(saved / WEIGHTS), {METADATA: text}))
    assert "is not one that this version knows" in complaint(saved)


def test_a_tokenizer_too_large_for_the_model(saved: Path) -> None:
    rewrite(saved, tokenizer=CharTokenizer.train("".join(map(chr, range(32, 127)))).to_dict())
    assert f"its tokenizer has 95 ids, but its model knows {TOKEN.vocab_size}" in complaint(saved)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = save_model(tmp_path_factory.mktemp("run"), make(), TOKEN)
    return (folder / WEIGHTS).read_bytes()


def understood(content: bytes, path: Path) -> tuple[GPTConfig, CharTokenizer, dict[str, np.ndarray]] | None:
    """All that a file says, or None if it is refused, in one sentence."""
    path.write_bytes(content)
    try:
        model, tokenizer, config = load_model_folder(path)
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome may be right
        return None
    return config, tokenizer, {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def is_what_was_saved(found: tuple[GPTConfig, CharTokenizer, dict[str, np.ndarray]]) -> bool:
    config, tokenizer, weights = found
    own = make().state_dict()
    return (config, tokenizer) == (SMALL, TOKEN) and all(np.array_equal(weights[name], tensor.numpy()) for name, tensor in own.items())


@given(st.data())
def test_a_changed_byte_is_detected_or_has_no_effect(tmp_path_factory: pytest.TempPathFactory, whole: bytes, data: st.DataObject) -> None:
    """In the header there are bytes without a meaning, such as the spaces behind it; among the weights there are none."""
    header = 8 + int.from_bytes(whole[:8], "little")
    at, byte = data.draw(st.integers(0, header - 1) | st.integers(header, len(whole) - 1)), data.draw(st.integers(0, 255))
    found = understood(whole[:at] + bytes([byte]) + whole[at + 1 :], tmp_path_factory.getbasetemp() / "damaged.safetensors")
    assert found is None or (is_what_was_saved(found) and (at < header or byte == whole[at]))


@pytest.mark.parametrize(("was", "becomes"), [(rb"n_head\": 2", rb"n_head\": 4"), (b"gelu", b"relu"), (rb"\"b\", \"c\"", rb"\"c\", \"b\"")])
def test_a_consistent_change_is_detected_by_the_checksum(tmp_path: Path, was: bytes, becomes: bytes) -> None:
    """Another number of heads, another activation, letters that change places: only the checksum can tell."""
    save_model(tmp_path, make(dataclasses.replace(SMALL, vocab_size=30)), CharTokenizer.train("abcdefgh"))
    content = (tmp_path / WEIGHTS).read_bytes()
    assert was in content
    (tmp_path / WEIGHTS).write_bytes(content.replace(was, becomes, 1))
    assert "is damaged: its checksum is not that of its contents" in complaint(tmp_path)


def test_a_file_without_a_checksum_is_read(saved: Path) -> None:
    rewrite(saved)
    np.testing.assert_array_equal(logits(load_model_folder(saved)[0]), logits(make()))


def test_a_header_with_a_duplicate_name_is_refused(saved: Path) -> None:
    content = (saved / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    entries = json.loads(content[8 : 8 + size])
    header = content[8 : 8 + size].rstrip()[:-1] + f', "wpe.weight": {json.dumps(entries["wpe.weight"])}}}'.encode()
    (saved / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + size :])
    assert "its header has 'wpe.weight' twice" in complaint(saved)
