"""What a client sends back: its trained adapter in PEFT's two files, or differences in int8.

In float32 and bfloat16 the files are PEFT's. In int8 they hold what the factors and the head
changed since the start, in blocks of 64 values with one float32 scale each; a factor's directions
(rows of A, columns of B) do not share blocks. Who changed nothing sends zeros, and comes out
exactly as it started.

Factors that are not sent, because they were not trained or are not shared, are those of the start:
the receiver knows them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from intarsia_client.assignment import PRECISIONS, TRAINED_FACTORS
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.peft_configuration import (
    adapter_configuration,
    declared_rank,
    declared_scaling,
    read_configuration,
)
from intarsia_client.peft_files import (
    EncodedAdapter,
    decode_adapter,
    decode_parts,
    encode_adapter,
)
from intarsia_client.peft_tensors import tensor_key
from intarsia_client.tensor_file import (
    TensorEntry,
    split_tensor_file,
    tensor_header,
    write_tensor_file,
)
from intarsia_client.transport.precision import (
    check_scales,
    is_finite_bfloat16,
    number_of_blocks,
    quantise,
    restore,
    to_bfloat16,
)
from intarsia_client.wire import Adapter, ComputedModules, FloatArray, LowRankFactors

_MARK = "intarsia_update"
_DIFFERENCES = "int8-differences-1"
_SIDES = {"both": ("A", "B"), "a": ("A",), "b": ("B",), "none": ()}


def encode_update(
    trained: Adapter, start: Adapter, precision: str, *, factors: str = "both"
) -> EncodedAdapter:
    """Encode a trained adapter.

    Args:
        trained: What the client trained; factors that are not sent are left out of it.
        start: The trainable part of the client's start.
        precision: One of :data:`intarsia_client.assignment.PRECISIONS`.
        factors: Which factors are sent, one of
            :data:`intarsia_client.assignment.TRAINED_FACTORS`; what
            :attr:`~intarsia_client.assignment.TrainAssignment.sent_factors` says.

    Returns:
        The bytes of both files; equal inputs give equal bytes.

    Raises:
        InputError: If a value is beyond the precision's range.
    """
    _check_names(factors, precision)
    if precision == "int8":
        return _encode_differences(trained, start, factors)
    if precision == "float32" and factors == "both":
        return encode_adapter(trained)
    return EncodedAdapter(
        configuration=_configuration(trained, {}),
        tensors=write_tensor_file(
            (_entry(key, values, precision) for key, values in _sent(trained, factors)),
            {"format": "pt"},
        ),
    )


def decode_update(encoded: EncodedAdapter, start: Adapter, *, factors: str = "both") -> Adapter:
    """Decode an update, which may come from anyone.

    Args:
        encoded: The bytes of both files.
        start: The trainable part of the client's start, as the receiver computes it.
        factors: Which factors must have been sent, and no others; see :func:`encode_update`.

    Returns:
        The trained adapter, every value finite. Factors that were not sent are the start's. Where
        something is taken from the start, modules are put together at each access.

    Raises:
        InputError: If the files hold anything but such an update, or a value is not finite.
        IntegrityError: If the tensors are cut off or their header is not true.
    """
    _check_names(factors, "float32")
    settings = read_configuration(encoded.configuration)
    if holds_differences(settings):
        if settings[_MARK] != _DIFFERENCES:
            raise InputError(_MARK, repr(settings[_MARK])[:80], f"send {_DIFFERENCES}")
        return _decode_differences(encoded.tensors, settings, start, factors)
    if factors == "both":
        return decode_adapter(encoded.configuration, encoded.tensors)
    return _decode_some(encoded.tensors, settings, start, factors)


def holds_differences(settings: Mapping[str, Any]) -> bool:
    """Whether an update's configuration says that its tensors are int8 differences.

    Args:
        settings: What :func:`~intarsia_client.peft_configuration.read_configuration` gave.

    Returns:
        True if they are no PEFT tensors.
    """
    return _MARK in settings


def _decode_some(data: bytes, settings: Mapping[str, Any], start: Adapter, factors: str) -> Adapter:
    """Decode PEFT's tensors of which some factors were not sent."""
    sides, dense = decode_parts(settings, data)
    for name, found in sides.items():
        if name not in start.modules or set(found) != set(_SIDES[factors]):
            raise InputError(
                f"module {name}",
                f"lora_{' and lora_'.join(sorted(found))}",
                f"send factors {factors} of the assigned modules",
            )
    absent = sorted(set(start.modules) - set(sides))
    if factors != "none" and absent:
        raise InputError(f"module {absent[0]}", "absent", "send every assigned module")

    def module(name: str) -> LowRankFactors:
        known, found = start.modules[name], sides.get(name, {})
        return LowRankFactors(
            a=found.get("A", known.a),
            b=found.get("B", known.b),
            scaling=declared_scaling(name, known.rank, settings),
        )

    return _checked(start, module, dense, settings)


def _encode_differences(trained: Adapter, start: Adapter, factors: str) -> EncodedAdapter:
    tensors = []
    for (name, after), (_, before) in zip(
        _vectors(trained, factors), _vectors(start, factors), strict=True
    ):
        if not np.isfinite(after).all():
            raise InputError(f"update of {name}", "not finite", "train again")
        whole, scales = quantise(after - before)
        for entry, data in zip(
            _difference_entries(name, before.shape),
            (scales.astype("<f4", copy=False).tobytes(), whole.tobytes()),
            strict=True,
        ):
            tensors.append((entry, data))
    return EncodedAdapter(
        configuration=_configuration(trained, {_MARK: _DIFFERENCES}),
        tensors=write_tensor_file(tensors, {"format": _DIFFERENCES}),
    )


def _decode_differences(
    data: bytes, settings: Mapping[str, Any], start: Adapter, factors: str
) -> Adapter:
    places, header = _difference_places(start, factors)
    split_tensor_file("update's tensors", data)
    if data[: len(header)] != header:
        raise InputError(
            "update's tensors", "not those of the assigned modules and rank",
            f"send the int8 differences of factors {factors}",
        )  # fmt: skip
    size = max((end for _, _, end in places.values()), default=len(header))
    if len(data) != size:
        raise IntegrityError("update's tensors", f"{len(data)} bytes of {size}", "send it again")

    def changed(name: str, before: FloatArray) -> FloatArray:
        """The start's vectors and what was added to them, shape (vectors, width)."""
        begin, middle, end = places[name]
        scales = np.frombuffer(data, dtype="<f4", count=(middle - begin) // 4, offset=begin)
        whole = np.frombuffer(data, dtype=np.int8, count=end - middle, offset=middle)
        check_scales(f"update of {name}", scales)
        with np.errstate(over="ignore"):
            after = before + restore(
                whole.reshape(before.shape), scales.reshape(len(before), -1).astype(np.float32)
            )
        if not np.isfinite(after).all():
            raise InputError(f"update of {name}", "not finite", "train again; it overflowed")
        return after

    def module(name: str) -> LowRankFactors:
        known = start.modules[name]
        a, b = known.a, known.b
        if "A" in _SIDES[factors]:
            a = changed(f"{name}.lora_A", a)
        if "B" in _SIDES[factors]:
            b = np.ascontiguousarray(changed(f"{name}.lora_B", b.T).T)
        return LowRankFactors(a=a, b=b, scaling=declared_scaling(name, known.rank, settings))

    dense = {
        name: changed(f"dense.{name}", tensor.reshape(1, -1)).reshape(tensor.shape)
        for name, tensor in start.dense.items()
    }
    return _checked(start, module, dense, settings)


def _checked(
    start: Adapter,
    module: Callable[[str], LowRankFactors],
    dense: Mapping[str, FloatArray],
    settings: Mapping[str, Any],
) -> Adapter:
    """The adapter whose modules are put together at each access, each looked at once."""
    for name in start.modules:
        _check_module(name, module(name), start.modules[name], settings)
    return replace(start, modules=ComputedModules(start.modules, module), dense=dense)


def _difference_places(
    start: Adapter, factors: str
) -> tuple[dict[str, tuple[int, int, int]], bytes]:
    """Where each tensor's scales begin and end and its differences end, and the whole header."""
    shapes = {name: vectors.shape for name, vectors in _vectors(start, factors)}
    entries = [one for name, shape in shapes.items() for one in _difference_entries(name, shape)]
    header = tensor_header(entries, {"format": _DIFFERENCES})
    places: dict[str, tuple[int, int, int]] = {}
    begin = len(header)
    for name, shape in shapes.items():
        scales, whole = _difference_entries(name, shape)
        places[name] = (begin, begin + scales.size, begin + scales.size + whole.size)
        begin = places[name][2]
    return places, header


def _difference_entries(name: str, shape: tuple[int, ...]) -> tuple[TensorEntry, TensorEntry]:
    vectors, width = shape
    return (
        TensorEntry(name=f"{name}.scales", kind="F32", shape=(vectors, number_of_blocks(width))),
        TensorEntry(name=f"{name}.difference", kind="I8", shape=(vectors, width)),
    )


def _vectors(adapter: Adapter, factors: str) -> Iterator[tuple[str, FloatArray]]:
    """Everything that is sent as (vectors, width): rows of A, columns of B, the flat head."""
    for name in sorted(adapter.modules):
        module = adapter.modules[name]
        for side in _SIDES[factors]:
            yield f"{name}.lora_{side}", module.a if side == "A" else module.b.T
    for name, tensor in sorted(adapter.dense.items()):
        yield f"dense.{name}", tensor.reshape(1, -1)


def _sent(adapter: Adapter, factors: str) -> Iterator[tuple[str, FloatArray]]:
    """Everything that is sent under PEFT's keys."""
    for name in sorted(adapter.modules):
        module = adapter.modules[name]
        for side in _SIDES[factors]:
            yield tensor_key(f"{name}.lora_{side}.weight"), module.a if side == "A" else module.b
    for name, tensor in sorted(adapter.dense.items()):
        yield tensor_key(name), tensor


def _entry(key: str, values: FloatArray, precision: str) -> tuple[TensorEntry, bytes]:
    if precision == "float32":
        data = np.ascontiguousarray(values, dtype="<f4").tobytes()
        return TensorEntry(name=key, kind="F32", shape=values.shape), data
    halves = to_bfloat16(values)
    if not is_finite_bfloat16(halves):
        raise InputError(f"update of {key}", "beyond bfloat16", "train at a lower rate")
    data = halves.astype("<u2", copy=False).tobytes()
    return TensorEntry(name=key, kind="BF16", shape=values.shape), data


def _configuration(adapter: Adapter, mark: Mapping[str, str]) -> bytes:
    settings = {**adapter_configuration(adapter, adapter.modules), **mark}
    return json.dumps(settings, indent=2, sort_keys=True).encode()


def _check_module(
    name: str, found: LowRankFactors, known: LowRankFactors, settings: Mapping[str, Any]
) -> None:
    if found.a.shape != known.a.shape or found.b.shape != known.b.shape:
        raise InputError(
            f"module {name}",
            f"lora_A {list(found.a.shape)}, lora_B {list(found.b.shape)}",
            f"send lora_A as {list(known.a.shape)} and lora_B as {list(known.b.shape)}",
        )
    rank = declared_rank(name, settings)
    if rank != known.rank:
        raise InputError(f"module {name}", f"declared rank {rank!s:.80}", f"declare {known.rank}")


def _check_names(factors: str, precision: str) -> None:
    for thing, value, known in (
        ("factors to send", factors, TRAINED_FACTORS),
        ("upload precision", precision, PRECISIONS),
    ):
        if value not in known:
            raise InputError(thing, value, f"choose one of {', '.join(known)}")
