"""Who took part in a round and how it ended for each; the statements that the journal is made of.

A participation is settled once: the first of accepted, refused, failed, late and sat-out stands.
Only a round that is taken up again after a kill opens those that failed or were late.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import InputError, IntegrityError, RefusedUpdate
from sqlalchemy import BindParameter, Connection, bindparam, insert, select, update

from intarsia_platform.registry.database import insert_if_absent
from intarsia_platform.registry.privacy_ledger import record_spend
from intarsia_platform.registry.rows import (
    ParticipationRow,
    ParticipationStatus,
    PlannedParticipation,
    PrivacySpendRow,
    RefusalRow,
)
from intarsia_platform.registry.runs import checked_json
from intarsia_platform.registry.tables import NonceTable, ParticipationTable, RefusalTable

MAX_CLIENT_NAME = 255
MAX_NONCE = 255
MAX_DETAIL = 1000


def insert_plan(
    connection: Connection, run_id: str, number: int, plan: Sequence[PlannedParticipation]
) -> None:
    """Write down who is asked to take part in a round.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        plan: One entry a client; may be empty.

    Raises:
        InputError: If a client stands there twice, a name is too long or a node is not 64 bits.
    """
    seen: set[str] = set()
    for entry in plan:
        if entry.client in seen:
            raise InputError("client", f"{entry.client} is planned twice", "plan it once a round")
        if not 0 < len(entry.client) <= MAX_CLIENT_NAME:
            raise InputError(
                "client name", repr(entry.client[:40]), f"use 1 to {MAX_CLIENT_NAME} characters"
            )
        if not 0 <= entry.node_id < 2**64:
            raise InputError("node id", entry.node_id, "use an unsigned 64-bit number")
        seen.add(entry.client)
    rows = [
        {
            **dataclasses.asdict(entry),
            "assignment": checked_json(f"assignment of {entry.client}", entry.assignment),
            "run_id": run_id,
            "round": number,
            "number_of_examples": 0,
            "bytes_up": 0,
            "bytes_down": 0,
            "metrics": {},
        }
        for entry in plan
    ]
    if rows:
        connection.execute(insert(ParticipationTable), rows)


def list_participations(connection: Connection, run_id: str, number: int) -> list[ParticipationRow]:
    """Everyone's part in a round, sorted by client.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.

    Returns:
        One row a client.
    """
    statement = select(ParticipationTable).where(
        ParticipationTable.run_id == run_id, ParticipationTable.round == number
    )
    rows = [ParticipationRow(**row._asdict()) for row in connection.execute(statement)]
    # Sorted here, not there: databases collate differently, and the order enters the aggregate.
    return sorted(rows, key=lambda row: row.client)


def add_bytes_down(
    connection: Connection, run_id: str, number: int, bytes_down: Mapping[str, int]
) -> None:
    """Count what was sent to each client.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        bytes_down: From client to bytes.

    Raises:
        IntegrityError: If a client is not in the round.
    """
    known = {row.client for row in list_participations(connection, run_id, number)}
    for client in sorted(bytes_down):
        if client not in known:
            raise _not_in_round(run_id, number, client)
    who: BindParameter[str] = bindparam("who")
    sent: BindParameter[int] = bindparam("sent")
    statement = (
        update(ParticipationTable)
        .where(
            ParticipationTable.run_id == run_id,
            ParticipationTable.round == number,
            ParticipationTable.client == who,
        )
        .values(bytes_down=ParticipationTable.bytes_down + sent)
    )
    if bytes_down:
        rows = [{"who": client, "sent": size} for client, size in sorted(bytes_down.items())]
        connection.execute(statement, rows)


def accept_participation(
    connection: Connection,
    run_id: str,
    number: int,
    client: str,
    *,
    nonce: str,
    values: Mapping[str, Any],
) -> None:
    """Settle a participation as accepted and use its nonce up.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        client: The client.
        nonce: The one-time word of the update.
        values: Columns to set beside the status.

    Raises:
        RefusedUpdate: ``"replayed-nonce"``, ``"not-invited"``, ``"duplicate-client"`` or
            ``"already-settled"``; the caller's transaction must be rolled back then.
    """
    if not nonce or nonce != _plain(nonce, MAX_NONCE):
        raise RefusedUpdate(
            "replayed-nonce",
            f"update of {client} in round {number}",
            "no usable nonce",
            "send the nonce of this round",
        )
    used = {"run_id": run_id, "nonce": nonce, "round": number, "client": client}
    if not insert_if_absent(connection, NonceTable, used):
        raise RefusedUpdate(
            "replayed-nonce",
            f"update of {client} in round {number}",
            f"nonce {nonce[:40]} was used before",
            "train again with the nonce of this round",
        )
    status = _status(connection, run_id, number, client)
    thing = f"update of {client} in round {number}"
    if status is None or status == "sat-out":
        raise RefusedUpdate("not-invited", thing, "was not asked for", "wait to be asked")
    if status == "accepted":
        raise RefusedUpdate("duplicate-client", thing, "has one already", "send one a round")
    if status != "planned":
        raise RefusedUpdate("already-settled", thing, f"is {status}", "wait for the next round")
    settled = _of_client(run_id, number, client).values(status="accepted", **values)
    connection.execute(settled)


def settle(
    connection: Connection,
    run_id: str,
    number: int,
    client: str,
    status: ParticipationStatus,
    *,
    reason: str,
    detail: str = "",
    bytes_up: int = 0,
    spend: PrivacySpendRow | None = None,
) -> bool:
    """Settle a participation that did not end in an accepted update.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round.
        client: The client.
        status: ``"refused"``, ``"failed"``, ``"late"`` or ``"sat-out"``.
        reason: A short word.
        detail: The line that goes with it, cut to :data:`MAX_DETAIL` characters.
        bytes_up: Bytes it sent.
        spend: What it spent in privacy all the same; recorded only if this settles its part.

    Returns:
        Whether it was open until now; what was settled before stands.
    """
    statement = (
        _of_client(run_id, number, client)
        .where(ParticipationTable.status == "planned")
        .values(status=status, reason=reason, detail=_plain(detail, MAX_DETAIL), bytes_up=bytes_up)
    )
    settled = connection.execute(statement).rowcount == 1
    if settled and spend is not None:
        record_spend(connection, spend)
    return settled


def open_unanswered(connection: Connection, run_id: str, number: int) -> int:
    """Open the parts of those that failed or were late again; gives how many there were."""
    statement = (
        update(ParticipationTable)
        .where(
            ParticipationTable.run_id == run_id,
            ParticipationTable.round == number,
            ParticipationTable.status.in_(("failed", "late")),
        )
        .values(status="planned", reason=None, detail=None)
    )
    return connection.execute(statement).rowcount


def settle_open_as_late(connection: Connection, run_id: str, number: int) -> int:
    """Settle whoever has not answered as late; gives how many there were."""
    statement = (
        update(ParticipationTable)
        .where(
            ParticipationTable.run_id == run_id,
            ParticipationTable.round == number,
            ParticipationTable.status == "planned",
        )
        .values(status="late", reason="no-answer", detail="")
    )
    return connection.execute(statement).rowcount


def require_participant(connection: Connection, run_id: str, number: int, client: str) -> None:
    """Raise ``IntegrityError`` unless a client is in the round."""
    if _status(connection, run_id, number, client) is None:
        raise _not_in_round(run_id, number, client)


def insert_refusal(
    connection: Connection,
    run_id: str,
    number: int,
    client: str,
    reason: str,
    detail: str,
    bytes_up: int,
) -> None:
    """Append to the list of messages that were turned away.

    Args:
        connection: An open transaction.
        run_id: The run.
        number: The round that was open.
        client: Who it said it was from, cut to :data:`MAX_CLIENT_NAME` characters.
        reason: The short stable word.
        detail: The line for a person, cut to :data:`MAX_DETAIL` characters.
        bytes_up: Its size.
    """
    values = {
        "run_id": run_id,
        "round": number,
        "client": _plain(client, MAX_CLIENT_NAME),
        "reason": reason,
        "detail": _plain(detail, MAX_DETAIL),
        "bytes_up": bytes_up,
        "created_at": datetime.now(UTC),
    }
    connection.execute(insert(RefusalTable).values(values))


def list_refusals(connection: Connection, run_id: str, number: int) -> list[RefusalRow]:
    """Messages turned away in a round, in the order in which they came."""
    table = RefusalTable
    columns = [getattr(table, field.name) for field in dataclasses.fields(RefusalRow)]
    statement = (
        select(*columns).where(table.run_id == run_id, table.round == number).order_by(table.id)
    )
    return [RefusalRow(**row._asdict()) for row in connection.execute(statement)]


def _plain(text: str, limit: int) -> str:
    """Text from anyone as what every database takes: no NUL, no lone surrogates, bounded."""
    return text.encode(errors="replace").decode().replace("\x00", "?")[:limit]


def _of_client(run_id: str, number: int, client: str) -> Any:
    return update(ParticipationTable).where(
        ParticipationTable.run_id == run_id,
        ParticipationTable.round == number,
        ParticipationTable.client == client,
    )


def _status(connection: Connection, run_id: str, number: int, client: str) -> str | None:
    statement = select(ParticipationTable.status).where(
        ParticipationTable.run_id == run_id,
        ParticipationTable.round == number,
        ParticipationTable.client == client,
    )
    return connection.execute(statement).scalar_one_or_none()


def _not_in_round(run_id: str, number: int, client: str) -> IntegrityError:
    return IntegrityError(
        f"round {number} of {run_id}", f"{client} is not in it", "name a planned client"
    )
