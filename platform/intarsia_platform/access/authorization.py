"""The one place where a principal's rights become a ticket, and where a ticket is let in."""

from __future__ import annotations

import heapq
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from intarsia_client.errors import InputError

from intarsia_platform.access.judgement import Judge, Judgement
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.refusal import bad_ticket, refused
from intarsia_platform.access.ticket import GrantedAdapter, Ticket, TicketMint
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import read_epoch

# So many adapters together were judged when the ticket was issued.
_PAIR = 2


class Authorizer:
    """Authorises principals and lets tickets in; safe to share between threads.

    Formal guarantees: :meth:`admit` lets in each ticket that this object issued, once, and no
    other's, so that a ticket is let in at most once anywhere. :meth:`standing` says what judging
    anew would say: while the epoch is a ticket's own, no right of it was taken away, each of its
    adapters and each pair was judged when it was issued, and whatever ends by the clock ends the
    ticket. So one or two adapters need no second judgement then; more are always judged together.

    Args:
        database: The registry's database.
        mint: Issues and checks the tickets.
        lifetime_seconds: How long a ticket holds at most.
        clock: Seconds since 1970.

    Raises:
        InputError: If the lifetime is not positive.
    """

    def __init__(
        self,
        database: Database,
        mint: TicketMint,
        *,
        lifetime_seconds: float = 300.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep the parts; nothing is read yet."""
        if not 0 < lifetime_seconds < float("inf"):
            raise InputError("ticket lifetime", lifetime_seconds, "use a number of seconds above 0")
        self._database = database
        self._mint = mint
        self._lifetime = lifetime_seconds
        self._clock = clock
        self._judge = Judge(database)
        self._keys = ApiKeys(database)
        self._name = secrets.token_hex(16)
        self._lock = threading.Lock()
        self._admitted: set[str] = set()
        self._leaving: list[tuple[float, str]] = []

    def authorize(
        self,
        principal: str,
        purpose: str = "",
        *,
        credential: str = "",
        until: float | None = None,
    ) -> Ticket:
        """Decide what a principal may use, and issue a ticket for it.

        Args:
            principal: Who asks.
            purpose: What for, as policies may ask.
            credential: Identifier of the API key that the principal came with; once that is
                revoked or expired the ticket does not stand any more.
            until: When what the principal came with ends, in seconds since 1970; None where
                nothing else does.

        Returns:
            The ticket; it ends with its lifetime, with the first of its adapters, with its
            credential or at ``until``, whichever is first. It may grant nothing: then only the base
            is left.

        Raises:
            AccessError: If the principal is not known, or the credential does not hold.
            InputError: If the purpose is not a word, or ``until`` is not finite.
        """
        now = self._clock()
        judgement = self._judge.judge(principal, purpose, _moment(now))
        ends = [now + self._lifetime]
        if until is not None:
            ends.append(until)
        if judgement.expires_at is not None:
            ends.append(judgement.expires_at.timestamp())
        if credential:
            key = self._keys.standing(credential, principal, _moment(now))
            if key is None:
                raise refused("principal", principal)
            if key.expires_at is not None:
                ends.append(key.expires_at.timestamp())
        if not judgement.known:
            raise refused("principal", principal)
        return self._mint.issue(
            principal=principal,
            purpose=purpose,
            adapters=_granted(judgement),
            apart=judgement.apart,
            policy_version=judgement.policy_version,
            epoch=judgement.epoch,
            issued_at=now,
            expires_at=min(ends),
            credential=credential,
            issuer=self._name,
        )

    def epoch(self) -> int:
        """The epoch now: one query, cheap enough to ask before every token.

        Whoever serves a ticket compares it with the ticket's own epoch first, and with the last
        one that :meth:`standing` was asked at from then on.

        Returns:
            The epoch.

        Raises:
            StorageError: If the database cannot be read.
        """
        with self._database.read() as connection:
            return read_epoch(connection)

    def admit(self, ticket: Ticket) -> None:
        """Let a ticket in, once.

        Args:
            ticket: The ticket.

        Raises:
            AccessError: If it is forged, expired, another authorizer's or was let in before, or if
                the epoch moved and something that it grants may not be used any more.
        """
        now = self._clock()
        self._mint.check(ticket, now)
        if ticket.issuer != self._name:
            raise bad_ticket()
        if self.epoch() != ticket.epoch and not self._still_granted(ticket, now):
            raise bad_ticket()
        with self._lock:
            while self._leaving and self._leaving[0][0] <= now:
                self._admitted.discard(heapq.heappop(self._leaving)[1])
            if ticket.id in self._admitted:
                raise bad_ticket()
            self._admitted.add(ticket.id)
            heapq.heappush(self._leaving, (ticket.expires_at, ticket.id))

    def standing(self, ticket: Ticket, used_digests: Iterable[str]) -> bool:
        """Whether a ticket still covers what an answer uses, under the policies now.

        Args:
            ticket: A ticket that was let in.
            used_digests: Digests of the adapters in use; none where the base answers alone.

        Returns:
            Whether the ticket is genuine and has not expired, its credential holds, its principal
            is known, and every used adapter is granted by it, still registered, and may still be
            used alone and with the others.
        """
        now = self._clock()
        used = frozenset(used_digests)
        if not self._mint.accepts(ticket, now) or not used <= set(ticket.digests):
            return False
        if any(used.issuperset(pair) for pair in ticket.apart):
            return False
        if len(used) <= _PAIR and self.epoch() == ticket.epoch:
            return True
        moment = _moment(now)
        return self._credential_holds(ticket, moment) and self._judge.allows_together(
            ticket.principal, ticket.purpose, used, moment
        )

    def _still_granted(self, ticket: Ticket, now: float) -> bool:
        judgement = self._judge.judge(ticket.principal, ticket.purpose, _moment(now))
        digests = set(ticket.digests)
        pairs = {pair for pair in judgement.apart if digests.issuperset(pair)}
        return (
            judgement.known
            and digests <= {facts.digest for facts in judgement.granted}
            and pairs <= ticket.apart
            and self._credential_holds(ticket, _moment(now))
        )

    def _credential_holds(self, ticket: Ticket, now: datetime) -> bool:
        if not ticket.credential:
            return True
        return self._keys.standing(ticket.credential, ticket.principal, now) is not None


def _granted(judgement: Judgement) -> tuple[GrantedAdapter, ...]:
    return tuple(
        GrantedAdapter(digest=facts.digest, name=facts.name, labels=facts.labels)
        for facts in judgement.granted
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
