"""Files that torch.save wrote: a zip archive with the numbers of each storage, and a pickle that says how they form tensors.

A pickle is a program for a small stack machine. Python's own machine calls any function that the program names. The machine here
has only the instructions that a dict of tensors needs, and knows six of torch's functions and types. It does not call these either: it
builds the same objects itself, after a check of shapes and bounds. Every other name is refused, with the name in the message.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

from tensorlite import creation
from tensorlite.backend import Device
from tensorlite.tensor import Tensor

_KEYS = (str, int, float, bool, type(None), tuple)
_DEEPEST_KEY = 4


class LoadError(ValueError):
    """A file cannot be read: it is damaged, of another kind, or contains anything but tensors, numbers, text, lists and dicts."""


# torch's name of a storage, and safetensors' name of a dtype -> NumPy's
_DTYPES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64", "BOOL": "bool",
}  # fmt: skip


def dtype_named(name: str) -> Any:
    """NumPy's dtype for torch's name of a storage, or safetensors' of a dtype.

    Raises:
        LoadError: for a type that is not supported.
    """
    if name not in _DTYPES:
        raise LoadError(f"load: numbers of type {name} are not here.")
    return creation.bfloat16_dtype() if _DTYPES[name] == "bfloat16" else np.dtype(_DTYPES[name])


class _Name(NamedTuple):
    """A name in the pickle that is allowed."""

    module: str
    name: str


class _Storage(NamedTuple):
    """The numbers of a storage, as a vector."""

    numbers: np.ndarray


def read(file: IO[bytes], device: Device) -> Any:
    """The object in the archive, with its tensors on ``device``.

    Raises:
        LoadError: see the class.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _Archive(archive, device).content()
    except LoadError:
        raise
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise LoadError(f"load: this file is damaged, or not one of torch's: {error}.") from error
    except (NotImplementedError, RuntimeError, MemoryError, RecursionError) as error:
        raise LoadError(f"load: this file cannot be read: {error}.") from error


class _Archive:
    """The zip archive, and the storages that were read from it."""

    def __init__(self, archive: zipfile.ZipFile, device: Device) -> None:
        self.archive, self.device = archive, device
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise LoadError("load: this zip archive has no data.pkl, or several: it is not one of torch's files.")
        self.folder = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, _Storage] = {}
        order = f"{self.folder}byteorder"
        self.byteorder = ">" if order in archive.namelist() and self.stored(order) == b"big" else "<"

    def stored(self, name: str) -> bytes:
        """A member of the archive. torch never compresses it, so it cannot be larger than the file."""
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise LoadError(f"load: {name} is compressed, which torch's files are not.")
        return self.archive.read(info)

    def content(self) -> Any:
        return _Machine(self).run(self.stored(f"{self.folder}data.pkl"))

    def storage(self, described: Any) -> _Storage:
        """The storage that the pickle describes as ("storage", its type, its key, its device, its length)."""
        kind, of, key, _, count = described
        if kind != "storage" or not isinstance(of, _Name) or type(key) is not str or type(count) is not int:
            raise LoadError("load: the file refers to something that is no storage.")
        if key not in self.storages:
            dtype = dtype_named(of.name)
            numbers = np.frombuffer(bytearray(self.stored(f"{self.folder}data/{key}")), dtype)
            if self.byteorder == ">" and dtype.itemsize > 1:
                numbers = numbers.byteswap()
            self.storages[key] = _Storage(numbers)
        if self.storages[key].numbers.size < count or self.storages[key].numbers.dtype != dtype_named(of.name):
            raise LoadError(f"load: storage {key} has {self.storages[key].numbers.size} numbers, the file speaks of {count}.")
        return self.storages[key]

    def tensor(self, storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
        """A tensor on the storage, after a check of its bounds. Other arguments (``requires_grad``, hooks) are ignored."""
        whole = all(type(n) is int and n >= 0 for n in (offset, *shape, *strides))
        if not isinstance(storage, _Storage) or not whole or len(shape) != len(strides) or len(shape) > 64:
            raise LoadError(f"load: a tensor of shape {shape!r} and strides {strides!r} cannot be.")
        numbers = storage.numbers
        empty = 0 in shape
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if not empty and last >= numbers.size:
            raise LoadError(f"load: a tensor of shape {shape} lies outside of its storage of {numbers.size} numbers.")
        if math.prod(shape) > numbers.size:
            raise LoadError(f"load: a tensor of shape {shape} repeats numbers (strides {strides}); save a contiguous() one.")
        if empty:
            return Tensor(self.device.asarray(np.zeros(shape, numbers.dtype)))
        step = numbers.itemsize  # tensors on one storage share its memory, so they never take more memory than the file
        view = np.lib.stride_tricks.as_strided(numbers[offset:], shape, tuple(stride * step for stride in strides))
        return Tensor(self.device.asarray(view))


_ALLOWED = {
    _Name("torch._utils", "_rebuild_tensor_v2"),
    _Name("torch._utils", "_rebuild_parameter"),
    _Name("collections", "OrderedDict"),
    _Name("torch", "Size"),
    *(_Name("torch", name) for name in _DTYPES if name.endswith("Storage")),
}
_MARK = object()


class _Machine:
    """A pickle machine that calls no function."""

    def __init__(self, archive: _Archive) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """The object that the program leaves on the stack."""
        for opcode, argument, _ in pickletools.genops(program):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            step = _STEPS.get(name)
            if step is None:
                raise LoadError(f"load: the file's pickle has the instruction {name}, which a dict of tensors does not need.")
            step(self, argument)
        raise LoadError("load: the file's pickle has no end.")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is _MARK:
                items = self.stack[place + 1 :]
                del self.stack[place:]
                return items
        raise LoadError("load: the file's pickle takes from an empty stack.")

    def pop_two(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def name(self, argument: str) -> None:
        """Push a name, or refuse it if it is not in the table."""
        found = _Name(*argument.split(" ", 1))
        if found not in _ALLOWED:
            raise LoadError(
                f"load: the file asks for {found.module}.{found.name}; here files build tensors, numbers, text, lists and dicts alone."
            )
        self.push(found)

    def stack_name(self, argument: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise LoadError("load: the file's pickle has a name that is no text.")
        self.name(f"{module} {name}")

    def reduce(self, argument: Any) -> None:
        """The result of one of the known functions."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or type(arguments) is not tuple:
            raise LoadError("load: the file's pickle calls what is no function.")
        if function.name == "_rebuild_tensor_v2":
            self.push(self.archive.tensor(*arguments))
        elif function.name == "_rebuild_parameter" and isinstance(arguments[0], Tensor):
            self.push(arguments[0])
        elif function.name == "OrderedDict" and not arguments:
            self.push({})
        elif function.name == "Size" and len(arguments) == 1 and type(arguments[0]) in (tuple, list):
            self.push(tuple(arguments[0]))
        else:
            raise LoadError(f"load: the file's pickle calls {function.module}.{function.name} as a dict of tensors does not need it.")

    def build(self, argument: Any) -> None:
        """Set attributes of an object. Only the OrderedDict of a state_dict has one, its versions, which is ignored."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise LoadError("load: the file's pickle gives attributes to what has none.")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise LoadError("load: the file's pickle puts items into what is no dict.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_checked_key(key)] = value

    def append(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise LoadError("load: the file's pickle appends to what is no list.")
        self.stack[-1].extend(items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise LoadError("load: the file's pickle takes from an empty stack.")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def dict_of(self, items: list[Any]) -> None:
        self.push({})
        self.set_items(items)


def _checked_key(key: Any, depth: int = 0) -> Any:
    """A key is text, a number, or a short tuple of these: the hash of a deeply nested tuple would overflow the C stack."""
    if type(key) not in _KEYS or depth > _DEEPEST_KEY:
        raise LoadError(f"load: the file has a dict with a key of the type {type(key).__name__}.")
    for part in key if type(key) is tuple else ():
        _checked_key(part, depth + 1)
    return key


Step = Callable[[_Machine, Any], Any]


def _nothing(machine: _Machine, argument: Any) -> None:
    pass


def _push(machine: _Machine, argument: Any) -> None:
    machine.push(argument)


_STEPS: dict[str, Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": lambda machine, _: machine.push(_MARK),
    "POP": lambda machine, _: machine.stack.pop(),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "DICT": lambda machine, _: machine.dict_of(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.set_items(machine.pop_two()),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "BINPUT": lambda machine, place: machine.memo.__setitem__(place, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, place: machine.memo.__setitem__(place, machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    "BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "LONG_BINGET": lambda machine, place: machine.push(machine.memo[place]),
    "BINPERSID": lambda machine, _: machine.push(machine.archive.storage(machine.stack.pop())),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
