"""What policies may ask of an adapter, as the registry knows it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from intarsia_platform.access.schema import ADAPTER
from intarsia_platform.registry.access_tables import AdapterRightsTable
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.tables import AdapterTable


@dataclass(frozen=True, kw_only=True)
class AdapterFacts:
    """One registered adapter as policies see it.

    Args:
        digest: Its digest.
        name: Its name in the registry; its identifier in policies.
        labels: Its labels, sorted.
        owner: Who answers for it; ``""`` where nobody was named.
        tenant: Whose it is; ``""`` where nobody was named.
        level: The clearance that it asks for.
        expires_at: From when on nobody may use it; None for never.
    """

    digest: str
    name: str
    labels: tuple[str, ...] = ()
    owner: str = ""
    tenant: str = ""
    level: int = 0
    expires_at: datetime | None = None

    def expired(self, now: datetime) -> bool:
        """Whether nobody may use it any more.

        Args:
            now: The time, aware.

        Returns:
            Whether its time is over.
        """
        return self.expires_at is not None and now >= self.expires_at

    def as_entity(self) -> dict[str, Any]:
        """The adapter in Cedar's JSON."""
        attributes = {
            "name": self.name,
            "labels": list(self.labels),
            "owner": self.owner,
            "tenant": self.tenant,
            "level": self.level,
        }
        return {"uid": {"type": ADAPTER, "id": self.name}, "attrs": attributes, "parents": []}


class AdapterFactsReader:
    """Reads the facts of registered adapters.

    Args:
        database: The registry's database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database

    def all(self) -> tuple[AdapterFacts, ...]:
        """The facts of every registered adapter, in order of their digests."""
        with self._database.read() as connection:
            return read_facts(connection)

    def of(self, digest: str) -> AdapterFacts | None:
        """The facts of one adapter.

        Args:
            digest: Its whole digest.

        Returns:
            Its facts, None where it is not registered (any more).
        """
        with self._database.read() as connection:
            found = read_facts(connection, digest)
        return found[0] if found else None


def read_facts(connection: Connection, *digests: str) -> tuple[AdapterFacts, ...]:
    """Read facts in the caller's transaction.

    Args:
        connection: An open transaction.
        digests: Whole digests; none for every adapter.

    Returns:
        The facts of those that are registered, in order of their digests.
    """
    statement = (
        select(
            AdapterTable.digest,
            AdapterTable.name,
            AdapterTable.labels,
            AdapterRightsTable.owner,
            AdapterRightsTable.tenant,
            AdapterRightsTable.level,
            AdapterRightsTable.expires_at,
        )
        .outerjoin(AdapterRightsTable, AdapterRightsTable.digest == AdapterTable.digest)
        .order_by(AdapterTable.digest)
    )
    if digests:
        statement = statement.where(AdapterTable.digest.in_(digests))
    return tuple(
        AdapterFacts(
            digest=row.digest,
            name=row.name,
            labels=tuple(sorted(row.labels)),
            owner=row.owner or "",
            tenant=row.tenant or "",
            level=row.level or 0,
            expires_at=row.expires_at,
        )
        for row in connection.execute(statement)
    )
