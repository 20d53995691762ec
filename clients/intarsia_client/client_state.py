"""What a client keeps from one round to the next; it never leaves the client.

Its own B where only A is shared, AdamW's moments where they are kept, and what its int8 uploads
lost. All of it is bounded by a few times the adapter that the client trains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from intarsia_client.errors import IntegrityError
from intarsia_client.files import canonical_json
from intarsia_client.optimizer_state import ModuleMoments, Moments, OptimizerState
from intarsia_client.tensor_file import (
    TensorEntry,
    split_tensor_file,
    tensor_header,
    write_tensor_file,
)
from intarsia_client.transport.feedback import CarriedError
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors

_FORMAT = "intarsia-client-state-1"
_Arrays = dict[str, FloatArray]
_Numbers = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """A client's own state.

    Args:
        own_b: From module to the client's own B times the scaling it was trained with.
        optimizer: AdamW's moments.
        carried: What uploads lost.
    """

    own_b: Mapping[str, FloatArray] = field(default_factory=dict)
    optimizer: OptimizerState = field(default_factory=OptimizerState)
    carried: CarriedError = field(default_factory=CarriedError)

    def personal(self, adapter: Adapter) -> Adapter:
        """An adapter with the client's own B in place of the one it has.

        Args:
            adapter: The trainable part of the client's start.

        Returns:
            The same, modules held; where the client has no B of this shape, the start's stays.
        """
        modules: dict[str, LowRankFactors] = {}
        for name in adapter.modules:
            factors = adapter.modules[name]
            own = self.own_b.get(name)
            if own is not None and own.shape == factors.b.shape:
                factors = replace(factors, b=own / np.float32(factors.scaling))
            modules[name] = factors
        return replace(adapter, modules=modules)

    def to_bytes(self) -> bytes:
        """The state as one safetensors file; equal states give equal bytes."""
        arrays, numbers = _flat(self)
        return write_tensor_file(
            (
                (
                    TensorEntry(name=name, kind="F32", shape=arrays[name].shape),
                    np.ascontiguousarray(arrays[name], dtype="<f4").tobytes(),
                )
                for name in sorted(arrays)
            ),
            {"format": _FORMAT, "numbers": canonical_json(numbers).decode()},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> ClientState:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            IntegrityError: If it is anything else.
        """
        try:
            return _gathered(*_read(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IntegrityError(
                "client's own state", repr(error)[:80], "remove it to begin with an empty one"
            ) from None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to keep."""
        arrays, _ = _flat(self)
        return not arrays


def _flat(state: ClientState) -> tuple[_Arrays, _Numbers]:
    """The state as arrays and numbers by name: what it is, the module's name, which part."""
    arrays: _Arrays = {f"own/{name}/b": b for name, b in state.own_b.items()}
    numbers: _Numbers = {}

    def add(place: str, moments: Moments | None) -> None:
        if moments is not None:
            arrays[f"{place}.first"] = moments.first
            arrays[f"{place}.second"] = moments.second
            numbers[f"{place}.steps"] = moments.steps

    for name, kept in state.optimizer.modules.items():
        arrays[f"optimizer/{name}/a"] = kept.factors.a
        arrays[f"optimizer/{name}/b"] = kept.factors.b
        numbers[f"optimizer/{name}/scaling"] = kept.factors.scaling
        add(f"optimizer/{name}/a", kept.a)
        add(f"optimizer/{name}/b", kept.b)
    for name, moments in state.optimizer.dense.items():
        add(f"optimizer-head/{name}/it", moments)
    for name, lost in state.carried.modules.items():
        arrays[f"lost/{name}/a"] = lost.a
        arrays[f"lost/{name}/b"] = lost.b
    arrays |= {f"lost-a/{name}/it": lost for name, lost in state.carried.shared_a.items()}
    arrays |= {f"lost-head/{name}/it": lost for name, lost in state.carried.dense.items()}
    return arrays, numbers


def _gathered(arrays: _Arrays, numbers: _Numbers) -> ClientState:
    """The reverse of :func:`_flat`."""

    def names(kind: str) -> list[str]:
        found = {
            key[len(kind) + 1 : key.rindex("/")] for key in arrays if key.startswith(f"{kind}/")
        }
        return sorted(found)

    def moments(place: str) -> Moments | None:
        if f"{place}.first" not in arrays:
            return None
        return Moments(
            first=arrays[f"{place}.first"],
            second=arrays[f"{place}.second"],
            steps=int(numbers[f"{place}.steps"]),
        )

    def factors(place: str, scaling: float) -> LowRankFactors:
        return LowRankFactors(a=arrays[f"{place}/a"], b=arrays[f"{place}/b"], scaling=scaling)

    modules = {}
    for name in names("optimizer"):
        place = f"optimizer/{name}"
        modules[name] = ModuleMoments(
            factors=factors(place, float(numbers[f"{place}/scaling"])),
            a=moments(f"{place}/a"),
            b=moments(f"{place}/b"),
        )
    dense = {name: moments(f"optimizer-head/{name}/it") for name in names("optimizer-head")}
    return ClientState(
        own_b={name: arrays[f"own/{name}/b"] for name in names("own")},
        optimizer=OptimizerState(
            modules=modules,
            dense={name: one for name, one in dense.items() if one is not None},
        ),
        carried=CarriedError(
            modules={name: factors(f"lost/{name}", 1.0) for name in names("lost")},
            shared_a={name: arrays[f"lost-a/{name}/it"] for name in names("lost-a")},
            dense={name: arrays[f"lost-head/{name}/it"] for name in names("lost-head")},
        ),
    )


def _read(data: bytes) -> tuple[_Arrays, _Numbers]:
    header, begin = split_tensor_file("client's own state", data)
    metadata = header.pop("__metadata__")
    entries = [
        TensorEntry(name=name, kind="F32", shape=tuple(header[name]["shape"]))
        for name in sorted(header)
    ]
    written = tensor_header(entries, metadata)
    size = begin + sum(entry.size for entry in entries)
    if metadata["format"] != _FORMAT or data[:begin] != written or len(data) != size:
        raise ValueError("not as it was written")
    arrays: _Arrays = {}
    for entry in entries:
        count = math.prod(entry.shape)
        values = np.frombuffer(data, dtype="<f4", count=count, offset=begin)
        arrays[entry.name] = values.reshape(entry.shape)
        begin += entry.size
    return arrays, json.loads(metadata["numbers"])
