"""`tl.save` and `tl.load`: what goes in comes out; torch's files are read; a hostile pickle is refused, and nothing of it is executed."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import re
import struct
import zipfile

import numpy as np
import pytest
import torch

import tensorlite as tl
from tensorlite.compat.saving import LoadError


def through_a_file(obj, module=tl):
    file = io.BytesIO()
    module.save(obj, file)
    file.seek(0)
    return tl.load(file)


def alike(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(ours.float().numpy(), theirs.detach().float().numpy())
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            alike(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert isinstance(ours, list) == isinstance(theirs, list)
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            alike(a, b)
    else:
        assert ours == theirs
        assert type(ours) is type(theirs)


PLAIN = {"text": "ä", 3: [1, 2.5, None, True], "inf": float("inf"), "deep": {"a": ({"b": ()},)}, "big": 2**70, "empty": [{}, [], ()]}


def test_plain_values_can_be_saved_and_loaded():
    assert through_a_file(PLAIN) == PLAIN


@pytest.mark.parametrize("protocol", range(2, 6))
def test_every_protocol_of_pickle_is_read(protocol):
    """From protocol 4 on what occurs again is remembered under the next number, before that under a number that is written."""
    shared = torch.arange(3.0)
    theirs = {"a": shared, "b": ["a", shared, ("text", "text")], "c": shared[1:]}
    file = io.BytesIO()
    torch.save(theirs, file, pickle_protocol=protocol)
    file.seek(0)
    alike(tl.load(file), theirs)


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_of_every_dtype_are_loaded_from_our_and_torchs_files(dtype):
    values = torch.arange(6).reshape(2, 3).to(getattr(torch, dtype))
    for theirs in (
        values,
        values.t(),
        values[:, 1],
        values[0, 0],
        values[:0],
        torch.nn.Parameter(values) if dtype == "float32" else values,
    ):
        alike(through_a_file(theirs, torch), theirs)
        np_dtype = tl.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
        ours = tl.tensor(theirs.detach().float().numpy()).to(np_dtype)
        back = through_a_file(ours)
        assert back.dtype == ours.dtype
        assert back.shape == ours.shape
        assert back.tolist() == ours.tolist()


def test_a_view_is_saved_with_its_own_values():
    x = tl.arange(12.0).reshape(3, 4)
    for view in (x.T, x[:, ::2], x[::-1], x.expand(2, 3, 4)):
        assert through_a_file(view).tolist() == view.tolist()


def trained(t):
    torch.manual_seed(0)
    model = t.nn.Sequential(t.nn.Linear(3, 4, bias=False), t.nn.BatchNorm1d(4), t.nn.Tanh(), t.nn.Linear(4, 1))
    optimizer = t.optim.AdamW(model.parameters(), lr=0.01)
    return model, optimizer


def step(t, model, optimizer, count):
    x = t.tensor(np.random.default_rng(0).standard_normal((5, 3)).astype("float32"))
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_training_from_torchs_checkpoint_continues_as_in_torch():
    model, optimizer = trained(torch)
    step(torch, model, optimizer, 3)
    checkpoint = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3}, torch)
    assert checkpoint["step"] == 3
    ours, our_optimizer = trained(tl)
    ours.load_state_dict(checkpoint["model"])
    our_optimizer.load_state_dict(checkpoint["optimizer"])
    step(torch, model, optimizer, 3)
    step(tl, ours, our_optimizer, 3)
    for (name, a), (_, b) in zip(ours.state_dict().items(), model.state_dict().items(), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


def test_training_from_our_checkpoint_continues_with_the_same_bits():
    model, optimizer = trained(tl)
    step(tl, model, optimizer, 3)
    checkpoint = through_a_file({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    second, second_optimizer = trained(tl)
    second.load_state_dict(checkpoint["model"])
    second_optimizer.load_state_dict(checkpoint["optimizer"])
    step(tl, model, optimizer, 2)
    step(tl, second, second_optimizer, 2)
    for a, b in zip(model.parameters(), second.parameters(), strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b.detach().numpy())


def test_files_by_name_and_any_safetensors_file(tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "x.pt"
    tl.save({"a": tl.ones(2)}, path)
    tl.save({"a": tl.zeros(2)}, str(path))
    assert tl.load(path)["a"].tolist() == [0, 0]
    assert os.listdir(tmp_path) == ["x.pt"]
    save_file({"w": np.ones((2, 2), "float32")}, tmp_path / "w.safetensors")
    assert tl.load(tmp_path / "w.safetensors", map_location="cpu")["w"].tolist() == [[1, 1], [1, 1]]


def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    tl.save([1], path)

    def full(*names):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        tl.save([2], path)
    assert tl.load(path) == [1]
    assert os.listdir(tmp_path) == ["x.pt"]


NOT_SAVED = {
    "a model": (tl.nn.Linear(1, 1), "the object is of the type Linear; save its state_dict()"),
    "a function": ({"f": len}, r"the object\['f'\] is of the type builtin_function_or_method; save tensors"),
    "a set": ([{1}], r"the object\[0\] is of the type set"),
    "a key": ({(1, 2): 3}, "a key of the object is of the type tuple"),
    "text in an array": (np.array(["a"]), "an array of <U1"),
}


@pytest.mark.parametrize(("obj", "said"), NOT_SAVED.values(), ids=NOT_SAVED)
def test_objects_that_cannot_be_saved_are_refused_by_name(obj, said, tmp_path):
    with pytest.raises(TypeError, match=said):
        tl.save(obj, tmp_path / "x")
    assert not os.listdir(tmp_path)


def test_objects_that_contain_themselves_are_refused(tmp_path):
    obj: list = []
    obj.append(obj)
    with pytest.raises(TypeError, match="contains itself"):
        tl.save(obj, tmp_path / "x")


@pytest.mark.parametrize(
    "content", [b"", b"hello", pickle.dumps([1]), b"PK\x03\x04" + bytes(40), struct.pack("<Q", 2**40) + b"{", b"\x80\x02."]
)
def test_other_files_are_refused(content):
    with pytest.raises(LoadError, match="load: "):
        tl.load(io.BytesIO(content))


def test_damaged_safetensors_are_refused():
    file = io.BytesIO()
    tl.save({"a": tl.arange(8)}, file)
    whole = file.getvalue()
    rng = random.Random(0)
    for _ in range(200):
        place = rng.randrange(len(whole))
        damaged = whole[:place] if rng.random() < 0.3 else whole[:place] + bytes([rng.randrange(256)]) + whole[place + 1 :]
        try:
            tl.load(io.BytesIO(damaged))
        except LoadError:
            pass


def test_weights_only_false_is_refused():
    with pytest.raises(ValueError, match="would run whatever code the file has"):
        tl.load("whatever", weights_only=False)


# --- hostile pickles ------------------------------------------------------------------------------------


def archive(program: bytes, storages: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("archive/data.pkl", program)
        for key, content in (storages or {"0": bytes(64)}).items():
            made.writestr(f"archive/data/{key}", content)
    file.seek(0)
    return file


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int16", "uint8"])
def test_a_file_of_a_big_endian_machine_is_read(dtype):
    theirs = torch.arange(1, 6).to(getattr(torch, dtype))
    little = io.BytesIO()
    torch.save(theirs, little)
    big = io.BytesIO()
    with zipfile.ZipFile(little) as read, zipfile.ZipFile(big, "w") as written:
        for name in read.namelist():
            content = read.read(name)
            if name.endswith("/byteorder"):
                content = b"big"
            elif "/data/" in name:
                content = np.frombuffer(content, f"u{theirs.element_size()}").byteswap().tobytes()
            written.writestr(name, content)
    big.seek(0)
    alike(tl.load(big), theirs)


class Calls:
    """Pickled, a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


EXECUTED: list[str] = []


def execute(*arguments):
    """What a hostile pickle would call: it must not be."""
    EXECUTED.append("called")


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def rebuild(shape: tuple, strides: tuple, offset: int = 0, key: str = "0", count: int = 16, of: str = "FloatStorage") -> bytes:
    """torch's own call for a tensor, with these numbers."""
    storage = b"(" + text("storage") + b"ctorch\n" + of.encode() + b"\n" + text(key) + text("cpu") + number(count) + b"tQ"
    parts = (number(offset), pickle.dumps(shape, 2)[2:-1], pickle.dumps(strides, 2)[2:-1], b"\x89", b"ccollections\nOrderedDict\n)R")
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"".join(parts) + b"tR"


CALLED = [os.system, eval, exec, getattr, __import__, open, execute, print, setattr, compile, np.load, pickle.loads, tl.load, tl.Tensor]
NAMES = [
    "os system", "posix system", "nt system", "builtins eval", "builtins getattr", "__builtin__ exec", "subprocess Popen",
    "torch load", "torch.hub load", "torch._utils os.system", "collections OrderedDict.__class__", "numpy load",
    "torch FloatStorage.__class__", "tests.test_torch_files execute", "torch.storage _load_from_bytes", "_codecs encode",
    "functools partial",
]  # fmt: skip


CALLING = range(6)  # kinds of hostile files that would call something


def hostile(kind: int, rng: random.Random) -> io.BytesIO:
    """A hostile file, of one of 14 kinds."""
    protocol = rng.choice([0, 1, 2, 3, 4, 5])
    bomb = Calls(rng.choice(CALLED), *rng.choice([(), ("echo",), ("1+1", {}), (int, "x")]))
    if kind == 0:
        return archive(pickle.dumps(bomb, protocol))
    if kind == 1:  # somewhere inside
        return archive(pickle.dumps({"model": [1, (2, {"a": bomb})]}, protocol))
    if kind == 2:  # the argument of an allowed call
        return archive(pickle.dumps(Calls(collections.OrderedDict, [("a", bomb)]), protocol))
    if kind == 3:  # a call of a call
        inner: object = bomb
        for _ in range(rng.randrange(1, 40)):
            inner = Calls(rng.choice(CALLED), inner)
        return archive(pickle.dumps(inner, protocol))
    if kind == 4:  # names alone, old and new style
        module, name = rng.choice(NAMES).split()
        asked = f"c{module}\n{name}\n".encode() if rng.random() < 0.5 else text(module) + text(name) + b"\x93"
        return archive(b"\x80\x04" + asked + rng.choice([b")R.", b"(tR.", b")\x81.", b"."]))
    if kind == 5:  # instructions that call on their own
        module, name = rng.choice(NAMES).split()
        return archive(b"\x80\x02" + rng.choice([f"(i{module}\n{name}\n.", f"(c{module}\n{name}\no."]).encode())
    if kind == 6:  # shapes
        shape = tuple(rng.choice([0, 1, 3, 2**31, 2**62, 2**200, -1]) for _ in range(rng.randrange(6)))
        strides = tuple(rng.choice([0, 1, 2**40, -1, 2**70]) for _ in range(rng.choice([len(shape), 2])))
        return archive(b"\x80\x02" + rebuild(shape, strides, rng.choice([0, 5, 2**40, -3]), count=rng.choice([16, 2**50, 0, 1])) + b".")
    if kind == 7:  # storages that are not there, or are something else
        key, of = rng.choice(["../../etc/passwd", "1", "", "0"]), rng.choice(["FloatStorage", "ComplexFloatStorage", "UntypedStorage"])
        return archive(b"\x80\x02" + rebuild((2,), (1,), 0, key, 16, of) + b".", {"0": bytes(rng.randrange(70))})
    if kind == 8:  # the memo
        trick = rng.choice(
            [b"j\xff\xff\xff\xff", b"h\x07", b"Nr\xff\xff\xff\x7f", b"]q\x00h\x00a", b"}q\x00h\x00h\x00s", b"\x94", b"g99\n"]
        )
        return archive(b"\x80\x02" + trick * rng.randrange(1, 5) + b".")
    if kind == 9:  # deep
        depth = rng.randrange(10, 50000)
        return archive(b"\x80\x02" + rng.choice([b"]" * depth + b"a" * (depth - 1), b")" + b"\x85" * depth, b"(" * depth]) + b".")
    if kind == 10:  # a key that is deep, or cannot be one
        key = rng.choice([b")" + b"\x85" * rng.randrange(5, 50000), b"]", b"}", b"ctorch\nFloatStorage\n"])
        return archive(b"\x80\x02}" + key + b"Ns.")
    if kind == 11:  # lengths that are not there
        lying = [
            b"X\xff\xff\xff\x7fa",
            b"\x8b\xff\xff\xff\x7f1",
            b"\x8d" + b"\xff" * 8,
            b"B\xff\xff\xff\x7f",
            b"\x8a\xff1",
            b"\x95" + b"\xff" * 8,
        ]
        return archive(b"\x80\x04" + rng.choice(lying) + b".")
    if kind == 12:  # the stack
        return archive(b"\x80\x02" + bytes(rng.choice(b"RbstuaeQ0\x85\x86\x87)](}") for _ in range(rng.randrange(1, 30))) + b".")
    file = io.BytesIO()
    torch.save({"model": torch.nn.Linear(2, 2).state_dict(), "n": [1, 2.5, "a"]}, file)
    whole = bytearray(file.getvalue())  # a real one with other bytes in its pickle
    start = whole.find(b"\x80\x02")
    for _ in range(rng.randrange(1, 8)):
        whole[start + rng.randrange(300)] = rng.randrange(256)
    with zipfile.ZipFile(file) as real:  # with its checksum made right again, so that the pickle is read
        info = real.getinfo("archive/data.pkl")
    return archive(bytes(whole[start : start + info.file_size]), {str(i): bytes(64) for i in range(2)})


def test_of_a_thousand_hostile_pickles_none_is_executed_and_none_crashes():
    """Among the functions that the files call is `execute`: what called any would call it, too."""
    rng = random.Random(0)
    EXECUTED.clear()
    for number in range(1000):
        kind = number % 14
        try:
            tl.load(hostile(kind, rng))
        except LoadError:
            continue
        assert kind not in CALLING, "it was read"  # a shape with a 0 in it, and some of the changed bytes, are no harm
    assert not EXECUTED


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_allowed_is_in_the_message(name):
    module, _, attribute = name.partition(" ")
    with pytest.raises(LoadError, match=re.escape(f"the file asks for {module}.{attribute}; here files build tensors")):
        tl.load(archive(f"\x80\x02c{module}\n{attribute}\n.".encode("latin-1")))


def test_known_functions_with_unexpected_arguments_are_refused():
    for call in (
        b"ccollections\nOrderedDict\n(lp0\n\x85R.",
        b"ctorch\nSize\nK\x01\x85R.",
        b"ctorch._utils\n_rebuild_parameter\nK\x01\x85R.",
    ):
        with pytest.raises(LoadError, match="as a dict of tensors does not need it"):
            tl.load(archive(b"\x80\x02" + call.replace(b"(lp0\n", b"]")))


def test_a_tensor_never_takes_more_numbers_than_its_storage_has():
    with pytest.raises(LoadError, match="lies outside of its storage of 16 numbers"):
        tl.load(archive(b"\x80\x02" + rebuild((4, 4), (4, 1), 1) + b"."))
    with pytest.raises(LoadError, match="repeats numbers"):
        tl.load(archive(b"\x80\x02" + rebuild((16, 16), (0, 1)) + b"."))
    with pytest.raises(LoadError, match="storage 0 has 16 numbers, the file speaks of 17"):
        tl.load(archive(b"\x80\x02" + rebuild((4, 4), (4, 1), count=17) + b"."))
    assert tl.load(archive(b"\x80\x02" + rebuild((4, 4), (4, 1)) + b".")).shape == (4, 4)


def test_a_compressed_archive_is_refused():
    with pytest.raises(LoadError, match=r"data\.pkl is compressed"):
        tl.load(archive(b"\x80\x02" + b"N" * 10000 + b".", compression=zipfile.ZIP_DEFLATED))
