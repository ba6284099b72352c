"""``save`` and ``load``: tensors in lists and dicts, as a safetensors file. torch's own files are read, too.

    tl.save({"model": model.state_dict(), "step": 100}, "checkpoint.pt")
    checkpoint = tl.load("checkpoint.pt", map_location="cpu")

A safetensors file has named tensors, and text. Here the names are numbers, and the text is JSON that says where each tensor belongs. Every
program that reads safetensors can read the tensors, and nothing in such a file can be executed. Files of torch.save are read by
`tensorlite.compat.torch_file`, which builds only tensors, numbers, text, lists and dicts.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from tensorlite.backend import Device, to_numpy
from tensorlite.compat import torch_file
from tensorlite.compat.torch_file import LoadError
from tensorlite.tensor import Tensor

_TREE = "tensorlite.tree"
_DEEPEST = 100
_PLAIN = (str, int, float, bool, type(None))

__all__ = ["LoadError", "load", "save"]


def save(obj: Any, f: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write tensors, arrays, numbers and text, in dicts, lists and tuples. If the write fails, there is no partial file.

    Args:
        f: the name of a file, or an open binary file.

    Raises:
        TypeError: for anything else, such as a whole model: save its ``state_dict()``.
    """
    from safetensors.numpy import save as to_bytes

    arrays: dict[str, np.ndarray] = {}
    tree = _described(obj, arrays, "the object")
    content = to_bytes(arrays, {_TREE: json.dumps(tree)})
    if not isinstance(f, str | os.PathLike):
        f.write(content)
        return
    path = Path(f)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.close()
            os.replace(file.name, path)
        except BaseException:
            file.close()
            os.unlink(file.name)
            raise


def load(f: str | os.PathLike[str] | IO[bytes], map_location: Any = None, *, weights_only: bool = True) -> Any:
    """Read a file of `save`, of torch.save (in its format since 1.6), or any safetensors file, which gives a dict of tensors.

    Args:
        f: the name of a file, or an open binary file that can seek.
        map_location: the device for all tensors; by default the CPU.
        weights_only: must be True. With False torch would run any code in the file, so False is refused.

    Raises:
        LoadError: for a file of another kind, a damaged one, and one that contains anything but tensors, numbers, text, lists and dicts.
        ValueError: for ``weights_only=False``.
    """
    if not weights_only:
        raise ValueError("load: weights_only=False would run whatever code the file has, and is not here; save a state_dict().")
    device = Device(map_location)
    if isinstance(f, str | os.PathLike):
        with open(f, "rb") as file:
            return load(file, device)
    start = f.read(16)
    f.seek(0)
    if start.startswith(b"PK"):
        return torch_file.read(f, device)
    if start[8:9] == b"{":
        return _from_safetensors(f.read(), device)
    if start[:1] == b"\x80":
        raise LoadError("load: this file is a pickle, which may hold any code, and none of torch's files since 1.6; save a state_dict().")
    raise LoadError("load: this is neither a safetensors file nor one of torch's (a zip archive).")


# --- the tree: each node is a JSON list, its kind first -------------------------------------------------------


def _described(obj: Any, arrays: dict[str, np.ndarray], where: str, depth: int = 0) -> Any:
    if depth > _DEEPEST:
        raise TypeError(f"save: {where} is nested more than {_DEEPEST} deep, or contains itself.")
    if isinstance(obj, Tensor | np.ndarray | np.generic):
        name = str(len(arrays))
        array = to_numpy(obj.array) if isinstance(obj, Tensor) else np.asarray(obj)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"save: {where} is an array of {array.dtype}; save numbers.")
        arrays[name] = np.array(array, order="C", copy=True).reshape(array.shape)
        return ["tensor" if isinstance(obj, Tensor) else "array", name]
    if type(obj) in _PLAIN:
        return ["float", repr(obj)] if isinstance(obj, float) else ["plain", obj]  # JSON has no infinity
    if isinstance(obj, dict):
        pairs = [[_key(key, where), _described(value, arrays, f"{where}[{key!r}]", depth + 1)] for key, value in obj.items()]
        return ["dict", pairs]
    if isinstance(obj, list | tuple):
        kind = "list" if isinstance(obj, list) else "tuple"
        return [kind, [_described(value, arrays, f"{where}[{i}]", depth + 1) for i, value in enumerate(obj)]]
    hint = "save its state_dict()" if hasattr(obj, "state_dict") else "save tensors, numbers and text, in dicts, lists and tuples"
    raise TypeError(f"save: {where} is of the type {type(obj).__name__}; {hint}.")


def _key(key: Any, where: str) -> Any:
    if type(key) not in (str, int, bool, type(None)):
        raise TypeError(f"save: a key of {where} is of the type {type(key).__name__}; keys are text or integers.")
    return key


def _from_safetensors(content: bytes, device: Device) -> Any:
    from safetensors import SafetensorError, deserialize

    try:
        named = {name: _array(view["data"], view["dtype"], view["shape"]) for name, view in deserialize(content)}
        length = int.from_bytes(content[:8], "little")
        described = json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(_TREE)
        if described is None:
            return {name: Tensor(device.asarray(array)) for name, array in named.items()}
        return _built(json.loads(described), named, device)
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        raise LoadError(f"load: this safetensors file is damaged: {error}.") from error


def _array(data: Any, dtype: str, shape: list[int]) -> np.ndarray:
    return np.frombuffer(bytearray(data), torch_file.dtype_named(dtype)).reshape(shape)


def _built(node: Any, named: dict[str, np.ndarray], device: Device) -> Any:
    kind, value = node
    if kind == "tensor":
        return Tensor(device.asarray(named[value]))
    if kind == "array":
        return named[value]
    if kind == "float":
        return float(value)
    if kind == "plain":
        return value
    if kind == "dict":
        return {key: _built(part, named, device) for key, part in value}
    if kind in ("list", "tuple"):
        parts = [_built(part, named, device) for part in value]
        return parts if kind == "list" else tuple(parts)
    raise ValueError(f"unknown kind {kind!r}")
