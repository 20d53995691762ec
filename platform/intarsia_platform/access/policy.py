"""Policies in force: the store of every set there was, and the way in to decisions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import IntegrityError
from sqlalchemy import Connection, insert, select

from intarsia_platform.access.audit import append_entry
from intarsia_platform.access.decisions import Decision, apart, decide, decide_together
from intarsia_platform.access.facts import AdapterFacts, AdapterFactsReader
from intarsia_platform.access.policy_set import PolicySet
from intarsia_platform.registry.access_tables import PolicyTable
from intarsia_platform.registry.database import Database, serialise
from intarsia_platform.registry.epoch import bump

__all__ = [
    "AdapterFacts",
    "AdapterFactsReader",
    "Decision",
    "PolicyRecord",
    "PolicySet",
    "PolicyStore",
    "apart",
    "decide",
    "decide_together",
]

_NEWEST = select(PolicyTable.number, PolicyTable.version).order_by(PolicyTable.number.desc())


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    """One policy set that was or is in force.

    Args:
        number: From 1; the highest is in force.
        version: Its digest.
        created_at: When it was set, in UTC.
    """

    number: int
    version: str
    created_at: datetime


class PolicyStore:
    """The policy sets of a database; safe to share between threads.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database
        self._parsed: PolicySet | None = None

    def current(self) -> PolicySet | None:
        """The set in force, None where there never was one.

        Raises:
            IntegrityError: If its texts are not what was set.
        """
        with self._database.read() as connection:
            return self.read(connection)

    def read(self, connection: Connection) -> PolicySet | None:
        """The set in force, in the caller's transaction.

        Args:
            connection: An open transaction.

        Returns:
            The set, None where there never was one.

        Raises:
            IntegrityError: If its texts are not what was set.
        """
        newest = connection.execute(_NEWEST.limit(1)).first()
        if newest is None:
            return None
        parsed = self._parsed
        if parsed is None or parsed.version != newest.version:
            parsed = _read(connection, newest.number)
            self._parsed = parsed
        return parsed

    def set(self, policies: str, entities: str) -> PolicySet:
        """Put policies and users in force; from the next epoch on they decide.

        The audit log's entry and the new epoch are written in the same transaction.

        Args:
            policies: Cedar policies.
            entities: Users in Cedar's JSON.

        Returns:
            The set.

        Raises:
            InputError: If either is not valid; nothing changes then.
            StorageError: If it cannot be written.
        """
        parsed = PolicySet(policies, entities)
        with self._database.begin() as connection:
            serialise(connection, "policies")
            newest = connection.execute(_NEWEST.limit(1)).first()
            number = newest.number + 1 if newest else 1
            row: dict[str, Any] = {
                "number": number,
                "version": parsed.version,
                "policies": policies,
                "entities": entities,
                "created_at": datetime.now(UTC),
            }
            connection.execute(insert(PolicyTable).values(**row))
            epoch = bump(connection)
            event = {
                "action": "policy-set",
                "policy_version": parsed.version,
                "number": number,
                "policies": len(parsed.statements),
                "users": len(parsed.users),
                "epoch": epoch,
            }
            append_entry(connection, event)
        self._parsed = parsed
        return parsed

    def history(self) -> tuple[PolicyRecord, ...]:
        """Every set there was, the newest last."""
        columns = (PolicyTable.number, PolicyTable.version, PolicyTable.created_at)
        statement = select(*columns).order_by(PolicyTable.number)
        with self._database.read() as connection:
            return tuple(PolicyRecord(**row._asdict()) for row in connection.execute(statement))


def _read(connection: Connection, number: int) -> PolicySet:
    statement = select(PolicyTable).where(PolicyTable.number == number)
    row = connection.execute(statement).one()
    parsed = PolicySet(row.policies, row.entities)
    if parsed.version != row.version:
        raise IntegrityError(
            f"policy set {number}", "is not what was set", "set the policies again from their files"
        )
    return parsed
