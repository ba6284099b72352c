"""Files of weights in the safetensors format, and a checksum for them.

    8 bytes         the length of the header
    the header      JSON: name -> {"dtype": "F32", "shape": [96, 32], "data_offsets": [0, 12288]}, and "__metadata__": text by name
    the numbers     of all tensors, end to end

The header is read first. A header of 300 bytes can promise a model of 48 GiB. The library safetensors checks that the file holds the
numbers that the header promises. `require_shapes` checks that they are the numbers that a config asks for. Only then is a model built.

A file that this package writes carries the SHA-256 of its weights, config and tokenizer in its metadata (`with_checksum`), so that a
changed byte is noticed (`checksum_differs`). The checksum guards against accidents: somebody who changes a file on purpose can change
the checksum, too.

NumPy has no bfloat16. A bfloat16 number is the upper half of the same number in float32, so it is read by appending 16 zero bits.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from gpt.config import GPTConfig
from gpt.errors import UserError

FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS = {"I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}
_KNOWN = {**FLOATS, **_INTEGERS}
_MAX_DIMENSIONS = 32  # of an array, in every supported version of NumPy
_MAX_SINUSOIDS = 2**27  # numbers in a table of sinusoidal positions; no file limits them, because the table is not stored
CHECKSUM = "sha256"


class CheckpointError(UserError):
    """A checkpoint cannot be written or read. The message says why, and what to do."""


class WeightsError(ValueError):
    """Weights cannot be used. The message is a predicate: the caller puts the name of the file before it."""


class Entry(NamedTuple):
    """What the header says about one tensor: its type, its shape, and its range of bytes in the file."""

    kind: str
    shape: tuple[int, ...]
    begin: int
    end: int


class WeightsFile:
    """A safetensors file, or the bytes of one.

    Attributes:
        metadata: text by name.
        entries: the tensors by name; none of them is read yet.

    Raises:
        OSError: if the file cannot be read.
        safetensors.SafetensorError: if it is not a complete safetensors file.
        WeightsError: if a name occurs twice.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        if isinstance(source, bytes):
            safetensors.deserialize(source)  # checks the bytes, as safe_open checks a file
            self._bytes: np.ndarray = np.frombuffer(source, np.uint8)
        else:
            with safetensors.safe_open(source, framework="numpy"):
                self._bytes = np.memmap(source, np.uint8, mode="r")
        start = 8 + int.from_bytes(self._bytes[:8].tobytes(), "little")
        header = json.loads(self._bytes[8:start].tobytes(), object_pairs_hook=_without_duplicates)
        self.metadata: dict[str, str] = header.pop("__metadata__", None) or {}
        self.entries = {
            name: Entry(entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"]))
            for name, entry in header.items()
        }

    def read(self, name: str) -> np.ndarray:
        """One tensor; float32 where the file has bfloat16.

        Raises:
            WeightsError: for a type or a number of dimensions that NumPy does not have.
        """
        kind, shape, begin, end = self.entries[name]
        if kind not in _KNOWN:
            raise WeightsError(f"cannot be used: {name} has type {kind}, and only {', '.join(FLOATS)} are known")
        if len(shape) > _MAX_DIMENSIONS:
            raise WeightsError(f"cannot be used: {name} has {len(shape)} dimensions, and {_MAX_DIMENSIONS} are possible")
        array = np.array(self._bytes[begin:end]).view(_KNOWN[kind]).reshape(shape)
        return (array.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else array

    def read_all(self) -> dict[str, np.ndarray]:
        """All tensors by name.

        Raises:
            WeightsError: see `read`.
        """
        return {name: self.read(name) for name in self.entries}


def open_weights(file: Path, remedy: str = "use a copy, or train again") -> WeightsFile:
    """Open a file of weights and read its header.

    Args:
        remedy: what the message recommends if the file is damaged.

    Raises:
        CheckpointError: if it is not a safetensors file, or damaged.
    """
    try:
        if file.exists() and not file.is_file():  # opening a pipe would wait for ever
            raise CheckpointError(f"{file} is not a file, but a folder, a pipe or a device.")
        with open(file, "rb") as opened:
            start = opened.read(16)
        return WeightsFile(file)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}.") from error
    except WeightsError as error:
        raise CheckpointError(f"{file} {error}; {remedy}.") from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{file} {_describe_other_content(start, file.stat().st_size, remedy)} ({error}).") from error


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins with ``start`` is a pickle, or a torch file, which is a zip archive with a pickle in it."""
    return start[:1] == b"\x80" or start[:2] == b"PK"


def weight_shapes(config: GPTConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name and shape of every weight of the model, without building it. A tied head has no weight of its own."""

    def layer(name: str, *shape: int, bias: bool = config.bias) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        if bias:
            yield f"{name}.bias", shape[:1]

    V, T, C = config.vocab_size, config.block_size, config.n_embd
    if config.model == "bigram":
        yield "wte.weight", (V, V)
        return
    yield "wte.weight", (V, C)
    if config.positions == "learned" and config.model == "gpt":
        yield "wpe.weight", (T, C)
    D, gates = C // config.n_head, 2 if config.model == "llama" else 1
    for i in range(config.n_layer):
        yield from layer(f"h.{i}.ln_1", C)
        yield from layer(f"h.{i}.attn.c_attn", (config.n_head + 2 * config.kv_heads) * D, C)
        yield from layer(f"h.{i}.attn.c_proj", C, C)
        if config.qk_norm:
            yield f"h.{i}.attn.q_norm.weight", (D,)
            yield f"h.{i}.attn.k_norm.weight", (D,)
        yield from layer(f"h.{i}.ln_2", C)
        yield from layer(f"h.{i}.mlp.c_fc", gates * config.mlp_width, C)
        yield from layer(f"h.{i}.mlp.c_proj", C, config.mlp_width)
    yield from layer("ln_f", C)
    for name, shape in layer("lm_head", V, C, bias=config.head_bias):
        if name == "lm_head.bias" or not config.tied_head:
            yield name, shape


def require_shapes(config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Refuse weights that are not those of a model with this config. The time depends on the number of entries, not on the config.

    Raises:
        WeightsError: with the names that are missing, too many, or of another type or shape.
    """
    _require_possible_positions(config)
    expected = dict(itertools.islice(weight_shapes(config), 2 * len(entries) + 8))  # a config may ask for a thousand million layers
    if config.tied_head and "lm_head.weight" in entries:  # the embedding's weight, stored twice
        expected["lm_head.weight"] = expected.get("wte.weight", ())
    missing = [name for name in expected if name not in entries]
    unknown = [name for name in entries if name not in expected]
    misshapen = [
        f"{name} is {entry.kind} {entry.shape} and should be {expected[name]}"
        + ("" if entry.kind in FLOATS else f" of {', '.join(FLOATS)}")
        for name, entry in entries.items()
        if name in expected and (entry.shape != expected[name] or entry.kind not in FLOATS)
    ]
    if problems := describe_mismatch(missing, unknown, misshapen):
        raise WeightsError(f"do not fit its config: {problems}")


def require_enough_numbers(config: GPTConfig, entries: Mapping[str, Entry]) -> None:
    """Refuse a config that asks for more numbers than ``entries`` hold, whatever their names are.

    Raises:
        WeightsError: with both counts.
    """
    _require_possible_positions(config)
    held = sum(_size(entry.shape) for entry in entries.values())
    asked = 0
    for number, (_, shape) in enumerate(weight_shapes(config), 1):
        asked += _size(shape)
        if number > len(entries) or asked > held:
            raise WeightsError(
                f"do not fit its config: it asks for more than the {held:,} numbers in {len(entries):,} tensors that are there"
            )


def describe_mismatch(missing: list[str], unknown: list[str], misshapen: list[str]) -> str:
    """What is wrong with a set of weights, as a clause; empty if nothing is."""
    problems = [f"{shorten(names)} {verb}" for names, verb in ((missing, "missing"), (unknown, "too many")) if names]
    return "; ".join(problems + ([shorten(misshapen)] if misshapen else []))


def shorten(names: list[str], shown: int = 4) -> str:
    """The first ``shown`` of ``names``, and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def assign_weights(model: Any, weights: Mapping[str, np.ndarray]) -> Any:
    """Let ``model``, which is on the CPU, have ``weights`` for its own; return it. Only another dtype or order in memory is copied.

    A weight that is not there stays as it is: a tied head has none of its own.
    """
    own = model.state_dict()
    arrays = {name: np.asarray(array, own[name].dtype, order="C") for name, array in weights.items()}
    model.load_state_dict(arrays, strict=False, assign=True)
    return model


def with_checksum(record: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """``record``, which is fit for JSON, with the SHA-256 of itself and ``weights`` added."""
    return {**record, CHECKSUM: _digest(record, weights)}


def checksum_differs(record: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> bool:
    """Whether record or weights are not those that `with_checksum` was given. Files of early versions have no checksum: then False."""
    return CHECKSUM in record and record[CHECKSUM] != _digest({k: v for k, v in record.items() if k != CHECKSUM}, weights)


def _digest(record: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, array in sorted(weights.items()):
        array = array.astype(np.float32) if array.dtype.name == "bfloat16" else array  # as `WeightsFile.read` returns it
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _require_possible_positions(config: GPTConfig) -> None:
    """Raise WeightsError for a table of sinusoidal positions that is larger than any model's."""
    if config.positions == "sinusoidal" and config.block_size * config.n_embd > _MAX_SINUSOIDS:
        raise WeightsError(
            f"do not fit its config: {config.block_size:,} positions of {config.n_embd:,} numbers are more than {_MAX_SINUSOIDS:,} in all"
        )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of two entries with one name, programs differ in which they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise WeightsError(f"is damaged: its header has {twice!r} twice")
    return found


def _describe_other_content(start: bytes, size: int, remedy: str) -> str:
    """What a file that is not a complete safetensors file seems to be."""
    if not start:
        return f"is empty: it was not written to its end; {remedy}"
    if is_pickle(start):
        return "is a pickle or a torch file, which can run code when it is opened and is therefore not read; convert it to safetensors"
    if start[8:9] == b"{" and size < 8 + int.from_bytes(start[:8], "little"):
        return f"is cut short, within its header; {remedy}"
    if start[8:9] == b"{":
        return f"is damaged or cut short; {remedy}"
    return "is not a safetensors file; name a folder that python -m gpt.train or transformers has written"
