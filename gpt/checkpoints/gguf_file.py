"""GGUF files: the format of llama.cpp, in which one file holds weights of a few bits, the tokenizer and the chat template.

    4 bytes         GGUF
    4, 8, 8         the version; how many tensors and how many entries of metadata follow
    metadata        key, type, value: numbers, text, and lists of them
    tensors         name, shape (the fastest axis first), type, offset
    padding         up to a multiple of general.alignment (32)
    the numbers     quantised in blocks: Q4_1 has 32 numbers of 4 bits, and a scale and a smallest value in float16

The header is read here, because every length in it is a promise that the size of the file must allow: a file of 100 bytes can claim a list
of 2⁶⁰ entries. The numbers are widened by ggml-org's package `gguf` (``pip install 'tensorlite[gguf]'``), whose dequantisation defines what
the bits mean.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib
import math
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpt.checkpoints.weights import CheckpointError, WeightsError

MAGIC = b"GGUF"
KINDS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 12: "Q4_K", 14: "Q6_K", 30: "BF16",
}  # fmt: skip
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_MOST_AXES = 4  # in ggml
_AT_ONCE = 2**20  # numbers: the library needs several times their memory while it widens them


class GgufTensor(NamedTuple):
    """What the header says about one tensor.

    Attributes:
        kind: the number of its type; `KINDS` has the names of those that can be read.
        shape: as NumPy has it, the fastest axis last.
        offset: from the beginning of the numbers.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int


class GgufFile:
    """The header of a GGUF file; tensors are read one by one.

    Attributes:
        metadata: numbers, text and lists by key; lists of numbers are arrays.
        tensors: by name; none of them is read yet.

    Raises:
        CheckpointError: if the file cannot be read, is cut short or damaged, or is of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self._bytes = np.memmap(path, np.uint8, mode="r")
        except (OSError, ValueError) as error:  # ValueError: an empty file
            raise CheckpointError(f"{path} cannot be read: {error}.") from error
        try:
            self._read_header()
        except WeightsError as error:
            raise CheckpointError(f"{path} {error}.") from error

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32, as ggml-org's library widens it.

        Raises:
            WeightsError: for a type that is not known, or numbers that are not in the file.
            CheckpointError: without the package gguf.
        """
        kind, shape, offset = self.tensors[name]
        if kind not in KINDS:
            raise WeightsError(f"cannot be used: {name} has the type number {kind}, and only {', '.join(KINDS.values())} are known")
        gguf = _library()
        block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        if shape[-1] % block:
            raise WeightsError(f"is damaged: the rows of {name} have {shape[-1]} numbers, which are no blocks of {block} ({KINDS[kind]})")
        size = math.prod(shape) // block * block_bytes
        begin = self._numbers + offset
        if begin + size > len(self._bytes):
            raise WeightsError(f"is cut short: {name} ends at byte {begin + size:,} of {len(self._bytes):,}")
        raw = np.array(self._bytes[begin : begin + size])
        if KINDS[kind] in ("F32", "F16"):
            return raw.view("<f4" if kind == 0 else "<f2").reshape(shape).astype(np.float32)
        numbers = np.empty((math.prod(shape[:-1]), shape[-1]), np.float32)
        rows = raw.reshape(len(numbers), shape[-1] // block * block_bytes)
        step = max(1, _AT_ONCE // max(1, shape[-1]))
        with np.errstate(all="ignore"):  # in a damaged file a scale may be inf
            for start in range(0, len(rows), step):
                numbers[start : start + step] = gguf.dequantize(rows[start : start + step], gguf.GGMLQuantizationType(kind))
        return numbers.reshape(shape)

    # --- the header ---

    def _read_header(self) -> None:
        if self._bytes[:4].tobytes() != MAGIC:
            raise WeightsError("is not a GGUF file: it does not begin with GGUF")
        self._place = 4
        version = self._number("I")
        if version not in _VERSIONS:
            raise WeightsError(f"has version {version} of the format, and only {', '.join(map(str, _VERSIONS))} are known")
        tensors, entries = self._number("Q"), self._number("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(entries):  # a number that is too large ends where the file does
            key = self._text()
            if key in self.metadata:
                raise WeightsError(f"is damaged: its metadata has {key!r} twice")
            self.metadata[key] = self._value(self._number("I"))
        self.tensors: dict[str, GgufTensor] = {}
        for _ in range(tensors):
            name = self._text()
            if name in self.tensors:
                raise WeightsError(f"is damaged: it has the tensor {name!r} twice")
            self.tensors[name] = self._tensor(name)
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise WeightsError(f"is damaged: its alignment is {alignment!r}")
        self._numbers = -(-self._place // alignment) * alignment

    def _tensor(self, name: str) -> GgufTensor:
        axes = self._number("I")
        if not 0 < axes <= _MOST_AXES:
            raise WeightsError(f"is damaged: {name} has {axes} axes, and 1 to {_MOST_AXES} are possible")
        shape = tuple(self._number("Q") for _ in range(axes))[::-1]
        if math.prod(shape) > 256 * len(self._bytes):  # 1 bit a number is the least
            raise WeightsError(f"is damaged: {name} has the shape {shape}, which is more than the file can hold")
        return GgufTensor(self._number("I"), shape, self._number("Q"))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _TEXT:
            return self._text()
        if kind == _LIST:
            of, length = self._number("I"), self._number("Q")
            if of == _TEXT:
                self._require(8 * length)
                return [self._text() for _ in range(length)]
            if of in _SCALARS:
                return np.frombuffer(self._take(length * struct.calcsize("<" + _SCALARS[of])), "<" + _SCALARS[of])
            raise WeightsError(f"is damaged: a list in its metadata has entries of the type {of}")
        raise WeightsError(f"is damaged: its metadata has a value of the type {kind}")

    def _number(self, code: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]

    def _text(self) -> str:
        raw = self._take(self._number("Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise WeightsError("is damaged: a text in its header is not UTF-8") from error

    def _take(self, count: int) -> bytes:
        self._require(count)
        self._place += count
        return self._bytes[self._place - count : self._place].tobytes()

    def _require(self, count: int) -> None:
        if count > len(self._bytes) - self._place:
            raise WeightsError("is cut short or damaged: its header promises more than there is")


def is_gguf(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a file that begins as a GGUF file does."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def _library() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise CheckpointError("to read a GGUF file needs the package gguf: pip install 'tensorlite[gguf]'.") from error
