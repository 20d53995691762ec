"""The audit log: what was decided and done, in a chain that shows whether it was altered.

Every entry's digest covers its number, its time, its event and the digest of the entry before it
(the linked time-stamping of Haber and Stornetta, 1991). There is no prompt text in it: an event
has only fields that are listed here, each a short word, a number, or a list of such.

Formal guarantee: whoever changes, inserts, reorders or takes out entries, without the entries after
them being made anew, is found out by :meth:`AuditLog.verify`, which names the first entry that is
not what it was. The chain has no key: who can write the database can make it anew from any entry
on, or cut entries off its end. Both are found by whoever kept a digest that stood after that place
elsewhere and hands it to :meth:`AuditLog.verify`; without one they are not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest, canonical_json
from sqlalchemy import Connection, Text, insert, select, type_coerce

from intarsia_platform.access.refusal import shown
from intarsia_platform.registry.access_tables import AuditTable
from intarsia_platform.registry.database import Database, serialise

BEGINNING = bytes_digest(b"intarsia audit log")
"""What stands before the first entry."""

FIELDS = frozenset([
    "action", "actor", "adapter", "adapters", "allowed_digest", "cache", "credential", "decision",
    "epoch", "errors", "expires", "finish", "group", "key", "labels", "model", "name", "number",
    "policies", "policy_version", "principal", "purpose", "reasons", "request", "seconds",
    "status", "streamed", "ticket", "tokens", "used", "users", "version", "weight",
])  # fmt: skip
"""What an event may tell; nothing that could hold a prompt or an answer is among it."""

MAX_WORD = 300
MAX_EVENT_BYTES = 64 * 1024

_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class AuditEntry:
    """One entry.

    Args:
        sequence: Its number, from 1 without gaps.
        created_at: When it was written, in UTC.
        event: What happened.
        previous: Digest of the entry before it.
        digest: Its own digest.
    """

    sequence: int
    created_at: datetime
    event: Mapping[str, Any]
    previous: str
    digest: str


class AuditLog:
    """The log of one database.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database

    def append(self, event: Mapping[str, Any]) -> AuditEntry:
        """Write an entry in a transaction of its own.

        Args:
            event: From names of :data:`FIELDS` to words, numbers, and lists or mappings of them.

        Returns:
            The entry.

        Raises:
            InputError: If the event holds anything else.
            StorageError: If it cannot be written.
        """
        checked = checked_event(event)
        with self._database.begin() as connection:
            return append_entry(connection, checked)

    def verify(self, head: str | None = None) -> int:
        """Check every entry and the chain between them.

        Args:
            head: A digest that was noted earlier; it must still be in the chain.

        Returns:
            How many entries there are.

        Raises:
            IntegrityError: If an entry is not what it was; the line names the first one.
        """
        return self.verified_head(head)[0]

    def verified_head(self, head: str | None = None) -> tuple[int, str]:
        """Check as :meth:`verify`, and say where the chain ends.

        Args:
            head: As :meth:`verify`.

        Returns:
            How many entries there are, and the last one's digest, to be noted.

        Raises:
            IntegrityError: As :meth:`verify`.
        """
        previous, count, seen = BEGINNING, 0, head in (None, BEGINNING)
        with self._database.read() as connection:
            for count, row in enumerate(_raw_rows(connection), start=1):
                previous = _checked_row(row, count, previous)
                seen = seen or previous == head
        if not seen:
            raise IntegrityError(
                "audit log",
                f"has no entry {shown(str(head))}",
                "its end was cut off or it was made anew; restore it from a backup",
            )
        return count, previous

    def entries(self, *, last: int | None = None) -> tuple[AuditEntry, ...]:
        """Entries, the oldest first; not verified.

        Args:
            last: How many from the end; None for all.

        Returns:
            The entries.

        Raises:
            InputError: If ``last`` is negative.
        """
        if last is not None and last < 0:
            raise InputError("number of entries", last, "ask for 0 or more")
        statement = select(AuditTable).order_by(AuditTable.sequence.desc()).limit(last)
        with self._database.read() as connection:
            rows = [row._asdict() for row in connection.execute(statement)]
        return tuple(AuditEntry(**row) for row in reversed(rows))


def append_entry(connection: Connection, event: Mapping[str, Any]) -> AuditEntry:
    """Write an entry in the caller's transaction, so that deed and entry are one.

    Args:
        connection: An open transaction of ``Database.begin``.
        event: As :meth:`AuditLog.append`.

    Returns:
        The entry.

    Raises:
        InputError: As :meth:`AuditLog.append`.
    """
    checked = checked_event(event)
    serialise(connection, "audit log")
    newest = select(AuditTable.sequence, AuditTable.digest).order_by(AuditTable.sequence.desc())
    row = connection.execute(newest.limit(1)).first()
    sequence, previous = (row.sequence + 1, row.digest) if row else (1, BEGINNING)
    created_at = datetime.now(UTC)
    text = canonical_json(checked).decode()
    entry = AuditEntry(
        sequence=sequence,
        created_at=created_at,
        event=checked,
        previous=previous,
        digest=_digest(sequence, created_at, text, previous),
    )
    connection.execute(
        insert(AuditTable).values(
            sequence=sequence,
            created_at=created_at,
            event=checked,
            previous=previous,
            digest=entry.digest,
        )
    )
    return entry


def checked_event(event: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse an event that could hold more than it should.

    Args:
        event: The event.

    Returns:
        The event as JSON gives it back.

    Raises:
        InputError: If a field is not known, or a value is not a short word or a number.
    """
    _check("event", event)
    data = canonical_json(event)
    if len(data) > MAX_EVENT_BYTES:
        raise InputError("audit event", f"{len(data)} bytes", f"at most {MAX_EVENT_BYTES} are kept")
    decoded: dict[str, Any] = json.loads(data)
    return decoded


def _check(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for field, inner in value.items():
            if field not in FIELDS:
                raise InputError("audit event", f"field {field!r}", "use a field of audit.FIELDS")
            _check(field, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(name, inner)
    elif isinstance(value, str):
        if len(value) > MAX_WORD or not all(map(str.isprintable, value)):
            raise InputError(
                "audit event", f"field {name}", f"use at most {MAX_WORD} printable characters"
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InputError("audit event", f"field {name} is {value}", "use a finite number")
    elif value is not None and not isinstance(value, int):
        raise InputError("audit event", f"field {name}", "use words, numbers and lists of them")


def _digest(sequence: int, created_at: datetime, event: str, previous: str) -> str:
    covered = {
        "created_at": created_at.astimezone(UTC).isoformat(),
        "event": event,
        "previous": previous,
        "sequence": sequence,
    }
    return bytes_digest(b"intarsia audit entry\x00", canonical_json(covered))


def _raw_rows(connection: Connection) -> Iterator[Any]:
    """The rows as the database has them: what cannot be decoded must be found, not raised."""
    columns = (
        AuditTable.sequence,
        type_coerce(AuditTable.created_at, Text).label("created_at"),
        type_coerce(AuditTable.event, Text).label("event"),
        AuditTable.previous,
        AuditTable.digest,
    )
    page = select(*columns).order_by(AuditTable.sequence).limit(_PAGE)
    rows = connection.execute(page).all()
    while rows:
        yield from rows
        following = page.where(AuditTable.sequence > rows[-1].sequence)
        rows = connection.execute(following).all()


def _checked_row(row: Any, expected: int, previous: str) -> str:
    try:
        moment = row.created_at
        if not isinstance(moment, datetime):
            moment = datetime.fromisoformat(moment)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        digest = _digest(row.sequence, moment, row.event, row.previous)
    except (TypeError, ValueError):
        digest = None
    if row.sequence != expected or row.previous != previous or row.digest != digest:
        raise IntegrityError(
            f"audit log, entry {expected}",
            "is not what was written, or was taken out",
            "do not trust it from there on; restore it from a backup",
        )
    return str(row.digest)
