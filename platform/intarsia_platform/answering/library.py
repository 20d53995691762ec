"""Which of the adapters that a caller may use this service can answer with."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence

from sqlalchemy import Connection, select

from intarsia_platform.answering.bases import BaseChoice
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.tables import AdapterTable

_AT_ONCE = 5000


class Library:
    """Looks adapters up by digest, as they are registered now. Safe for several threads.

    Formal guarantee: each answer is a function of what is registered about the adapters that are
    asked for; no row of another one is read.

    Args:
        database: The registry's database.
        base: What the service answers with.
    """

    def __init__(self, database: Database, base: BaseChoice) -> None:
        """Keep both."""
        self._database = database
        self._base = base
        self._lock = threading.Lock()
        self._known: dict[str, str | None] = {}
        self._cleared = 0

    def clear(self) -> None:
        """Look everything up again; to be called when the epoch has moved.

        What is registered about a digest changes in no other way: a new adapter is a new digest.
        """
        with self._lock:
            self._known.clear()
            self._cleared += 1

    def servable(self, digests: Collection[str]) -> dict[str, str | None]:
        """Of some adapters those that were admitted, and that fit the base.

        Args:
            digests: The adapters.

        Returns:
            From each one's digest to its descriptor's, None where it has none: an adapter that is
            no group's can be named, not retrieved.
        """
        with self._lock:
            cleared = self._cleared
            found = {one: self._known[one] for one in digests if one in self._known}
        unknown = [one for one in digests if one not in found]
        if unknown:
            looked_up: dict[str, str | None] = {}
            with self._database.read() as connection:
                for some in _in_parts(unknown):
                    looked_up |= self._servable(connection, some)
            with self._lock:
                # What was read before all was forgotten may have changed since.
                if cleared == self._cleared:
                    self._known |= looked_up
            found |= looked_up
        return found

    def describes(self, adapter: str, descriptor: str) -> bool:
        """Whether a descriptor is an adapter's now.

        Args:
            adapter: The adapter's digest.
            descriptor: The descriptor's digest.

        Returns:
            Whether it is.
        """
        statement = select(GroupTable.descriptor_digest).where(GroupTable.adapter_digest == adapter)
        with self._database.read() as connection:
            return descriptor in set(connection.execute(statement).scalars())

    def gone(self, digests: Collection[str]) -> set[str]:
        """Of some adapters those that are not registered, or not any more.

        Args:
            digests: The adapters.

        Returns:
            Their digests.
        """
        left = set(digests)
        with self._database.read() as connection:
            for some in _in_parts(digests):
                statement = select(AdapterTable.digest).where(AdapterTable.digest.in_(some))
                left.difference_update(connection.execute(statement).scalars())
        return left

    def _servable(self, connection: Connection, digests: Sequence[str]) -> dict[str, str | None]:
        statement = (
            select(AdapterTable.digest, GroupTable.descriptor_digest, GroupTable.settings)
            .join(AdapterRightsTable, AdapterRightsTable.digest == AdapterTable.digest)
            .outerjoin(GroupTable, GroupTable.adapter_digest == AdapterTable.digest)
            .where(
                AdapterTable.digest.in_(digests),
                AdapterTable.base_digest == self._base.digest,
                AdapterTable.task == self._base.task,
                AdapterRightsTable.signature_digest.is_not(None),
            )
        )
        return {
            row.digest: row.descriptor_digest
            for row in connection.execute(statement)
            # Whose classes are not known may mean others by the same head.
            if tuple((row.settings or {}).get("classes", ())) == self._base.classes
        }


def _in_parts(digests: Collection[str]) -> Iterator[list[str]]:
    """A database takes only so many values in one statement."""
    ordered = sorted(set(digests))
    for begin in range(0, len(ordered), _AT_ONCE):
        yield ordered[begin : begin + _AT_ONCE]
