"""GGUF files with a fault each: cut, with other bits, lengths, counts, types or texts; and what reading one of them comes to."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from gpt.checkpoints.gguf_file import GgufFile
from gpt.checkpoints.gguf_model import chat_template
from gpt.checkpoints.loading import load_model
from gpt.errors import UserError
from gpt.generation.jinja_template import JinjaTemplate

# Of counts, lengths, types, shapes and offsets: small ones, and those at which an integer of 32 or 64 bits ends.
_NUMBERS = [0, 1, 2, 3, 7, 8, 9, 12, 13, 16, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
_CHAT = [{"role": "user", "content": "Hi"}]


class _Fields(GgufFile):
    """Notes where each field of the header is, and how long it is."""

    def _take(self, count: int) -> bytes:
        self.fields = [*getattr(self, "fields", ()), (self._place, count)]
        return super()._take(count)


class Mutator:
    """``mutate(rng)`` gives the bytes of ``path`` with one fault, and the name of its kind."""

    def __init__(self, path: Path) -> None:
        self.content, header = path.read_bytes(), _Fields(path)
        self.fields, self.end_of_header = header.fields, header._numbers
        self.kinds: dict[str, Callable[[np.random.Generator], bytes]] = {
            "cut": self._cut, "bits of the header": self._bits, "number": self._number, "huge counts": self._counts, "text": self._text,
            "removed": self._removed, "inserted": self._inserted, "weights": self._weights,
        }  # fmt: skip

    def mutate(self, rng: np.random.Generator) -> tuple[str, bytes]:
        kind = list(self.kinds)[rng.integers(len(self.kinds))]
        return kind, self.kinds[kind](rng)

    def _cut(self, rng: np.random.Generator) -> bytes:
        return self.content[: rng.integers(len(self.content) if rng.random() < 0.3 else self.end_of_header)]

    def _bits(self, rng: np.random.Generator) -> bytes:
        changed = bytearray(self.content)
        for place in rng.integers(self.end_of_header, size=rng.integers(1, 9)):
            changed[place] ^= 1 << rng.integers(8)
        return bytes(changed)

    def _number(self, rng: np.random.Generator) -> bytes:
        """A length, a type, a shape or an offset becomes another number."""
        places = [(place, size) for place, size in self.fields if size in (4, 8)]
        place, size = places[rng.integers(len(places))]
        old = int.from_bytes(self.content[place : place + size], "little")
        choices = [number for number in (*_NUMBERS, old - 1, old + 1, 2 * old) if 0 <= number < 256**size and number != old]
        new = choices[rng.integers(len(choices))]
        return self._with(place, new.to_bytes(size, "little"), size)

    def _counts(self, rng: np.random.Generator) -> bytes:
        """How many tensors, or how many entries of metadata, there are."""
        number = _NUMBERS[rng.integers(len(_NUMBERS))]
        return self._with(8 if rng.random() < 0.5 else 16, struct.pack("<Q", number), 8)

    def _text(self, rng: np.random.Generator) -> bytes:
        """A name or a text becomes another one of the same length, or of no length."""
        places = [(place, size) for place, size in self.fields if size not in (1, 2, 4, 8)]
        place, size = places[rng.integers(len(places))]
        other, its_size = places[rng.integers(len(places))]
        return self._with(
            place, self.content[other : other + min(size, its_size)].ljust(size, b"\xff" if rng.random() < 0.2 else b"x"), size
        )

    def _removed(self, rng: np.random.Generator) -> bytes:
        place, length = rng.integers(self.end_of_header), rng.integers(1, 64)
        return self.content[:place] + self.content[place + length :]

    def _inserted(self, rng: np.random.Generator) -> bytes:
        place, length = rng.integers(self.end_of_header), rng.integers(1, 64)
        return self.content[:place] + rng.bytes(int(length)) + self.content[place:]

    def _weights(self, rng: np.random.Generator) -> bytes:
        place = rng.integers(self.end_of_header, len(self.content) - 64)
        return self._with(int(place), rng.bytes(64), 64)

    def _with(self, place: int, new: bytes, length: int) -> bytes:
        return self.content[:place] + new + self.content[place + length :]


def read_everything(path: Path) -> tuple[str, int]:
    """Open a file as the programs do, with its template: the message if it is refused, else "", and the largest memory in bytes.

    Raises:
        AssertionError: for a message that is no single sentence.
        every other exception: a fault of the reader.
    """
    tracemalloc.start()
    said = ""
    try:
        load_model(path)
        if found := chat_template(path):
            JinjaTemplate(found.source, found.special_tokens, **found.names).prompt(_CHAT)
    except UserError as error:
        said = str(error)
        assert "\n" not in said, said
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return said, peak
