"""Admitted updates that stay on disk: a round's sum reads them one module at a time."""

from __future__ import annotations

import mmap
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from intarsia_client.opened import TensorReader, open_files
from intarsia_client.peft_configuration import declared_scaling, read_configuration
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.peft_tensors import HEAD, parameter_of
from intarsia_client.transport import decode_update, holds_differences
from intarsia_client.wire import Adapter, ComputedModules, FloatArray, LowRankFactors


def stored_update(configuration: bytes, tensors: Path, start: Adapter, factors: str) -> Adapter:
    """Open an update that was admitted.

    Args:
        configuration: Bytes of its ``adapter_config.json``.
        tensors: Where its ``adapter_model.safetensors`` lies.
        start: What the client trained from.
        factors: Which factors were sent, one of
            :data:`intarsia_client.assignment.TRAINED_FACTORS`.

    Returns:
        What :func:`intarsia_client.transport.decode_update` gives of the same bytes; its factors
        are read or put together at each access.

    Raises:
        InputError: If it is not what was admitted.
        IntegrityError: If the file is not whole.
    """
    settings = read_configuration(configuration)
    if holds_differences(settings):
        # Decoding takes what it needs of the bytes when a module is asked for.
        encoded = EncodedAdapter(configuration=configuration, tensors=_mapped(tensors))
        return decode_update(encoded, start, factors=factors)
    if factors == "both":
        return open_files(configuration, tensors)
    return _opened_in_part(settings, tensors, start, factors)


def _mapped(path: Path) -> bytes:
    """A file as bytes that the system fetches as they are touched."""
    with path.open("rb") as stream:
        return cast(bytes, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))


def _opened_in_part(settings: dict[str, Any], path: Path, start: Adapter, factors: str) -> Adapter:
    """One factor from the file, the other from the start; or the head alone."""
    reader = TensorReader(path)
    places = {parameter_of(key, settings): tensor for key, tensor in reader.tensors().items()}

    def read(side: str, name: str) -> FloatArray:
        values: FloatArray = np.empty(places[side, name].shape, dtype=np.float32)
        reader.read(places[side, name], values)
        return values

    def module(name: str) -> LowRankFactors:
        known = start.modules[name]
        return LowRankFactors(
            a=read("A", name) if factors == "a" else known.a,
            b=read("B", name) if factors == "b" else known.b,
            scaling=declared_scaling(name, known.rank, settings),
        )

    return replace(
        start,
        modules=ComputedModules(start.modules, module),
        dense={name: read(side, name) for side, name in sorted(places) if side == HEAD},
    )
