"""What the registry hands out: plain frozen rows, never live database objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, get_args

RunStatus = Literal["running", "finished", "interrupted", "failed"]
RoundState = Literal["planned", "sent", "collecting", "aggregating", "published"]
ParticipationStatus = Literal["planned", "accepted", "refused", "sat-out", "failed", "late"]
ArtefactKind = Literal["shard", "update", "aggregate", "version", "base", "imported", "descriptor"]

RUN_STATUSES: tuple[RunStatus, ...] = get_args(RunStatus)
ROUND_STATES: tuple[RoundState, ...] = get_args(RoundState)
PARTICIPATION_STATUSES: tuple[ParticipationStatus, ...] = get_args(ParticipationStatus)
ARTEFACT_KINDS: tuple[ArtefactKind, ...] = get_args(ArtefactKind)


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """One federation.

    Args:
        id: Readable identifier, such as ``"run-0001-1a2b3c4d"``.
        number: Counts the runs of this database, from 1.
        created_at: When it was created, in UTC.
        name: What the person called it.
        status: One of :data:`RUN_STATUSES`.
        config: The whole configuration it was started with.
        config_digest: Digest of the canonical JSON of ``config``.
        seed: The seed everything random derives from.
        rounds: How many rounds were asked for.
        base_digest: Digest of the frozen base model.
        mlflow_run_id: The run that mirrors it in MLflow, where there is one.
    """

    id: str
    number: int
    created_at: datetime
    name: str
    status: RunStatus
    config: Mapping[str, Any]
    config_digest: str
    seed: int
    rounds: int
    base_digest: str
    mlflow_run_id: str | None


@dataclass(frozen=True, kw_only=True)
class RoundRow:
    """One round of a run.

    Args:
        run_id: The run.
        number: Round number, from 1.
        state: One of :data:`ROUND_STATES`.
        start_digest: What the clients started from.
        aggregate_digest: The exact aggregate, where one is kept apart from the version.
        result_digest: The version that came of it, None until it is published.
        metrics: Finite numbers about the round, or None where one does not apply.
        created_at: When it was planned, in UTC.
        updated_at: When its state last changed, in UTC.
    """

    run_id: str
    number: int
    state: RoundState
    start_digest: str
    aggregate_digest: str | None
    result_digest: str | None
    metrics: Mapping[str, Any]
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, kw_only=True)
class PlannedParticipation:
    """What the plan of a round says about one client.

    Args:
        client: The client's name, unique in the round.
        node_id: The Flower node that speaks for it, 0 to 2**64 - 1.
        assignment: What it is asked to do (rank, seeds, nonce), as JSON values.
        status: ``"planned"``, or ``"sat-out"`` for one that is not asked this time.
        reason: Why it sits out, such as ``"privacy-budget"``; None where it is asked.
    """

    client: str
    node_id: int
    assignment: Mapping[str, Any] = field(default_factory=dict)
    status: Literal["planned", "sat-out"] = "planned"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ParticipationRow:
    """One client's part in one round.

    Args:
        run_id: The run.
        round: Round number.
        client: The client's name.
        node_id: The Flower node that spoke for it.
        assignment: What it was asked to do.
        status: One of :data:`PARTICIPATION_STATUSES`; the first that settles it stands.
        reason: A short word for why it was refused, failed, late or sat out.
        detail: The line that goes with the reason.
        update_digest: Digest of the accepted update.
        number_of_examples: Records it trained on.
        bytes_up: Bytes it sent.
        bytes_down: Bytes it was sent, every resend included.
        metrics: Finite numbers it reported.
    """

    run_id: str
    round: int
    client: str
    node_id: int
    assignment: Mapping[str, Any]
    status: ParticipationStatus
    reason: str | None
    detail: str | None
    update_digest: str | None
    number_of_examples: int
    bytes_up: int
    bytes_down: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class RefusalRow:
    """One message that admission turned away, whoever sent it.

    Args:
        run_id: The run.
        round: The round that was open.
        client: Who it said it was from.
        reason: The short stable word, such as ``"replayed-nonce"``.
        detail: The line for a person.
        bytes_up: Its size in bytes.
        created_at: When it was turned away, in UTC.
    """

    run_id: str
    round: int
    client: str
    reason: str
    detail: str
    bytes_up: int
    created_at: datetime


@dataclass(frozen=True, kw_only=True)
class PrivacySpendRow:
    """What one round cost one client, in the parameters that an accountant needs.

    Args:
        scope: What the budget is kept for, such as a run or a data set.
        client: The client's name.
        round: Round number.
        unit: ``"example"`` or ``"client"``: whose presence is hidden.
        noise_multiplier: Standard deviation of the noise over ``max_grad_norm``.
        sample_rate: Probability with which each record enters a batch.
        steps: Noisy steps taken.
        delta: The delta that was aimed at.
        max_grad_norm: The clipping norm.
    """

    scope: str
    client: str
    round: int
    unit: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    delta: float
    max_grad_norm: float


@dataclass(frozen=True, kw_only=True)
class ArtefactRow:
    """One thing that was made of data, named by its digest.

    Args:
        digest: ``"sha256:…"``.
        kind: One of :data:`ARTEFACT_KINDS`.
        size: Its size in bytes, None where it never came here (a client's shard).
        created_at: When it was first seen, in UTC.
        details: What else is known (run, round, client), as JSON values.
    """

    digest: str
    kind: ArtefactKind
    size: int | None
    created_at: datetime
    details: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AdapterVersion:
    """One registered adapter.

    Args:
        digest: Digest of its tensors and configuration, wherever its base lies.
        name: What people call it; unique in the registry.
        base: Name or place of the base model, as PEFT keeps it.
        base_digest: Digest of the base model's weights, None where it is not known.
        task: ``"causal-lm"`` or ``"sequence-classification"``.
        rank: The largest rank of any module.
        size: Bytes of its two files.
        tensors_digest: Digest of ``adapter_model.safetensors`` in the store.
        configuration_digest: Digest of ``adapter_config.json`` in the store.
        manifest_digest: Digest of ``intarsia.json`` in the store.
        run_id: The run it came from, None for an imported one.
        round: The round it came from, None for an imported one.
        created_at: When it was registered, in UTC.
        labels: Words that access policies speak of, sorted.
    """

    digest: str
    name: str
    base: str
    base_digest: str | None
    task: str
    rank: int
    size: int
    tensors_digest: str
    configuration_digest: str
    manifest_digest: str
    run_id: str | None
    round: int | None
    created_at: datetime
    labels: tuple[str, ...]
