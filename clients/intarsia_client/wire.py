"""The types that travel: low-rank factors, adapters, updates and what an update says of itself.

No torch here: a server, a registry or an edge node without a GPU stack can read and check all of
it with numpy alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intarsia_client.errors import InputError
from intarsia_client.files import canonical_json

FloatArray = NDArray[np.float32]

TASKS = ("causal-lm", "sequence-classification")


@dataclass(frozen=True, kw_only=True)
class LowRankFactors:
    """One module's low-rank update: ``scaling * B @ A``.

    Args:
        a: The factor next to the input, shape (rank, d_in), float32.
        b: The factor next to the output, shape (d_out, rank), float32.
        scaling: ``lora_alpha / rank``, or ``lora_alpha / sqrt(rank)`` with rank-stabilised LoRA
            (Kalajdzievski 2023, arXiv:2312.03732).
    """

    a: FloatArray
    b: FloatArray
    scaling: float

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return int(self.a.shape[0])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the weight that this updates."""
        return int(self.b.shape[0]), int(self.a.shape[1])

    def product(self) -> NDArray[np.float64]:
        """The dense update in float64, shape (d_out, d_in); for tests and small modules."""
        return self.scaling * (self.b.astype(np.float64) @ self.a.astype(np.float64))


class ComputedModules(Mapping[str, LowRankFactors]):
    """Modules whose factors are computed or read at each access; nothing is kept.

    It takes the place of a dict in an :class:`Adapter` that is too large to hold, or is derived
    from another one. Whoever goes over its modules takes one at a time, reads each as few times
    as possible, and lets go of it before the next.

    Args:
        names: The modules' names, in order, each once.
        compute: Gives a name's factors; equal names give equal factors.
    """

    def __init__(self, names: Iterable[str], compute: Callable[[str], LowRankFactors]) -> None:
        """Keep the names and the function."""
        self._names = dict.fromkeys(names)
        self._compute = compute

    def __getitem__(self, name: str) -> LowRankFactors:
        """Compute a module's factors.

        Raises:
            KeyError: If it is not one of the names.
        """
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __contains__(self, name: object) -> bool:
        """Whether it is one of the names; computes nothing."""
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        """The names, in order; computes nothing."""
        return iter(self._names)

    def __len__(self) -> int:
        """How many modules there are; computes nothing."""
        return len(self._names)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A set of low-rank updates of one frozen base model, and the head that goes with them.

    Args:
        base: What the base model is called or where it lies, as PEFT keeps it.
        task: One of :data:`TASKS`.
        modules: From each module's full name in the base model to its factors; a dict, or
            :class:`ComputedModules` where they are not all held at once.
        dense: Whole tensors that travel beside the factors: a classification head, by parameter
            name in the base model (``"classifier.weight"``).
        fan_in_fan_out: Whether the base keeps its weights as (d_in, d_out), as GPT-2 does.
    """

    base: str
    task: str
    modules: Mapping[str, LowRankFactors]
    dense: Mapping[str, FloatArray] = field(default_factory=dict)
    fan_in_fan_out: bool = False

    @property
    def rank(self) -> int:
        """The largest rank of any module, 0 for an adapter without modules."""
        return max((factors.rank for factors in self.modules.values()), default=0)

    @property
    def number_of_parameters(self) -> int:
        """How many numbers the factors and the dense tensors hold."""
        low_rank = sum(factors.a.size + factors.b.size for factors in self.modules.values())
        return int(low_rank + sum(tensor.size for tensor in self.dense.values()))


@dataclass(frozen=True, kw_only=True)
class PrivacySpend:
    """What one round of private training cost, in the parameters an accountant needs.

    Args:
        unit: ``"example"`` (one record) or ``"client"``.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        sample_rate: Probability with which Poisson sampling takes each record into a batch.
        steps: Noisy steps taken, empty batches included.
        max_grad_norm: Clipping norm of one record's gradient.
        delta: The delta of (epsilon, delta)-differential privacy.
        epsilon: The epsilon of these steps alone, by the PRV accountant.
    """

    unit: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    max_grad_norm: float
    delta: float
    epsilon: float


@dataclass(frozen=True, kw_only=True)
class UpdateManifest:
    """What an update says of itself; everything in it is the client's word until admitted.

    Args:
        run: The federation's identifier.
        round: Round number, from 1.
        client: The client's name.
        nonce: The one-time word that the server gave for this client and round.
        base_digest: Digest of the base model it was trained on.
        start_digest: Digest of the global adapter it started from.
        task: One of :data:`TASKS`.
        target_modules: Full names of the adapted modules, sorted.
        rank: The rank that the client trained.
        lora_alpha: LoRA's alpha.
        use_rslora: Whether the scaling is ``lora_alpha / sqrt(rank)``.
        number_of_examples: Records that the client trained on.
        shard_digest: Digest of those records.
        tensors_digest: Digest of the safetensors bytes that travel with this manifest.
        metrics: Finite numbers about the training (mean loss, optimiser steps).
        privacy: What the training cost in privacy, or None where it was not private.
        format_version: Version of this layout.
    """

    run: str
    round: int
    client: str
    nonce: str
    base_digest: str
    start_digest: str
    task: str
    target_modules: tuple[str, ...]
    rank: int
    lora_alpha: float
    use_rslora: bool
    number_of_examples: int
    shard_digest: str
    tensors_digest: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    privacy: PrivacySpend | None = None
    format_version: int = 1

    def to_json(self) -> bytes:
        """Canonical JSON bytes of the manifest."""
        return canonical_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> UpdateManifest:
        """Read a manifest that may come from anyone.

        Args:
            data: JSON bytes.

        Returns:
            The manifest, every field of the right type and every number finite.

        Raises:
            InputError: If the bytes are not such a manifest; names the field.
        """
        try:
            value = json.loads(data)
        except (UnicodeDecodeError, ValueError, RecursionError) as error:
            raise InputError("update manifest", error, "send canonical JSON") from None
        if not isinstance(value, dict):
            raise InputError("update manifest", type(value).__name__, "send a JSON object")
        if value.get("format_version") != 1:
            raise InputError(
                "update manifest format_version", value.get("format_version"), "send version 1"
            )
        privacy = value.pop("privacy", None)
        checked = _checked_fields(cls, value, skip=("privacy",))
        spend = None
        if privacy is not None:
            if not isinstance(privacy, dict):
                raise InputError("update manifest privacy", privacy, "send an object or null")
            spend = PrivacySpend(**_checked_fields(PrivacySpend, privacy))
        return cls(**checked, privacy=spend)


@dataclass(frozen=True, kw_only=True)
class AdapterUpdate:
    """A client's trained adapter and its manifest, decoded and consistent in itself.

    Args:
        manifest: What the update says of itself.
        adapter: The factors, at the client's rank, and the head where the task has one.
    """

    manifest: UpdateManifest
    adapter: Adapter


def _checked_fields(
    kind: type, value: Mapping[str, object], skip: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Take exactly the dataclass's fields from a JSON object, checking each one's type."""
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind) if f.name not in skip}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise InputError("update manifest field", unknown[0], "send only the documented fields")
    missing = sorted(set(fields) - set(value))
    if missing:
        raise InputError("update manifest field", missing[0], "send every documented field")
    return {name: _checked(name, value[name], fields[name]) for name in fields}


def _checked(name: str, value: object, annotation: str) -> object:
    thing = f"update manifest {name}"
    if annotation == "str" and isinstance(value, str) and len(value) <= 4096 and _encodes(value):
        return value
    if annotation == "bool" and isinstance(value, bool):
        return value
    if annotation == "int" and isinstance(value, int) and not isinstance(value, bool):
        if -(2**63) <= value < 2**63:
            return value
        raise InputError(thing, "beyond 64 bits", "send a real count")
    if annotation == "float" and _is_number(value):
        return float(value)  # type: ignore[arg-type]
    if (
        annotation.startswith("tuple")
        and isinstance(value, list)
        and all(isinstance(item, str) and _encodes(item) for item in value)
    ):
        return tuple(value)
    if (
        annotation.startswith("Mapping")
        and isinstance(value, dict)
        and all(_encodes(key) and _is_number(item) for key, item in value.items())
    ):
        return {str(key): float(item) for key, item in value.items()}
    raise InputError(thing, repr(value)[:80], f"send a finite {annotation}")


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    # An integer may be too large for a float to hold.
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _encodes(text: str) -> bool:
    """Whether UTF-8 can write it; halves of surrogate pairs come in by JSON escapes."""
    return not any("\ud800" <= character <= "\udfff" for character in text)
