"""Files of weights: what they promise is looked at before anything is made of it.

    8 bytes         the length of the header
    the header      JSON: name -> {"dtype": "F32", "shape": [96, 32], "data_offsets": [0, 12288]}, and "__metadata__": text by name
    the numbers     of all tensors, end to end

A header of 300 bytes can promise a model of 48 GiB. The library safetensors makes sure that the numbers are there that the header
promises; `require_fit`, that they are those that a config asks for. Only then is there reason to build the model.

A file that this package has written carries the SHA-256 of its weights, config and tokenizer in its metadata (`sealed`), so that a
changed byte is noticed (`is_broken`). The checksum guards against accidents: somebody who changes a file on purpose can change it, too.

NumPy has no bfloat16. A number in bfloat16 is the upper half of the same number in float32, so zeros are put below it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors

from gpt.config import GPTConfig

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
_KNOWN = {**FLOATS, **_INTEGERS}
_DIMENSIONS = 32  # at most, of an array in every version of NumPy
SEAL = "sha256"
_POSITIONS = 2**27  # numbers in a table of sinusoids: no file limits it, since it is not stored


class WeightsError(ValueError):
    """Weights that cannot be used; the message goes on where the name of the file ends."""


class Entry(NamedTuple):
    """What the header says of one tensor: its type, its shape, and the bytes of the file where it is."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """A safetensors file, or the content of one.

    Attributes:
        metadata: text by name.
        entries: the tensors by name, none of them read yet.

    Raises:
        OSError: if there is no reading it.
        safetensors.SafetensorError: if it is no safetensors file, or not a whole one.
        WeightsError: if a name is there twice.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        if isinstance(source, bytes):
            safetensors.deserialize(source)  # makes sure that the file is what it should be, and so does opening one
            self._bytes: np.ndarray = np.frombuffer(source, np.uint8)
        else:
            with safetensors.safe_open(source, framework="numpy"):
                self._bytes = np.memmap(source, np.uint8, mode="r")
        start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        header = json.loads(self._bytes[8:start].tobytes(), object_pairs_hook=_without_doubles)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries = {
            name: Entry(entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """A tensor; float32 where the file has bfloat16.

        Raises:
            WeightsError: for a type or a shape that NumPy does not have.
        """
        kind, shape, begin, end = self.entries[name]
        if kind not in _KNOWN:
            raise WeightsError(f"cannot be used: {name} is {kind}, and known are {', '.join(FLOATS)}")
        if len(shape) > _DIMENSIONS:
            raise WeightsError(f"cannot be used: {name} has {len(shape)} dimensions, and {_DIMENSIONS} are possible")
        array = np.array(self._bytes[begin:end]).view(_KNOWN[kind]).reshape(shape)
        return (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array

    def read_all(self) -> dict[str, np.ndarray]:
        """Every tensor by name.

        Raises:
            WeightsError: see `read`.
        """
        return {name: self.read(name) for name in self.entries}


def shapes_of(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and the shape of every weight of the model, without making it. A tied head has none of its own."""

    def layer(name: str, *shape: int, bias: bool = config.bias) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        if bias:
            yield f"{name}.bias", shape[:1]

    V, T, C = config.vocab_size, config.block_size, config.n_embd
    if config.model == "bigram":
        yield "wte.weight", (V, V)
        return
    yield "wte.weight", (V, C)
    if config.positions == "learned":
        yield "wpe.weight", (T, C)
    for i in range(config.n_layer):
        yield from layer(f"h.{i}.ln_1", C)
        yield from layer(f"h.{i}.attn.c_attn", 3 * C, C)
        yield from layer(f"h.{i}.attn.c_proj", C, C)
        yield from layer(f"h.{i}.ln_2", C)
        yield from layer(f"h.{i}.mlp.c_fc", 4 * C, C)
        yield from layer(f"h.{i}.mlp.c_proj", C, 4 * C)
    yield from layer("ln_f", C)
    for name, shape in layer("lm_head", V, C, bias=config.head_bias):
        if name == "lm_head.bias" or not config.tied_head:
            yield name, shape


def require_fit(config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Refuse weights that are not those of a model with this config. Costs no more than there are entries, whatever the config asks for.

    Raises:
        WeightsError: naming what is missing, too many, or of another type or shape.
    """
    require_possible(config)
    some = itertools.islice(shapes_of(config), 2 * len(entries) + 8)  # of a model of a thousand million layers, too
    expected = dict(some)
    if config.tied_head and "lm_head.weight" in entries:  # the same weight once more
        expected["lm_head.weight"] = expected.get("wte.weight", ())
    missing = [name for name in expected if name not in entries]
    unknown = [name for name in entries if name not in expected]
    other = [
        f"{name} is {entry.kind} {entry.shape} and should be {expected[name]}"
        + ("" if entry.kind in FLOATS else f" of {', '.join(FLOATS)}")
        for name, entry in entries.items()
        if name in expected and (entry.shape != expected[name] or entry.kind not in FLOATS)
    ]
    complaints = [f"{named(names)} {verb}" for names, verb in ((missing, "missing"), (unknown, "too many")) if names]
    complaints += [named(other)] if other else []
    if complaints:
        raise WeightsError(f"do not fit its config: {'; '.join(complaints)}")


def require_possible(config: GPTConfig) -> None:
    """Refuse a table of sinusoids that no model has.

    Raises:
        WeightsError: naming its size.
    """
    if config.positions == "sinusoidal" and config.block_size * config.n_embd > _POSITIONS:
        raise WeightsError(
            f"do not fit its config: {config.block_size:,} positions of {config.n_embd:,} numbers are more than {_POSITIONS:,} in all"
        )


def require_room(config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Refuse a config that asks for more than ``entries`` hold, of whichever names they are.

    Raises:
        WeightsError: with both figures.
    """
    require_possible(config)
    held = sum(_size(entry.shape) for entry in entries.values())
    asked = 0
    for number, (_, shape) in enumerate(shapes_of(config), 1):
        asked += _size(shape)
        if number > len(entries) or asked > held:
            raise WeightsError(
                f"do not fit its config: it asks for more than the {held:,} numbers in {len(entries):,} tensors that are there"
            )


def named(names: list[str], shown: int = 4) -> str:
    """The first few of ``names``, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def sealed(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``facts``, fit for JSON, and with them the SHA-256 of both."""
    return {**facts, SEAL: _digest(facts, weights)}


def is_broken(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> bool:
    """Whether these are others than were `sealed`. Where there is no seal nothing is known: files of earlier versions have none."""
    return SEAL in facts and facts[SEAL] != _digest({name: fact for name, fact in facts.items() if name != SEAL}, weights)


def _digest(facts: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, array in sorted(weights.items()):
        array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # as it is read
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two entries with one name readers would differ in which they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise WeightsError(f"is damaged: its header has {twice!r} twice")
    return found
