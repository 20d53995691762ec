"""Admission: what an update must be before it counts.

The checks run from cheap to dear: size, schema, whose and which round, shapes, finiteness of the
factors and of their product. A refusal names a short reason, and the round goes on without the
update. Replay over rounds and runs is refused where the update is recorded, by its nonce.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.factors import product_norm
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import InputError, IntarsiaError, IntegrityError, RefusedUpdate
from intarsia_client.files import bytes_digest
from intarsia_client.messages import ReceivedUpdate
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.transport import decode_update
from intarsia_client.wire import Adapter, LowRankFactors, PrivacySpend, UpdateManifest

from intarsia_platform.federation.open_round import OpenRound

# Room for names, JSON and the safetensors header beside the numbers themselves.
_OVERHEAD_BYTES = 1 << 16
_OVERHEAD_PER_TENSOR = 512
_MAX_MANIFEST_BYTES = 1 << 22
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True)
class ValidatedUpdate:
    """An update that passed every check; the only kind that is aggregated.

    Args:
        assignment: What the client was asked to do.
        manifest: What the update says of itself, now checked.
        adapter: The decoded adapter.
    """

    assignment: TrainAssignment
    manifest: UpdateManifest
    adapter: Adapter

    def weighted(self, start: Adapter, *, max_examples: int = 0) -> WeightedUpdate:
        """The update as aggregation takes it, weighted by its number of examples.

        Args:
            start: What the client trained from.
            max_examples: See :func:`weight_of`.

        Returns:
            The update with its start.
        """
        return WeightedUpdate(
            client=self.assignment.client,
            weight=weight_of(self.manifest, max_examples),
            start=start,
            trained=self.adapter,
        )


def weight_of(manifest: UpdateManifest, max_examples: int) -> float:
    """What an update weighs: the records that its client declares, up to a cap.

    Args:
        manifest: What the update says of itself, admitted.
        max_examples: The cap, 0 for none.

    Returns:
        A positive number.
    """
    examples = manifest.number_of_examples
    return float(min(examples, max_examples) if max_examples else examples)


def admit(
    received: ReceivedUpdate, assignment: TrainAssignment, open_round: OpenRound
) -> ValidatedUpdate:
    """Check one received update against what its client was asked to do.

    Args:
        received: Raw bytes from the client.
        assignment: The client's assignment.
        open_round: The round that is open.

    Returns:
        The validated update.

    Raises:
        RefusedUpdate: With the reason ``too-large``, ``malformed``, ``wrong-base``,
            ``stale-round``, ``wrong-run``, ``wrong-client``, ``wrong-nonce``, ``wrong-start``,
            ``wrong-task``, ``wrong-shape``, ``wrong-scaling``, ``damaged``, ``no-examples``,
            ``not-private`` or ``not-finite``.
    """
    client = assignment.client
    limit = _size_limit(assignment, open_round)
    if received.adapter.size > limit or len(received.manifest) > _MAX_MANIFEST_BYTES:
        raise RefusedUpdate(
            "too-large", f"update of {client}", f"{received.size} bytes", f"send at most {limit}"
        )
    manifest = _manifest(received.manifest, client)
    _check_manifest(manifest, assignment)
    if bytes_digest(received.adapter.tensors) != manifest.tensors_digest:
        raise RefusedUpdate(
            "damaged", f"tensors of {client}", manifest.tensors_digest, "send the bytes it names"
        )
    adapter = _decode(received.adapter, assignment, open_round)
    _check_adapter(adapter, assignment, open_round)
    return ValidatedUpdate(assignment=assignment, manifest=manifest, adapter=adapter)


def is_plausible(spend: PrivacySpend | None, assignment: TrainAssignment) -> bool:
    """Whether a declared privacy spend can be what the assignment asked for.

    Args:
        spend: The client's word; nothing here can prove it.
        assignment: What the client was asked to do.

    Returns:
        True if its unit, delta and clipping norm are the assigned ones and its other numbers are
        such that an accountant can work with them.
    """
    asked = assignment.privacy
    return (
        spend is not None
        and (spend.unit, spend.delta, spend.max_grad_norm)
        == (asked.unit, asked.delta, asked.max_grad_norm)
        and spend.noise_multiplier > 0.0
        and 0.0 < spend.sample_rate <= 1.0
        and spend.steps >= 1
    )


def _size_limit(assignment: TrainAssignment, open_round: OpenRound) -> int:
    shapes = [open_round.shapes[name] for name in assignment.target_modules]
    head = open_round.broadcast.published.dense
    numbers = sum(assignment.rank * sum(shape) for shape in shapes)
    numbers += sum(tensor.size for tensor in head.values())
    tensors = 2 * len(shapes) + len(head)
    # Eight bytes a number, since a client may send float64.
    return 8 * numbers + _OVERHEAD_BYTES + 2 * _OVERHEAD_PER_TENSOR * tensors


def _manifest(data: bytes, client: str) -> UpdateManifest:
    try:
        return UpdateManifest.from_json(data)
    except InputError as error:
        raise RefusedUpdate(
            "malformed", f"{client}: {error.thing}", error.value, error.remedy
        ) from None


def _check_manifest(manifest: UpdateManifest, assignment: TrainAssignment) -> None:
    client = assignment.client
    checks = (
        ("wrong-run", "run", manifest.run, assignment.run),
        ("wrong-client", "client", manifest.client, assignment.client),
        ("stale-round", "round", manifest.round, assignment.round),
        ("wrong-nonce", "nonce", manifest.nonce, assignment.nonce),
        ("wrong-base", "base_digest", manifest.base_digest, assignment.base_digest),
        ("wrong-start", "start_digest", manifest.start_digest, assignment.start_digest),
        ("wrong-task", "task", manifest.task, assignment.task),
        ("wrong-shape", "rank", manifest.rank, assignment.rank),
        (
            "wrong-shape",
            "target_modules",
            manifest.target_modules,
            tuple(sorted(assignment.target_modules)),
        ),
    )
    for reason, name, found, expected in checks:
        if found != expected:
            raise RefusedUpdate(reason, f"{name} of {client}", found, f"send {expected}")
    if manifest.number_of_examples < 1:
        raise RefusedUpdate(
            "no-examples",
            f"number_of_examples of {client}",
            manifest.number_of_examples,
            "train on at least one record",
        )
    if assignment.privacy.unit != "none" and not is_plausible(manifest.privacy, assignment):
        raise RefusedUpdate(
            "not-private", f"privacy of {client}", manifest.privacy, "train as assigned"
        )


def _decode(encoded: EncodedAdapter, assignment: TrainAssignment, open_round: OpenRound) -> Adapter:
    client = assignment.client
    start = open_round.start(assignment)
    try:
        return decode_update(encoded, start, factors=assignment.sent_factors)
    except IntarsiaError as error:
        reason = "damaged" if isinstance(error, IntegrityError) else "malformed"
        if error.value == "not finite":
            reason = "not-finite"
        raise RefusedUpdate(reason, f"{client}: {error.thing}", error.value, error.remedy) from None


def _check_adapter(adapter: Adapter, assignment: TrainAssignment, open_round: OpenRound) -> None:
    client = assignment.client
    odd = set(adapter.modules) ^ set(assignment.target_modules)
    if odd:
        raise RefusedUpdate(
            "wrong-shape", f"module of {client}", min(odd), "send exactly the assigned modules"
        )
    for name, factors in adapter.modules.items():
        _check_module(name, factors, open_round.shapes[name], assignment)
    found = {name: tensor.shape for name, tensor in adapter.dense.items()}
    published = open_round.broadcast.published
    head = {name: tensor.shape for name, tensor in published.dense.items()}
    if found != head:
        raise RefusedUpdate("wrong-shape", f"head of {client}", found, f"send {head}")


def _check_module(
    name: str, factors: LowRankFactors, expected: tuple[int, int], assignment: TrainAssignment
) -> None:
    client = assignment.client
    if factors.shape != expected or factors.rank != assignment.rank:
        raise RefusedUpdate(
            "wrong-shape",
            f"{name} of {client}",
            f"{factors.shape} at rank {factors.rank}",
            f"send {expected} at rank {assignment.rank}",
        )
    if not np.isclose(factors.scaling, assignment.scaling, rtol=1e-6, atol=0.0):
        raise RefusedUpdate(
            "wrong-scaling",
            f"scaling of {name} of {client}",
            factors.scaling,
            f"train with {assignment.scaling}",
        )
    norm = product_norm(factors)
    # Finite factors can have an infinite product; float32 is what everyone multiplies in.
    if not norm < _LARGEST:
        raise RefusedUpdate(
            "not-finite", f"product of {name} of {client}", norm, "train again; it overflowed"
        )
