"""Tickets: what a principal may use, decided once, that nobody can alter.

A ticket is authenticated with HMAC-SHA256 (RFC 2104) over an injective encoding of all its fields:
a tag of the domain, then every field with its length before it.

Formal guarantee: without the mint's secret, nobody can make a ticket that :meth:`TicketMint.check`
accepts and that differs in any field from one that the mint issued, under the assumption that HMAC
with SHA-256 cannot be forged.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import math
import os
import secrets
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from intarsia_client.errors import InputError, StorageError
from intarsia_client.files import bytes_digest, canonical_json

from intarsia_platform.access.refusal import bad_ticket, refused
from intarsia_platform.home import Home

SECRET_BYTES = 32

_DOMAIN = b"intarsia ticket 2"


@dataclass(frozen=True, kw_only=True)
class GrantedAdapter:
    """One adapter that a ticket grants.

    Args:
        digest: Its digest.
        name: Its name when the ticket was issued.
        labels: Its labels then, sorted.
    """

    digest: str
    name: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """What one principal may use for one purpose, for a short while.

    Args:
        id: Unique; a ticket is admitted once.
        principal: Whose it is.
        purpose: What for.
        adapters: What may be used, sorted by digest.
        apart: Pairs of digests that no answer may mix, each pair sorted.
        policy_version: Digest of the policies that decided; ``""`` where there were none.
        epoch: The epoch that it was decided in.
        issued_at: When, in seconds since 1970.
        expires_at: From when on it does not hold, in seconds since 1970.
        credential: The API key's identifier that its principal came with, or ``""``.
        issuer: Who issued it, and alone lets it in.
        mac: The mint's code over everything above, in hexadecimal.
    """

    id: str
    principal: str
    purpose: str
    adapters: tuple[GrantedAdapter, ...]
    apart: frozenset[tuple[str, str]]
    policy_version: str
    epoch: int
    issued_at: float
    expires_at: float
    credential: str = ""
    issuer: str = ""
    mac: str = field(repr=False)

    @property
    def digests(self) -> tuple[str, ...]:
        """Digests of the granted adapters, sorted."""
        return tuple(granted.digest for granted in self.adapters)

    @property
    def allowed_digest(self) -> str:
        """Digest of the granted adapters' sorted digests."""
        return bytes_digest(canonical_json(sorted(self.digests)))

    def adapter(self, digest: str) -> GrantedAdapter:
        """A granted adapter by its digest.

        Args:
            digest: Its whole digest.

        Returns:
            The adapter.

        Raises:
            AccessError: If the ticket does not grant it, whether it exists or not.
        """
        for granted in self.adapters:
            if granted.digest == digest:
                return granted
        raise refused("adapter", digest)

    def named(self, name: str) -> GrantedAdapter:
        """A granted adapter by its name.

        Args:
            name: Its name.

        Returns:
            The adapter.

        Raises:
            AccessError: As :meth:`adapter`.
        """
        for granted in self.adapters:
            if granted.name == name:
                return granted
        raise refused("adapter", name)


class TicketMint:
    """Issues and checks tickets; safe to share between threads.

    Args:
        secret: At least 32 random bytes, the same for all who issue and check.

    Raises:
        InputError: If the secret is shorter.
    """

    def __init__(self, secret: bytes) -> None:
        """Keep the secret."""
        if len(secret) < SECRET_BYTES:
            raise InputError("ticket secret", f"{len(secret)} bytes", f"use {SECRET_BYTES} or more")
        self._secret = secret

    def issue(
        self,
        *,
        principal: str,
        purpose: str = "",
        adapters: Iterable[GrantedAdapter],
        apart: Iterable[tuple[str, str]] = (),
        policy_version: str,
        epoch: int,
        issued_at: float,
        expires_at: float,
        credential: str = "",
        issuer: str = "",
    ) -> Ticket:
        """Issue a ticket.

        Args:
            principal: As :class:`Ticket`.
            purpose: As :class:`Ticket`.
            adapters: In any order.
            apart: In any order.
            policy_version: As :class:`Ticket`.
            epoch: As :class:`Ticket`.
            issued_at: As :class:`Ticket`.
            expires_at: As :class:`Ticket`.
            credential: As :class:`Ticket`.
            issuer: As :class:`Ticket`.

        Returns:
            The ticket.

        Raises:
            InputError: If a time is not finite.
        """
        if not (math.isfinite(issued_at) and math.isfinite(expires_at)):
            raise InputError("ticket times", f"{issued_at}, {expires_at}", "use finite seconds")
        ticket = Ticket(
            id=secrets.token_hex(16),
            principal=principal,
            purpose=purpose,
            adapters=tuple(sorted(adapters, key=lambda granted: granted.digest)),
            apart=frozenset((min(pair), max(pair)) for pair in apart),
            policy_version=policy_version,
            epoch=epoch,
            issued_at=float(issued_at),
            expires_at=float(expires_at),
            credential=credential,
            issuer=issuer,
            mac="",
        )
        return dataclasses.replace(ticket, mac=self._code(ticket))

    def check(self, ticket: Ticket, now: float) -> None:
        """Accept a ticket that this mint issued and whose time is not over.

        Args:
            ticket: The ticket.
            now: Seconds since 1970.

        Raises:
            AccessError: If it is forged or expired, in the same words.
        """
        if not self.accepts(ticket, now):
            raise bad_ticket()

    def accepts(self, ticket: Ticket, now: float) -> bool:
        """Whether :meth:`check` accepts a ticket.

        Args:
            ticket: The ticket.
            now: Seconds since 1970.

        Returns:
            Whether it is genuine and its time is not over; comparing the codes takes the same
            time wherever they differ.
        """
        try:
            genuine = hmac.compare_digest(self._code(ticket).encode(), ticket.mac.encode())
            return genuine and bool(now < ticket.expires_at)
        except (AttributeError, TypeError, ValueError, struct.error):
            # A field is not of its type: nothing that this mint issued.
            return False

    def _code(self, ticket: Ticket) -> str:
        return hmac.new(self._secret, _encoded(ticket), hashlib.sha256).hexdigest()


def open_mint(home: Home) -> TicketMint:
    """The mint of a home; its secret lies in ``keys/ticket-secret``, made on first use.

    Args:
        home: The home.

    Returns:
        The mint.

    Raises:
        StorageError: As :func:`load_secret`.
    """
    return TicketMint(load_secret(home.path / "keys" / "ticket-secret"))


def load_secret(path: Path) -> bytes:
    """Read the mint's secret, made on first use; nobody but its owner may read the file.

    Formal guarantee: however many processes call it at once, all get the same secret, and a
    process that is killed leaves the file whole or absent.

    Args:
        path: The file; its folder is made where it is missing.

    Returns:
        32 bytes.

    Raises:
        StorageError: If it cannot be read or made, is open to others, or is no secret.
    """
    try:
        if not path.exists():
            _make_secret(path)
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            secret = stream.read(SECRET_BYTES + 1)
    except OSError as error:
        raise StorageError(
            f"file {path}", error.strerror, "make its folder readable and writable for you"
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise StorageError(f"file {path}", "others may read or write it", "set its mode to 0600")
    if len(secret) != SECRET_BYTES:
        raise StorageError(
            f"file {path}", "is no secret of 32 bytes", "remove it; tickets in use end with it"
        )
    return secret


def _make_secret(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(secrets.token_bytes(SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        try:
            # Unlike a rename, a link never takes the place of what another process made.
            path.hardlink_to(temporary)
        except FileExistsError:
            return
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _encoded(ticket: Ticket) -> bytes:
    """The fields so that no two tickets give the same bytes."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in _parts(ticket))


def _parts(ticket: Ticket) -> Iterator[bytes]:
    yield _DOMAIN
    for word in (ticket.id, ticket.principal, ticket.purpose, ticket.policy_version):
        yield word.encode()
    yield ticket.credential.encode()
    yield ticket.issuer.encode()
    yield str(ticket.epoch).encode()
    yield struct.pack(">dd", ticket.issued_at, ticket.expires_at)
    yield str(len(ticket.adapters)).encode()
    for granted in ticket.adapters:
        yield granted.digest.encode()
        yield granted.name.encode()
        yield str(len(granted.labels)).encode()
        yield from (label.encode() for label in granted.labels)
    for pair in sorted(ticket.apart):
        yield from (digest.encode() for digest in (str(len(pair)), *pair))
