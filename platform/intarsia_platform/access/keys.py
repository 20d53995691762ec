"""API keys: random secrets of which only a hash is kept.

A key reads ``ik-<id>-<secret>``: 16 hexadecimal digits that name it and 64 that are 256 random
bits. A fast hash is enough for such a secret (there is nothing to guess from), and it is compared
in constant time.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from sqlalchemy import Connection, Row, insert, select, update

from intarsia_platform.access.audit import append_entry
from intarsia_platform.access.caller import Caller
from intarsia_platform.access.entities import is_word
from intarsia_platform.access.refusal import not_authenticated, shown
from intarsia_platform.registry.access_tables import ApiKeyTable
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import bump

_KEY = re.compile(r"ik-([0-9a-f]{16})-([0-9a-f]{64})")
# What an unknown key is compared with; no secret is known that hashes to it.
_NOTHING = f"sha256:{'0' * 64}"


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key, without its secret.

    Args:
        id: Its identifier.
        principal: Whom it stands for.
        created_at: When it was made, in UTC.
        expires_at: From when on it does not hold, None for never.
        revoked_at: When it was revoked, None where it was not.
    """

    id: str
    principal: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def holds(self, now: datetime) -> bool:
        """Whether it may be used.

        Args:
            now: The time, aware.

        Returns:
            Whether it is neither revoked nor expired.
        """
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class ApiKeys:
    """The keys of a database; safe to share between threads.

    Args:
        database: The database.
        clock: Gives the time, aware.
    """

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        """Keep both."""
        self._database = database
        self._clock = clock

    def create(self, principal: str, lifetime: timedelta | None = None) -> tuple[str, str]:
        """Make a key.

        Args:
            principal: Whom it stands for; need not be known yet.
            lifetime: How long it holds; None for ever.

        Returns:
            Its identifier, and the key itself, which is kept nowhere.

        Raises:
            InputError: If the principal is not a word or the lifetime not positive.
            StorageError: If it cannot be written.
        """
        if not is_word(principal):
            raise InputError("principal", shown(principal), "use up to 255 printable characters")
        now = self._clock()
        expires_at = _end(now, lifetime)
        key_id, secret = secrets.token_hex(8), secrets.token_hex(32)
        with self._database.begin() as connection:
            connection.execute(
                insert(ApiKeyTable).values(
                    id=key_id,
                    principal=principal,
                    secret_hash=bytes_digest(secret.encode()),
                    created_at=now,
                    expires_at=expires_at,
                    revoked_at=None,
                )
            )
            expires = None if expires_at is None else expires_at.isoformat()
            event = {"action": "key-create", "key": key_id, "expires": expires}
            append_entry(connection, {**event, "principal": principal})
        return key_id, f"ik-{key_id}-{secret}"

    def verify(self, text: str) -> str:
        """Find out for whom a key stands.

        Args:
            text: What the caller presented.

        Returns:
            The principal.

        Raises:
            AccessError: As :meth:`identify`.
        """
        return self.identify(text).principal

    def identify(self, text: str) -> Caller:
        """Find out for whom a key stands, and which one it is.

        A key that is malformed, unknown, wrong, revoked or expired costs the same look-up, hash
        and comparison, and gets the same words.

        Args:
            text: What the caller presented.

        Returns:
            The principal and the key's identifier.

        Raises:
            AccessError: If it is not a key that holds.
        """
        match = _KEY.fullmatch(text)
        key_id, secret = (match[1], match[2]) if match else ("0" * 16, "0" * 64)
        presented = bytes_digest(secret.encode())
        with self._database.read() as connection:
            row = connection.execute(select(ApiKeyTable).where(ApiKeyTable.id == key_id)).first()
        kept = row.secret_hash if row is not None else _NOTHING
        same = hmac.compare_digest(presented.encode(), kept.encode())
        if match is None or row is None or not same or not _key(row).holds(self._clock()):
            raise not_authenticated()
        return Caller(principal=row.principal, credential=row.id)

    def standing(self, key_id: str, principal: str, now: datetime) -> ApiKey | None:
        """A key that still holds for a principal; the secret is not asked again.

        Args:
            key_id: Its identifier.
            principal: Whom it must stand for.
            now: The time, aware.

        Returns:
            The key, None where it does not hold.
        """
        with self._database.read() as connection:
            key = _find(connection, key_id)
        return key if key and key.principal == principal and key.holds(now) else None

    def list(self) -> tuple[ApiKey, ...]:
        """All keys, the revoked ones too, the oldest first."""
        statement = select(ApiKeyTable).order_by(ApiKeyTable.created_at, ApiKeyTable.id)
        with self._database.read() as connection:
            return tuple(_key(row) for row in connection.execute(statement))

    def revoke(self, key_id: str) -> ApiKey:
        """Revoke a key; raises the epoch, so that running answers under it end.

        Args:
            key_id: Its identifier.

        Returns:
            The key; one that was revoked before keeps its time.

        Raises:
            InputError: If there is no such key.
            StorageError: If it cannot be written.
        """
        with self._database.begin() as connection:
            statement = (
                update(ApiKeyTable)
                .where(ApiKeyTable.id == key_id, ApiKeyTable.revoked_at.is_(None))
                .values(revoked_at=self._clock())
            )
            if connection.execute(statement).rowcount:
                epoch = bump(connection)
                append_entry(connection, {"action": "key-revoke", "key": key_id, "epoch": epoch})
            key = _find(connection, key_id)
        if key is None:
            raise InputError("key", shown(key_id), "see `intarsia keys list`")
        return key


def _end(now: datetime, lifetime: timedelta | None) -> datetime | None:
    if lifetime is None:
        return None
    try:
        end = now + lifetime
    except OverflowError:
        end = now
    if end <= now:
        raise InputError("key lifetime", lifetime, "use a time above 0 that ends before year 10000")
    return end


def _find(connection: Connection, key_id: str) -> ApiKey | None:
    row = connection.execute(select(ApiKeyTable).where(ApiKeyTable.id == key_id)).first()
    return None if row is None else _key(row)


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=row.id,
        principal=row.principal,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
