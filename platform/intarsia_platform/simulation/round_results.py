"""Rounds as results: read from the database, so that a resumed run tells of all its rounds."""

from __future__ import annotations

from collections.abc import Sequence

from intarsia_client.assignment import PrivacyParameters

from intarsia_platform.registry.journal import RunJournal
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import ParticipationRow, RoundRow
from intarsia_platform.results import (
    ClientRound,
    Measured,
    RefusedClient,
    RoundResult,
    RuleDecision,
)


def published_results(
    journal: RunJournal, ledger: PrivacyLedger, privacy: PrivacyParameters
) -> tuple[RoundResult, ...]:
    """Every published round of a run.

    Args:
        journal: The run.
        ledger: The privacy spent.
        privacy: The privacy asked for.

    Returns:
        The results, by number.
    """
    rows = journal.published_rounds()
    return tuple(round_result(journal, ledger, privacy, row) for row in rows)


def round_result(
    journal: RunJournal, ledger: PrivacyLedger, privacy: PrivacyParameters, row: RoundRow
) -> RoundResult:
    """One published round.

    Args:
        journal: The run.
        ledger: The privacy spent.
        privacy: The privacy asked for.
        row: The round.

    Returns:
        The result.
    """
    parts = journal.participations(row.number)
    clients = tuple(_client_round(part, ledger, privacy) for part in parts)
    spent = [client.epsilon for client in clients if client.epsilon is not None]
    test = row.metrics.get("test")
    return RoundResult(
        round=row.number,
        test=None if test is None else Measured.from_mapping(test),
        bytes_up=sum(part.bytes_up for part in parts),
        bytes_down=sum(part.bytes_down for part in parts),
        seconds=float(row.metrics["seconds"]),
        accepted=sum(part.status == "accepted" for part in parts),
        refused=_named(parts, ("refused", "failed", "late")),
        sat_out=_named(parts, ("sat-out",)),
        epsilon_max=max(spent, default=None),
        clients=clients,
        rank=int(row.metrics["rank"]),
        # Rounds of versions before these have none of the three.
        cut_energy=float(row.metrics.get("cut_energy", 0.0)),
        residual_energy=float(row.metrics.get("residual_energy", 0.0)),
        decisions=tuple(
            RuleDecision.from_mapping(entry) for entry in row.metrics.get("decisions", ())
        ),
    )


def _named(parts: Sequence[ParticipationRow], statuses: Sequence[str]) -> tuple[RefusedClient, ...]:
    return tuple(
        RefusedClient(client=part.client, reason=part.reason or part.status)
        for part in parts
        if part.status in statuses
    )


def _client_round(
    part: ParticipationRow, ledger: PrivacyLedger, privacy: PrivacyParameters
) -> ClientRound:
    epsilon = None
    if privacy.unit != "none":
        # The accountant brings torch along, which looking at runs without privacy need not load.
        from intarsia_client.privacy import epsilon_of

        history = [
            (spend.noise_multiplier, spend.sample_rate, spend.steps)
            for spend in ledger.spends(part.run_id, part.client)
            if spend.round <= part.round
        ]
        epsilon = epsilon_of(history, privacy.delta)
    loss = part.metrics.get("train_loss")
    return ClientRound(
        client=part.client,
        rank=int(part.assignment["rank"]),
        number_of_examples=part.number_of_examples,
        status=part.status,
        train_loss=None if loss is None else float(loss),
        epsilon=epsilon,
    )
