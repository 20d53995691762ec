"""A PEFT adapter written tensor by tensor, so that it is never in memory as a whole.

The file is the one that :func:`intarsia_client.peft_files.encode_adapter` makes of the same
adapter, byte for byte: its digest does not tell how it was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from intarsia_client.files import file_digest, write_bytes
from intarsia_client.opened import ModuleLayout, module_layouts
from intarsia_client.peft_configuration import CONFIGURATION_FILE, adapter_configuration
from intarsia_client.peft_files import TENSORS_FILE, encoded_digest
from intarsia_client.peft_tensors import tensor_key
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

_ALIGNMENT = 8
_FLOAT_BYTES = 4
_COPIED_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class _Place:
    """A tensor's shape and the position of its first byte after the header."""

    shape: tuple[int, ...]
    begin: int


class AdapterWriter:
    """Writes an adapter's two files into a folder, its tensors in any order.

    Several threads may write different tensors.

    Args:
        folder: An existing folder; best one of :func:`intarsia_client.files.atomic_directory`,
            which also flushes it.
        like: An adapter of the same base and task; its modules are not read. Its head, which may
            be read lazily, is what is written.
        layouts: From each module to the largest rank that it may have, its shape and its scaling.

    Raises:
        OSError: If the disk is full: all the room is taken at once.
    """

    def __init__(self, folder: Path, like: Adapter, layouts: Mapping[str, ModuleLayout]) -> None:
        self._folder = folder
        self._like = like
        self._layouts = {name: _at_least_rank_one(layout) for name, layout in layouts.items()}
        self._ranks = {name: layout.rank for name, layout in self._layouts.items()}
        self._places, size = _places(self._layouts, like.dense)
        self._header = _header(self._places)
        self._descriptor = os.open(
            folder / TENSORS_FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
        )
        try:
            _take_room(self._descriptor, len(self._header) + size)
            self._write(self._header, 0)
            for name, values in like.dense.items():
                self._write_values(tensor_key(name), values, 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> AdapterWriter:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; nothing more can be written."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write_module(self, name: str, a: FloatArray, b: FloatArray) -> None:
        """Write a module's factors, of the rank that was planned or a smaller one.

        Args:
            name: The module.
            a: Shape (rank, d_in).
            b: Shape (d_out, rank).
        """
        rank = len(a)
        if rank == 0:
            # PEFT has no rank 0.
            a = np.zeros((1, a.shape[1]), dtype=np.float32)
            b = np.zeros((len(b), 1), dtype=np.float32)
        self._ranks[name] = max(rank, 1)
        self._write_values(_key(name, "A"), a, 0)
        self._write_values(_key(name, "B"), b, 0)

    def write_rows(self, name: str, side: str, values: FloatArray, first_row: int) -> None:
        """Write rows of one factor of the rank that was planned.

        Args:
            name: The module.
            side: ``"A"`` or ``"B"``.
            values: The rows, float32.
            first_row: The first one's number.
        """
        self._write_values(_key(name, side), values, first_row)

    @property
    def rank(self) -> int:
        """The largest rank of a module so far."""
        return max(self._ranks.values())

    def finish(self) -> str:
        """Write what is left to write.

        Returns:
            The adapter's digest.

        Raises:
            OSError: If the disk is full.
            StorageError: Likewise.
        """
        layouts = {
            name: replace(layout, rank=self._ranks[name]) for name, layout in self._layouts.items()
        }
        if layouts != self._layouts:
            self._close_gaps(layouts)
        self.close()
        configuration = _configuration(self._like, layouts)
        write_bytes(self._folder / CONFIGURATION_FILE, configuration)
        return encoded_digest(configuration, file_digest(self._folder / TENSORS_FILE))

    def _close_gaps(self, layouts: Mapping[str, ModuleLayout]) -> None:
        """Move tensors together where some came out smaller than planned.

        Each one moves down: the header is no longer than it was, nor is what stands before it.
        """
        places, size = _places(layouts, self._like.dense)
        header = _header(places)
        for key, place in places.items():
            source = len(self._header) + self._places[key].begin
            target = len(header) + place.begin
            left = _FLOAT_BYTES * math.prod(place.shape)
            while left and source != target:
                piece = os.pread(self._descriptor, min(left, _COPIED_AT_ONCE), source)
                self._write(piece, target)
                source, target, left = source + len(piece), target + len(piece), left - len(piece)
        self._write(header, 0)
        os.ftruncate(self._descriptor, len(header) + size)

    def _write_values(self, key: str, values: FloatArray, first_row: int) -> None:
        row = _FLOAT_BYTES * math.prod(values.shape[1:])
        data = np.ascontiguousarray(values, dtype="<f4")
        if data.size:
            begin = len(self._header) + self._places[key].begin + first_row * row
            self._write(data.data.cast("B"), begin)

    def _write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while len(view):
            count = os.pwrite(self._descriptor, view, at)
            view, at = view[count:], at + count


def opened_digest(adapter: Adapter) -> str:
    """Digest of an adapter whose modules are read one at a time.

    Args:
        adapter: The adapter, opened or in memory.

    Returns:
        The same as :func:`intarsia_client.peft_files.adapter_digest`.

    Raises:
        InputError: If a number is not finite.
        IntegrityError: If its file is not what it was.
    """
    layouts = module_layouts(adapter)
    written = {name: _at_least_rank_one(layout) for name, layout in layouts.items()}
    places, _ = _places(written, adapter.dense)
    hasher = hashlib.sha256(_header(places))
    keys = {_key(name, side): (name, side) for name in layouts for side in "AB"}
    heads = {tensor_key(name): name for name in adapter.dense}
    factors = None
    for key, place in places.items():
        if key in heads:
            values = adapter.dense[heads[key]]
        else:
            name, side = keys[key]
            # A module's A comes right before its B.
            factors = adapter.modules[name] if side == "A" or factors is None else factors
            values = factors.a if side == "A" else factors.b
        held = values if values.size else np.zeros(place.shape, dtype=np.float32)
        hasher.update(np.ascontiguousarray(held, dtype="<f4").data)
    return encoded_digest(_configuration(adapter, written), f"sha256:{hasher.hexdigest()}")


def _configuration(like: Adapter, layouts: Mapping[str, ModuleLayout]) -> bytes:
    modules = {name: _empty_factors(layout) for name, layout in layouts.items()}
    settings = adapter_configuration(like, modules)
    return json.dumps(settings, indent=2, sort_keys=True).encode()


def _take_room(descriptor: int, size: int) -> None:
    # Not every system can; the disk is then found full on the way.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def _key(name: str, side: str) -> str:
    return tensor_key(f"{name}.lora_{side}.weight")


def _places(
    layouts: Mapping[str, ModuleLayout], dense: Mapping[str, FloatArray]
) -> tuple[dict[str, _Place], int]:
    """All tensors in the order of their keys, as safetensors puts those of one type."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layout in layouts.items():
        shapes[_key(name, "A")] = (layout.rank, layout.shape[1])
        shapes[_key(name, "B")] = (layout.shape[0], layout.rank)
    for name in dense:
        shapes[tensor_key(name)] = dense[name].shape
    places, begin = {}, 0
    for key, shape in sorted(shapes.items()):
        places[key] = _Place(shape, begin)
        begin += _FLOAT_BYTES * math.prod(shape)
    return places, begin


def _header(places: Mapping[str, _Place]) -> bytes:
    """The header as safetensors writes it: this order of fields, no spaces but at the end."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for key, place in places.items():
        end = place.begin + _FLOAT_BYTES * math.prod(place.shape)
        entries[key] = {
            "dtype": "F32",
            "shape": list(place.shape),
            "data_offsets": [place.begin, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _at_least_rank_one(layout: ModuleLayout) -> ModuleLayout:
    return layout if layout.rank else replace(layout, rank=1, scaling=1.0)


def _empty_factors(layout: ModuleLayout) -> LowRankFactors:
    """Factors of a layout's shapes that take no memory."""
    zero = np.zeros((1, 1), dtype=np.float32)
    return LowRankFactors(
        a=np.broadcast_to(zero, (layout.rank, layout.shape[1])),
        b=np.broadcast_to(zero, (layout.shape[0], layout.rank)),
        scaling=layout.scaling,
    )
