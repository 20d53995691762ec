"""Keys and values of the running rows: one slot a row, in tensors that are made once.

Rows of unequal length lie side by side. Each writes at its own position, sees its own past through
an explicit mask, and leaves a slot full of zeros behind. Nothing of a slot is copied but whole
pieces of prompts, for :mod:`intarsia_platform.serving.prefix_cache`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from intarsia_client.errors import InputError
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

BLOCK = 64
"""Positions come in blocks of this many; see :mod:`intarsia_platform.serving.row_attention`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CacheStep:
    """Where one call of the model writes, and what it sees.

    Args:
        first: First slot of the call's rows.
        rows: Rows of the call; row ``i`` is slot ``first + i``.
        visible: Positions that the call sees of every slot, masked where a row has fewer.
        start: First position to write, for several tokens of one row; None for one token a row.
        writing: Which rows write, shape (writing,), int64; the others are there to keep a shape.
        positions: Where each of them writes, shape (writing,), int64.
    """

    first: int
    rows: int
    visible: int
    start: int | None = None
    writing: Tensor | None = None
    positions: Tensor | None = None


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each (slots, heads, capacity, width)."""

    is_sliding = False

    def __init__(self, owner: SlotCache) -> None:
        super().__init__()
        self._owner = owner

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = self._owner.zeros(key_states)
        self.values = self._owner.zeros(value_states)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the step's keys and values, shape (rows, heads, tokens, width); see its past."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        step = self._owner.step
        return _write(self.keys, key_states, step), _write(self.values, value_states, step)

    def get_seq_length(self) -> int:
        return self._owner.step.start or 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.step.visible, 0

    def get_max_length(self) -> int:
        return self._owner.capacity


def _write(store: Tensor, new: Tensor, step: CacheStep) -> Tensor:
    rows = store[step.first : step.first + step.rows]
    if step.start is not None:
        rows[:, :, step.start : step.start + new.shape[2]] = new
    elif step.writing is not None:
        rows[step.writing, :, step.positions] = new[step.writing, :, 0]
    return rows[:, :, : step.visible]


class SlotCache(Cache):  # type: ignore[misc]
    """Keys and values of several rows, for transformers' models with full causal attention.

    Formal guarantee: what a row sees are its own keys and values at positions below its own
    length, and zeros. A released slot holds zeros only, whatever was in it, and is handed out
    again after that.

    Args:
        layers: The model's layers.
        slots: Rows at most.
        capacity: Positions of a row at most; rounded up to whole blocks.

    Raises:
        InputError: If a number is below 1.
    """

    def __init__(self, *, layers: int, slots: int, capacity: int) -> None:
        """Take no memory yet: the first call tells widths and precision."""
        if min(layers, slots, capacity) < 1:
            raise InputError("cache", f"{layers}, {slots}, {capacity}", "use numbers above 0")
        self.slots = slots
        self.capacity = -(-capacity // BLOCK) * BLOCK
        self.step = CacheStep(first=0, rows=0, visible=0)
        self._free = list(range(slots))
        # What each taken slot holds, and up to where a call may have written.
        self._lengths: dict[int, int] = {}
        self._written: dict[int, int] = {}
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    @property
    def size(self) -> int:
        """Bytes of the tensors."""
        return sum(one.numel() * one.element_size() for one in self._stores())

    def zeros(self, like: Tensor) -> Tensor:
        """A layer's tensor, for keys or values of shape (rows, heads, tokens, width)."""
        shape = (self.slots, like.shape[1], self.capacity, like.shape[3])
        # An ordinary tensor, which may be written to in and outside inference mode.
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def acquire(self) -> int:
        """Take the lowest free slot.

        Returns:
            The slot.

        Raises:
            InputError: If all are taken.
        """
        if not self._free:
            raise InputError("cache", f"{self.slots} rows", "wait until a row has ended")
        slot = heapq.heappop(self._free)
        self._lengths[slot] = self._written[slot] = 0
        return slot

    def release(self, slot: int) -> None:
        """Zero a slot and take it back; again does nothing.

        Args:
            slot: The slot.
        """
        if slot not in self._lengths:
            return
        del self._lengths[slot]
        self._wipe(slot, self._written.pop(slot))
        heapq.heappush(self._free, slot)

    def length(self, slot: int) -> int:
        """Positions that a taken slot holds."""
        return self._lengths[slot]

    def bytes_of(self, positions: int) -> int:
        """Bytes that some positions of one slot take."""
        return self.size // (self.slots * self.capacity) * positions

    def copy_out(self, slot: int, begin: int, end: int) -> tuple[Tensor, ...]:
        """Copies of what a taken slot holds at some positions.

        Args:
            slot: The slot.
            begin: The first position.
            end: The one after the last, at most the slot's length.

        Returns:
            Keys and values of each layer, shape (heads, positions, width).
        """
        # Ordinary tensors, which may be written to in and outside inference mode.
        with torch.inference_mode(False), torch.no_grad():
            return tuple(store[slot, :, begin:end].clone() for store in self._stores())

    def copy_in(self, slot: int, parts: Sequence[Tensor]) -> None:
        """Go on with a taken slot by copies of the same positions of another.

        Args:
            slot: The slot; what is copied must be what :meth:`copy_out` gave from its length on.
            parts: What it gave.

        Raises:
            InputError: If they do not fit.
        """
        begin = self._lengths[slot]
        end = begin + parts[0].shape[1]
        self._reserve(slot, end)
        with torch.no_grad():
            for store, part in zip(self._stores(), parts, strict=True):
                store[slot, :, begin:end] = part
        self._lengths[slot] = end

    def begin_prompt(self, slot: int, tokens: int) -> CacheStep:
        """Prepare a call with several tokens of one row.

        Args:
            slot: A taken slot.
            tokens: How many.

        Returns:
            The step; :meth:`finish` makes what it wrote part of the row.

        Raises:
            InputError: If they do not fit.
        """
        start = self._lengths[slot]
        self._reserve(slot, start + tokens)
        self.step = CacheStep(first=slot, rows=1, visible=start + tokens, start=start)
        return self.step

    def begin_tokens(
        self, slots: Sequence[int], *, first: int, rows: int, visible: int, device: torch.device
    ) -> CacheStep:
        """Prepare a call with one token a row.

        Args:
            slots: The slots that write a token, all in ``range(first, first + rows)``.
            first: As :class:`CacheStep`.
            rows: As :class:`CacheStep`.
            visible: As :class:`CacheStep`; above the length of each of ``slots``.
            device: Where the model is.

        Returns:
            The step.

        Raises:
            InputError: If a row has no room.
        """
        for slot in slots:
            self._reserve(slot, self._lengths[slot] + 1)
        self.step = CacheStep(
            first=first,
            rows=rows,
            visible=visible,
            writing=torch.tensor([slot - first for slot in slots], device=device),
            positions=torch.tensor([self._lengths[slot] for slot in slots], device=device),
        )
        return self.step

    def finish(self, slots: Sequence[int], tokens: int) -> None:
        """Count what the last call wrote.

        Args:
            slots: The slots that wrote.
            tokens: How many tokens each.
        """
        for slot in slots:
            self._lengths[slot] += tokens

    def _reserve(self, slot: int, length: int) -> None:
        if length > self.capacity:
            raise InputError("row", f"{length} tokens", f"use at most {self.capacity}")
        # Noted before the call, so that a call that fails half-way leaves nothing behind.
        self._written[slot] = max(self._written[slot], length)

    def _wipe(self, slot: int, length: int) -> None:
        for store in self._stores():
            store[slot, :, :length].zero_()

    def _stores(self) -> list[Tensor]:
        made = (layer for layer in self.layers if layer.is_initialized)
        return [store for layer in made for store in (layer.keys, layer.values)]
