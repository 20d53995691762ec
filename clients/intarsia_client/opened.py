"""Adapters that stay on disk: each factor is read when it is asked for, and nothing is kept.

The tensor file is read by position into memory that the caller may reuse, so that no page of it
counts as the process's own (a memory map's pages would, and give them back costs as much as the
copy). Its header is checked against the file's size before anything is allocated for a tensor.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.peft_configuration import read_configuration
from intarsia_client.peft_files import MAX_TENSORS, adapter_files, configured_adapter
from intarsia_client.peft_tensors import (
    BYTES_OF,
    HEAD,
    check_finite,
    check_kind,
    check_sides,
    checked_scaling,
    float32_values,
    parameter_of,
    put_once,
)
from intarsia_client.tensor_file import MAX_HEADER_BYTES, split_tensor_file
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

_LENGTH_BYTES = 8
_LARGEST_SIDE = 1 << 40


@dataclass(frozen=True, kw_only=True, slots=True)
class ModuleLayout:
    """What a module's factors are before they are read.

    Args:
        rank: Their rank.
        shape: Shape (d_out, d_in) of the weight that they update.
        scaling: The factor before ``B @ A``.
    """

    rank: int
    shape: tuple[int, int]
    scaling: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Args:
        key: Its key.
        kind: The type of its numbers.
        shape: Its shape.
        begin: Its first byte's position.
    """

    key: str
    kind: str
    shape: tuple[int, ...]
    begin: int


class TensorReader:
    """Reads tensors of one file by position.

    Args:
        path: The file. It must not change as long as it is read; if it does, reading ends in an
            error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._mark = _mark(path.stat())
        except OSError as error:
            raise StorageError(f"reading {path}", error.strerror, "check the file") from error

    def tensors(self) -> dict[str, StoredTensor]:
        """Read the header.

        Returns:
            From each key to where its tensor lies.

        Raises:
            InputError: If there are too many tensors, or one of a type that is not read.
            IntegrityError: If the file is not whole or its header is not true.
            StorageError: If it cannot be read.
        """
        size = self._mark[2]
        beginning = bytearray(min(_LENGTH_BYTES, size))
        self._fill(memoryview(beginning), 0)
        length = int.from_bytes(beginning, "little")
        # No more than a header may have and the file has, whatever it claims.
        header_bytes = bytearray(min(_LENGTH_BYTES + min(length, MAX_HEADER_BYTES), size))
        self._fill(memoryview(header_bytes), 0)
        header, begin = split_tensor_file(self._path.name, bytes(header_bytes))
        header.pop("__metadata__", None)
        if len(header) > MAX_TENSORS:
            raise InputError(self._path.name, f"{len(header)} tensors", f"send {MAX_TENSORS}")
        return _placed_tensors(self._path.name, header, begin, size)

    def read(self, tensor: StoredTensor, out: FloatArray, *, first_row: int = 0) -> None:
        """Read rows of a tensor as float32; whether they are finite is not checked.

        Args:
            tensor: Which one.
            out: Where to put them, contiguous, shape (rows, ...) with the tensor's other sides.
            first_row: The first row.

        Raises:
            IntegrityError: If the file is not what it was, or ends.
            StorageError: If it cannot be read.
        """
        if out.size == 0:
            return
        row = math.prod(tensor.shape[1:])
        begin = tensor.begin + first_row * row * BYTES_OF[tensor.kind]
        if tensor.kind == "F32":
            self._fill(out.data.cast("B"), begin)
            return
        stored = memoryview(bytearray(out.size * BYTES_OF[tensor.kind]))
        self._fill(stored, begin)
        out[...] = float32_values(stored, tensor.kind).reshape(out.shape)

    def _fill(self, memory: memoryview, begin: int) -> None:
        try:
            # Opened each time, so that a thousand adapters need no thousand descriptors.
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _mark(os.fstat(descriptor)) != self._mark:
                    raise IntegrityError(
                        str(self._path), "changed while it was read", "read it again at rest"
                    )
                done = 0
                while done < len(memory):
                    count = os.preadv(descriptor, [memory[done:]], begin + done)
                    if not count:
                        raise IntegrityError(
                            str(self._path), f"ends at byte {begin + done}", "send it again, whole"
                        )
                    done += count
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StorageError(f"reading {self._path}", error.strerror, "check the disk") from error


class OpenedModules(Mapping[str, LowRankFactors]):
    """The modules of an adapter that stays on disk.

    Args:
        reader: The tensor file.
        places: From each module to its two tensors, A and B.
        layouts: From each module to what its factors are.
    """

    def __init__(
        self,
        reader: TensorReader,
        places: Mapping[str, tuple[StoredTensor, StoredTensor]],
        layouts: Mapping[str, ModuleLayout],
    ) -> None:
        self._reader = reader
        self._places = places
        self._layouts = layouts

    def __getitem__(self, name: str) -> LowRankFactors:
        """Read a module's factors.

        Raises:
            KeyError: If there is none of that name.
            InputError: If a number is not finite.
            IntegrityError: If the file is not what it was.
        """
        layout = self._layouts[name]
        a = np.empty((layout.rank, layout.shape[1]), dtype=np.float32)
        b = np.empty((layout.shape[0], layout.rank), dtype=np.float32)
        self.read_a(name, a)
        self.read_b(name, b)
        for place, values in zip(self._places[name], (a, b), strict=True):
            check_finite(place.key, values)
        return LowRankFactors(a=a, b=b, scaling=layout.scaling)

    def __iter__(self) -> Iterator[str]:
        """The names, in order; reads nothing."""
        return iter(self._layouts)

    def __len__(self) -> int:
        """How many there are; reads nothing."""
        return len(self._layouts)

    def __contains__(self, name: object) -> bool:
        """Whether there is one of that name; reads nothing."""
        return name in self._layouts

    @property
    def layouts(self) -> Mapping[str, ModuleLayout]:
        """What each module's factors are; reads nothing."""
        return self._layouts

    def read_a(self, name: str, out: FloatArray, *, first_row: int = 0) -> None:
        """Read rows of a module's A; whether they are finite is not checked.

        Args:
            name: The module.
            out: Where to put them, contiguous, shape (rows, d_in).
            first_row: The first row.

        Raises:
            IntegrityError: If the file is not what it was.
        """
        self._reader.read(self._places[name][0], out, first_row=first_row)

    def read_b(self, name: str, out: FloatArray, *, first_row: int = 0) -> None:
        """Read rows of a module's B; whether they are finite is not checked.

        Args:
            name: The module.
            out: Where to put them, contiguous, shape (rows, rank).
            first_row: The first row.

        Raises:
            IntegrityError: If the file is not what it was.
        """
        self._reader.read(self._places[name][1], out, first_row=first_row)


class _OpenedTensors(Mapping[str, FloatArray]):
    """A head that stays on disk."""

    def __init__(self, reader: TensorReader, places: Mapping[str, StoredTensor]) -> None:
        self._reader = reader
        self._places = places

    def __getitem__(self, name: str) -> FloatArray:
        place = self._places[name]
        values = np.empty(place.shape, dtype=np.float32)
        self._reader.read(place, values)
        check_finite(place.key, values)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places


def module_layouts(adapter: Adapter) -> dict[str, ModuleLayout]:
    """What the factors of an adapter's modules are.

    Args:
        adapter: The adapter; of an opened one nothing is read.

    Returns:
        From each module to its layout.
    """
    if isinstance(adapter.modules, OpenedModules):
        return dict(adapter.modules.layouts)
    return {
        name: ModuleLayout(rank=factors.rank, shape=factors.shape, scaling=factors.scaling)
        for name, factors in adapter.modules.items()
    }


def open_adapter(directory: Path) -> Adapter:
    """Open a PEFT adapter directory.

    Args:
        directory: The folder with the two files, which must not change as long as the adapter is
            in use.

    Returns:
        The adapter; its modules (:class:`OpenedModules`) and its head are read at each access.

    Raises:
        InputError: If a file is missing, too large, or of a kind that is refused.
        IntegrityError: If the tensor file is not whole or its header is not true.
    """
    configuration, tensors = adapter_files(directory)
    try:
        return open_files(configuration.read_bytes(), tensors)
    except (InputError, IntegrityError) as error:
        raise type(error)(f"{directory}: {error.thing}", error.value, error.remedy) from None


def open_files(configuration: bytes, tensors: Path) -> Adapter:
    """Open an adapter's two files, which may come from anyone.

    Args:
        configuration: Bytes of ``adapter_config.json``.
        tensors: Where ``adapter_model.safetensors`` lies.

    Returns:
        The adapter, every module's shapes consistent with its declared rank; whether a tensor is
        finite shows when it is read.

    Raises:
        InputError: If a variant is not bilinear or a declaration does not fit the tensors.
        IntegrityError: If the tensor file is not whole or its header is not true.
    """
    settings = read_configuration(configuration)
    reader = TensorReader(tensors)
    sides: dict[str, dict[str, StoredTensor]] = {}
    head: dict[str, StoredTensor] = {}
    for key, tensor in reader.tensors().items():
        side, name = parameter_of(key, settings)
        if side == HEAD:
            put_once(head, name, tensor, key)
        else:
            # Hundreds of adapters have the same names.
            put_once(sides.setdefault(sys.intern(name), {}), side, tensor, key)
    if not sides:
        raise InputError("adapter", "has no LoRA factors", "save it with PEFT after training")
    layouts, places = {}, {}
    alike: dict[ModuleLayout, ModuleLayout] = {}
    for name in sorted(sides):
        check_sides(name, sides[name])
        places[name] = a, b = sides[name]["A"], sides[name]["B"]
        scaling = checked_scaling(name, a.shape, b.shape, settings)
        layout = ModuleLayout(rank=a.shape[0], shape=(b.shape[0], a.shape[1]), scaling=scaling)
        layouts[name] = alike.setdefault(layout, layout)
    return configured_adapter(
        settings,
        OpenedModules(reader, places, layouts),
        _OpenedTensors(reader, dict(sorted(head.items()))),
    )


def _placed_tensors(
    thing: str, header: Mapping[str, Any], begin: int, size: int
) -> dict[str, StoredTensor]:
    """Check that the tensors fill the file without gap or overlap, as safetensors demands."""
    placed: dict[str, StoredTensor] = {}
    alike: dict[tuple[int, ...], tuple[int, ...]] = {}
    spans = []
    for key, entry in header.items():
        kind, shape, first, last = _entry(thing, key, entry)
        check_kind(key, kind)
        if last - first != BYTES_OF[kind] * math.prod(shape) or begin + last > size:
            raise IntegrityError(
                thing,
                f"{key} claims bytes {first} to {last} of {size - begin} for {list(shape)} {kind}",
                "send it again, whole",
            )
        spans.append((first, last))
        shape = alike.setdefault(shape, shape)
        placed[key] = StoredTensor(
            key=sys.intern(key), kind=sys.intern(kind), shape=shape, begin=begin + first
        )
    at = 0
    for first, last in sorted(spans):
        if first != at:
            break
        at = last
    if at != size - begin:
        raise IntegrityError(
            thing, f"its tensors do not fill its {size - begin} bytes", "send it again, whole"
        )
    return placed


def _entry(thing: str, key: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    if isinstance(entry, dict):
        kind = entry.get("dtype")
        shape, place = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
        if isinstance(kind, str) and shape is not None and place is not None and len(place) == 2:
            return kind, shape, place[0], place[1]
    raise IntegrityError(thing, f"its header does not say where {key} is", "send it again")


def _counts(value: object) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    fine = all(
        isinstance(one, int) and not isinstance(one, bool) and 0 <= one < _LARGEST_SIDE
        for one in value
    )
    return tuple(value) if fine else None


def _mark(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
