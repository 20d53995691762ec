"""Rounds and the steps between their states; the statements that the journal is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import IntegrityError
from sqlalchemy import Connection, func, insert, select, update

from intarsia_platform.registry.lineage import Relation, find_artefacts, link, record_artefact
from intarsia_platform.registry.participations import list_participations
from intarsia_platform.registry.rows import RoundRow, RoundState, RunRow
from intarsia_platform.registry.tables import RoundTable

LEGAL_STEPS: Mapping[RoundState, tuple[RoundState, ...]] = {
    "planned": ("sent",),
    "sent": ("sent", "collecting"),
    "collecting": ("sent", "aggregating"),
    "aggregating": ("published",),
    "published": (),
}
"""From each state to those that may follow; back to ``sent`` only to send again after a kill."""


def find_round(
    connection: Connection, run_id: str, number: int, *, for_update: bool = False
) -> RoundRow:
    """One round.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        for_update: Whether to let nobody else change it until the transaction ends.

    Returns:
        The round.

    Raises:
        IntegrityError: If it is not planned.
    """
    statement = select(RoundTable).where(RoundTable.run_id == run_id, RoundTable.number == number)
    if for_update:
        statement = statement.with_for_update()
    row = connection.execute(statement).one_or_none()
    if row is None:
        raise IntegrityError(f"round {number} of {run_id}", "unknown", "plan it first")
    return RoundRow(**row._asdict())


def newest_round(connection: Connection, run_id: str) -> RoundRow | None:
    """The round of the highest number, or None in a new run."""
    number = connection.execute(
        select(func.max(RoundTable.number)).where(RoundTable.run_id == run_id)
    ).scalar()
    return None if number is None else find_round(connection, run_id, number)


def list_published(connection: Connection, run_id: str) -> list[RoundRow]:
    """All published rounds, by number."""
    statement = (
        select(RoundTable)
        .where(RoundTable.run_id == run_id, RoundTable.state == "published")
        .order_by(RoundTable.number)
    )
    return [RoundRow(**row._asdict()) for row in connection.execute(statement)]


def insert_round(connection: Connection, run: RunRow, number: int, start_digest: str) -> RoundRow:
    """Plan a round after the newest one.

    Args:
        connection: An open transaction.
        run: The run.
        number: One more than the newest round, which must be published; 1 in a new run.
        start_digest: What the clients start from; becomes an artefact where it is not one.

    Returns:
        The round.

    Raises:
        IntegrityError: If this round cannot be planned now.
    """
    newest = newest_round(connection, run.id)
    before = (newest.number, newest.state) if newest else (0, "published")
    if before != (number - 1, "published"):
        state = f"{before[1]} (round {before[0]})"
        raise illegal(run.id, number, state, "planned")
    previous = (newest and newest.result_digest) or run.base_digest
    details = {"run": run.id, "round": number - 1}
    if record_artefact(connection, start_digest, "version", details=details):
        link(connection, start_digest, {previous: "continued"})
    now = datetime.now(UTC)
    row = RoundRow(
        run_id=run.id,
        number=number,
        state="planned",
        start_digest=start_digest,
        aggregate_digest=None,
        result_digest=None,
        metrics={},
        created_at=now,
        updated_at=now,
    )
    connection.execute(insert(RoundTable).values(dataclasses.asdict(row)))
    return row


def step(
    connection: Connection, run_id: str, number: int, state: RoundState, **values: Any
) -> RoundRow:
    """Move a round to its next state.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        state: The next state.
        **values: Columns to set with it.

    Returns:
        The round after the step.

    Raises:
        IntegrityError: If the step is not one of :data:`LEGAL_STEPS`.
    """
    row = find_round(connection, run_id, number, for_update=True)
    if state not in LEGAL_STEPS[row.state]:
        raise illegal(run_id, number, row.state, state)
    changes = {"state": state, "updated_at": datetime.now(UTC), **values}
    where = (RoundTable.run_id == run_id, RoundTable.number == number)
    connection.execute(update(RoundTable).where(*where).values(changes))
    return dataclasses.replace(row, **changes)


def require_sent(connection: Connection, run_id: str, number: int, purpose: str) -> None:
    """Raise ``IntegrityError`` unless the round was sent; nobody can have answered before that."""
    row = find_round(connection, run_id, number, for_update=True)
    if row.state == "planned":
        raise illegal(run_id, number, row.state, purpose)


def record_update(
    connection: Connection,
    row: RoundRow,
    client: str,
    update_digest: str,
    size: int,
    shard_digest: str | None,
) -> None:
    """Write down the artefacts of an accepted update and what it was made of.

    Args:
        connection: An open transaction.
        row: The round.
        client: Who sent it.
        update_digest: Digest of the update.
        size: Its bytes.
        shard_digest: Digest of the records behind it, where it is known.

    Raises:
        IntegrityError: If something was made of that very update before.
    """
    parents: dict[str, Relation] = {row.start_digest: "started-from"}
    if shard_digest is not None:
        record_artefact(connection, shard_digest, "shard", details={"client": client})
        parents[shard_digest] = "trained-on"
    details = {"run": row.run_id, "round": row.number, "client": client}
    record_artefact(connection, update_digest, "update", size=size, details=details)
    link(connection, update_digest, parents)


def record_result(
    connection: Connection,
    row: RoundRow,
    parents: Sequence[str] | None,
    aggregate_size: int | None,
) -> None:
    """Write down the artefacts of a published round and what they were made of.

    Args:
        connection: An open transaction.
        row: The round, its result's digest set.
        parents: Digests that the result was made of; None takes every accepted update and the
            start.
        aggregate_size: Bytes of the exact aggregate.

    Raises:
        IntegrityError: If a parent is not known.
    """
    if parents is None:
        took_part = list_participations(connection, row.run_id, row.number)
        accepted = [part.update_digest for part in took_part if part.update_digest is not None]
        parents = [*accepted, row.start_digest]
    kinds = {found.digest: found.kind for found in find_artefacts(connection, parents)}
    relations: dict[str, Relation] = {
        digest: "aggregated" if kinds.get(digest) == "update" else "continued" for digest in parents
    }
    result = row.result_digest or ""
    details = {"run": row.run_id, "round": row.number}
    record_artefact(connection, result, "version", details=details)
    aggregate = row.aggregate_digest
    if aggregate is not None and aggregate != result:
        record_artefact(connection, aggregate, "aggregate", size=aggregate_size, details=details)
        link(connection, aggregate, relations, circular="skip")
        relations = {aggregate: "published-from"}
    link(connection, result, relations, circular="skip")


def illegal(run_id: str, number: int, before: str, after: str) -> IntegrityError:
    """The error of a step that the state of a round does not allow."""
    return IntegrityError(
        f"round {number} of {run_id}",
        f"{before} to {after}",
        "go on from where the journal says the round is",
    )
