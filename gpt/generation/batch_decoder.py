"""The model for the next token of many texts at once: one cache of keys and values, with a slot for each text.

    logits = decoder({0: context, 3: other})        # (2, V), in the order of the slots

Texts of any lengths go through the model together, and may come and go between two calls. The new rows of all of them lie one below the
other, so each weight is read once for all texts; only attention looks at each text by itself. Neighbouring slots that have one new row,
as all have but for a prompt, share a product for attention; what is shorter than the longest of them is masked.

A product of one row and a product of many add in different orders, so the logits of a text differ in their last bits with the texts beside
it. `rounding` bounds the difference, as it does for `Decoder`: where it could change a choice, the caller evaluates the model on that text
alone, and so every text is the one written alone, under every BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gpt.generation.decoder import FoldedGPT
from gpt.model import LanguageModel
from tensorlite.backend import Array


class _Group(NamedTuple):
    """Slots whose attention is one product: neighbours with a new row each, or a single slot with several.

    Attributes:
        rows: of the new rows of all texts, those of this group.
        end: the length of the longest text.
        hidden: see `FoldedGPT._attend`.
    """

    slots: slice
    rows: slice
    end: int
    hidden: Array | None


class BatchDecoder(FoldedGPT):
    """``decoder(contexts)`` is the model's logits after each context: a slot for each, 0 to slots - 1, -> (n, V).

    As with `Decoder`, a context is given whole: the common prefix with what its slot has seen is not computed again.

    Raises:
        TypeError: for a model that is not supported, see `gpt.generation.decoder.supports`.
    """

    def __init__(self, model: LanguageModel, slots: int) -> None:
        self.slots = slots
        super().__init__(model)

    def reset(self) -> None:
        """Empty all slots, and take the weights that the model has now."""
        super().reset()
        self._ids = [np.empty(0, np.int64) for _ in range(self.slots)]
        self._allocate(self._larger_room(0, 0))

    def common_prefix(self, slot: int, context: np.ndarray) -> int:
        """How many ids at the start of ``context`` are those that ``slot`` has seen."""
        seen = self._ids[slot]
        shared = min(len(seen), len(context))
        different = np.flatnonzero(seen[:shared] != context[:shared])
        return int(different[0]) if len(different) else shared

    def forget(self, slot: int) -> None:
        """Empty a slot."""
        self._truncate(slot, 0)

    def __call__(self, contexts: Mapping[int, np.ndarray]) -> Array:
        """The logits that follow the last id of each context, in the order of the slots.

        Raises:
            ValueError: for no ids, or more than block_size.
            IndexError: for an id that is not in the vocabulary, or no such slot.
        """
        slots = sorted(contexts)
        for slot in slots:
            self._check(slot, contexts[slot])
        longest = max((len(contexts[slot]) for slot in slots), default=0)
        if longest > self._room:
            self._allocate(self._larger_room(self._room, longest))
        known = [min(self.common_prefix(slot, contexts[slot]), len(contexts[slot]) - 1) for slot in slots]
        for slot, start in zip(slots, known, strict=True):
            self._truncate(slot, start)  # if the step is interrupted, what is half written does not count
        logits = self._advance(slots, known, [contexts[slot] for slot in slots])
        for slot in slots:
            self._ids[slot] = contexts[slot].copy()
        return logits

    @property
    def _room(self) -> int:
        """For how many tokens of each text there is memory."""
        return int(self._cache.shape[2])

    def _allocate(self, room: int) -> None:
        """A cache for texts of up to ``room`` tokens, with the keys and values of those that there are."""
        config = self.config
        L, KV, D = config.n_layer, config.kv_heads, config.n_embd // config.n_head
        # Beyond the end of its text a slot holds zeros: hidden keys and values are then finite, whatever the slot has seen before.
        cache = self._xp.zeros((L, self.slots, room, 2 * KV * D), self._wte.dtype)
        for slot, ids in enumerate(self._ids):
            if len(ids):
                cache[:, slot, : len(ids)] = self._cache[:, slot, : len(ids)]
        self._cache: Array = cache
        k, v = cache.reshape(L, self.slots, room, 2, KV, D).transpose(3, 0, 1, 4, 2, 5)
        self._keys, self._values = k.swapaxes(-1, -2), v  # views: (L, slots, KV, D, room), (L, slots, KV, room, D)

    def _check(self, slot: int, context: np.ndarray) -> None:
        if not 0 <= slot < self.slots:
            raise IndexError(f"slots go from 0 to {self.slots - 1}, got {slot}.")
        if not 0 < len(context) <= self.config.block_size:
            raise ValueError(f"a context has 1 to block_size ({self.config.block_size}) ids, got {len(context)}.")
        if context.min() < 0 or context.max() >= self.config.vocab_size:
            raise IndexError(f"ids go from 0 to {self.config.vocab_size - 1}, got {context.min()} to {context.max()}.")

    def _truncate(self, slot: int, length: int) -> None:
        self._cache[:, slot, length : len(self._ids[slot])] = 0
        self._ids[slot] = self._ids[slot][:length]

    def _advance(self, slots: list[int], known: list[int], contexts: list[np.ndarray]) -> Array:
        """The logits after each context, of which the first ``known`` ids are in the cache."""
        asarray = self._device.asarray
        counts = [len(context) - start for context, start in zip(contexts, known, strict=True)]
        groups = list(self._groups(slots, counts, [len(context) for context in contexts]))
        ids = np.concatenate([context[start:] for context, start in zip(contexts, known, strict=True)])
        places = asarray(np.concatenate([np.arange(start, len(context)) for context, start in zip(contexts, known, strict=True)]))
        slot_of = asarray(np.repeat(slots, counts))
        ends = np.cumsum(counts) - 1  # the last row of each text: only it is used in the last block
        x = self._embed(asarray(ids), places)  # (N, C)
        for layer, block in enumerate(self._blocks):
            q, keys_values = self._project(x, block, places)
            self._cache[layer, slot_of, places] = keys_values
            is_last = layer == len(self._blocks) - 1
            y = self._xp.concatenate([self._attend_group(layer, group, q[group.rows], is_last) for group in groups])
            if is_last and len(x) > len(slots):
                x = x[asarray(ends)]
            x = self._add_block(x, y, block)
        return self._head(x)

    def _groups(self, slots: list[int], counts: list[int], lengths: list[int]) -> Iterator[_Group]:
        first, row = 0, 0
        while first < len(slots):
            last = first + 1
            if counts[first] == 1:
                while last < len(slots) and counts[last] == 1 and slots[last] == slots[last - 1] + 1:
                    last += 1
            own, end = np.array(lengths[first:last]), max(lengths[first:last])
            hidden = None
            if own.min() < end:
                mask = np.where(np.arange(end) < own[:, None], 0.0, -math.inf).astype(self._wte.dtype)
                hidden = self._device.asarray(mask[:, None, None])
            rows = sum(counts[first:last])
            yield _Group(slice(slots[first], slots[last - 1] + 1), slice(row, row + rows), end, hidden)
            first, row = last, row + rows

    def _attend_group(self, layer: int, group: _Group, queries: Array, last_only: bool) -> Array:
        """Attention for the rows of a group: (rows, C), or only for the last row of each of its texts."""
        B, H = group.slots.stop - group.slots.start, self.config.n_head
        q = queries.reshape(B, len(queries) // B, H, -1).transpose(0, 2, 1, 3)  # (B, H, T, D)
        if last_only:
            q = q[:, :, -1:]
        keys, values = self._keys[layer, group.slots, ..., : group.end], self._values[layer, group.slots, :, : group.end]
        return self._attend(q, keys, values, group.hidden)
