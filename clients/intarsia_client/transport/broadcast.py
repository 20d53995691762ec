"""The broadcast file: one file for all clients, of which a poorer client reads the beginning.

It is a safetensors file. The head's tensors come first, in float32; then the adapter's directions,
largest first: component j holds, for each module that has a direction j, row j of A and column j
of B. So the first k components, which are what a client of rank k trains, are a prefix of the
file's bytes, and a cache or a byte-range request serves every rank from one file.

Within a component the modules stand by falling rank, then by name, so that a module has the same
place in every component. Three precisions: ``"float32"`` gives the adapter back bit for bit;
``"bfloat16"`` halves the bytes; ``"int8"`` writes blocks of 64 values with one float32 scale each
(Dettmers et al. 2022, arXiv:2110.02861, quantise in blocks too). A module whose B is zero
throughout, as where only A is shared, leaves B out.
"""

from __future__ import annotations

import io
import math
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from intarsia_client.assignment import PRECISIONS
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.transport.broadcast_layout import (
    BroadcastLayout,
    ModulePlace,
    layout_of,
    read_layout,
)
from intarsia_client.transport.precision import (
    check_scales,
    from_bfloat16,
    is_finite_bfloat16,
    quantise,
    restore,
    to_bfloat16,
)
from intarsia_client.wire import Adapter, ComputedModules, FloatArray, LowRankFactors

ByteArray = NDArray[np.uint8]


def encode_broadcast(adapter: Adapter, precision: str) -> bytes:
    """Encode an adapter for all clients; equal adapters give equal bytes.

    Args:
        adapter: The published adapter, its directions largest first. Its modules are gone over
            twice, one at a time.
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.

    Returns:
        The file's bytes.

    Raises:
        InputError: If a value is not finite or beyond the precision's range.
    """
    if precision not in PRECISIONS:
        raise InputError("broadcast precision", precision, f"choose one of {PRECISIONS}")
    layout = layout_of(adapter, precision)
    stream = io.BytesIO()
    stream.write(layout.header)
    for name, shape in layout.dense:
        tensor = np.ascontiguousarray(adapter.dense[name], dtype="<f4")
        _check_finite(name, tensor)
        stream.write(tensor.reshape(shape).tobytes())
    if layout.size > stream.tell():
        stream.seek(layout.size - 1)
        stream.write(b"\0")
    file = np.frombuffer(stream.getbuffer(), dtype=np.uint8)
    for module in layout.modules:
        factors = adapter.modules[module.name]
        sides = [factors.a, factors.b.T] if module.has_b else [factors.a]
        for side, vectors in enumerate(sides):
            for part, rows in enumerate(_packed(module.name, vectors, precision)):
                place = module.offsets[part][side]
                for component, row in enumerate(rows):
                    begin = layout.starts[part][component] + place
                    file[begin : begin + len(row)] = row
    del file
    return stream.getvalue()


def decode_broadcast(data: bytes, *, rank: int | None = None) -> Adapter:
    """Decode a broadcast file, or the beginning of one, which may come from anyone.

    All of it is checked here; the factors are put together at each access, so that the bytes are
    all that is held.

    Args:
        data: The file, or with ``rank`` at least its first ``rank`` components.
        rank: None for the whole file; else how many directions of each module are wanted.

    Returns:
        The adapter, modules in the order of their names, each with its first ``rank`` directions
        or all it has; every value finite.

    Raises:
        IntegrityError: If the bytes are cut off, or are more or other than the header says.
        InputError: If the header describes no adapter, or a value is not finite.
    """
    layout = read_layout(data)
    wanted = layout.rank if rank is None else min(rank, layout.rank)
    if rank is not None and rank < 1:
        raise InputError("rank to decode", rank, "choose at least 1")
    least = layout.size if rank is None else layout.prefix_size(wanted)
    if not least <= len(data) <= layout.size:
        raise IntegrityError(
            "broadcast file",
            f"{len(data)} bytes of {layout.size}",
            f"send {least} of them at least, and no more than there are",
        )
    file = np.frombuffer(data, dtype=np.uint8)
    _check_values(layout, file, wanted)
    places = {module.name: module for module in layout.modules}
    dense: dict[str, FloatArray] = {}
    begin = len(layout.header)
    for name, shape in layout.dense:
        end = begin + 4 * math.prod(shape)
        dense[name] = file[begin:end].view("<f4").reshape(shape)
        begin = end
    return Adapter(
        base=layout.base,
        task=layout.task,
        modules=ComputedModules(
            sorted(places), lambda name: _factors(layout, file, places[name], wanted)
        ),
        dense=dense,
        fan_in_fan_out=layout.fan_in_fan_out,
    )


def broadcast_prefix_size(data: bytes, rank: int) -> int:
    """How many bytes a client needs that takes the first ``rank`` directions.

    Args:
        data: The file, or its header at least.
        rank: How many components; more than there are take the whole file.

    Returns:
        The prefix's length in bytes, header and head included.

    Raises:
        IntegrityError: If the header is cut off or is not true.
        InputError: If it describes no adapter.
    """
    layout = read_layout(data)
    return layout.prefix_size(max(0, min(rank, layout.rank)))


def _packed(name: str, vectors: FloatArray, precision: str) -> list[ByteArray]:
    """One module's rows of A or columns of B as the bytes of each part, shape (rank, bytes)."""
    values = np.ascontiguousarray(vectors, dtype="<f4")
    _check_finite(name, values)
    if precision == "float32":
        return [_bytes(values)]
    if precision == "bfloat16":
        halves = to_bfloat16(values)
        if not is_finite_bfloat16(halves):
            raise InputError(f"broadcast of {name}", "beyond bfloat16", "choose float32")
        return [_bytes(halves.astype("<u2", copy=False))]
    whole, scales = quantise(values)
    return [_bytes(scales.astype("<f4", copy=False)), _bytes(whole)]


def _factors(
    layout: BroadcastLayout, file: ByteArray, module: ModulePlace, wanted: int
) -> LowRankFactors:
    rank = min(module.rank, wanted)
    d_out, d_in = module.shape
    a = _vectors(layout, file, module, side=0, rank=rank)
    if module.has_b:
        b = np.ascontiguousarray(_vectors(layout, file, module, side=1, rank=rank).T)
    else:
        b = np.zeros((d_out, rank), dtype=np.float32)
    return LowRankFactors(a=a.reshape(rank, d_in), b=b, scaling=module.scaling)


def _vectors(
    layout: BroadcastLayout, file: ByteArray, module: ModulePlace, *, side: int, rank: int
) -> FloatArray:
    """One side of a module's leading directions, shape (rank, width)."""
    parts: list[ByteArray] = []
    for part, starts in enumerate(layout.starts):
        size = module.sizes[part][side]
        raw = np.empty((rank, size), dtype=np.uint8)
        for component in range(rank):
            begin = starts[component] + module.offsets[part][side]
            raw[component] = file[begin : begin + size]
        parts.append(raw)
    if layout.precision == "float32":
        return parts[0].view("<f4").astype(np.float32, copy=False)
    if layout.precision == "bfloat16":
        return from_bfloat16(parts[0].view("<u2"))
    return restore(parts[1].view(np.int8), parts[0].view("<f4").astype(np.float32, copy=False))


def _check_values(layout: BroadcastLayout, file: ByteArray, wanted: int) -> None:
    """Refuse values that are not finite, in what is wanted of the file."""
    begin = len(layout.header)
    for name, shape in layout.dense:
        end = begin + 4 * math.prod(shape)
        _check_finite(name, file[begin:end].view("<f4"))
        begin = end
    for component in range(wanted):
        thing = f"broadcast component {component}"
        ends = chain(
            (starts[component] for starts in layout.starts[1:]),
            [layout.prefix_size(component + 1)],
        )
        parts = [
            file[starts[component] : end] for starts, end in zip(layout.starts, ends, strict=True)
        ]
        if layout.precision == "float32":
            _check_finite(thing, parts[0].view("<f4"))
        elif layout.precision == "bfloat16":
            if not is_finite_bfloat16(parts[0].view("<u2")):
                raise _not_finite(thing)
        else:
            check_scales(thing, parts[0].view("<f4"))
            if bool((parts[1].view(np.int8) == -128).any()):
                raise InputError(thing, -128, "send whole numbers between -127 and 127")


def _bytes(array: NDArray[np.generic]) -> ByteArray:
    """The same memory as bytes, shape (rows, bytes of a row)."""
    return array.view(np.uint8).reshape(array.shape[0], array.shape[1] * array.itemsize)


def _check_finite(name: str, values: FloatArray) -> None:
    if not np.isfinite(values).all():
        raise _not_finite(f"broadcast of {name}")


def _not_finite(thing: str) -> InputError:
    return InputError(thing, "not finite", "publish finite values")
