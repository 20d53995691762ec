"""Tickets as a service gives them out and asks about them again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.ticket import Ticket, TicketMint

_PAIR = 2


class TicketOffice:
    """Gives tickets, lets them in, and says whether they stand. Safe for several threads.

    Formal guarantee: :meth:`standing` says what :meth:`Authorizer.standing` says. While the epoch
    is a ticket's own, no right of it was taken away: each of its adapters and each pair was judged
    when it was issued, and whatever ends by the clock ends the ticket. So one or two adapters need
    no second judgement then; more are always judged together.

    Args:
        authorizer: Decides.
        mint: What it issues tickets with.
        clock: Seconds since 1970.
    """

    def __init__(
        self, authorizer: Authorizer, mint: TicketMint, clock: Callable[[], float] = time.time
    ) -> None:
        """Keep all."""
        self._authorizer = authorizer
        self._mint = mint
        self._clock = clock

    def authorize(
        self,
        principal: str,
        purpose: str = "",
        *,
        credential: str = "",
        until: float | None = None,
    ) -> Ticket:
        """Decide what a principal may use now; see :meth:`Authorizer.authorize`.

        Args:
            principal: Who asks.
            purpose: What for.
            credential: Identifier of the API key that the principal came with.
            until: When what the principal came with ends, in seconds since 1970; None where
                nothing does.

        Returns:
            The ticket; it ends at ``until`` where that is earlier than it would end otherwise.

        Raises:
            AccessError: If the principal is not known, or the credential does not hold.
            InputError: If the purpose is not a word, or ``until`` is not finite.
        """
        ticket = self._authorizer.authorize(principal, purpose, credential=credential)
        if until is None or until >= ticket.expires_at:
            return ticket
        return self._mint.issue(
            principal=ticket.principal,
            purpose=ticket.purpose,
            adapters=ticket.adapters,
            apart=ticket.apart,
            policy_version=ticket.policy_version,
            epoch=ticket.epoch,
            issued_at=ticket.issued_at,
            expires_at=until,
            credential=ticket.credential,
        )

    def epoch(self) -> int:
        """The epoch now; see :meth:`Authorizer.epoch`."""
        return self._authorizer.epoch()

    def admit(self, ticket: Ticket) -> None:
        """Let a ticket in, once; see :meth:`Authorizer.admit`."""
        self._authorizer.admit(ticket)

    def standing(self, ticket: Ticket, used_digests: Iterable[str]) -> bool:
        """Whether a ticket covers the use of these adapters; see :meth:`Authorizer.standing`.

        Args:
            ticket: The ticket.
            used_digests: Digests of the adapters in use.

        Returns:
            Whether it does.
        """
        used = frozenset(used_digests)
        # The epoch first: what is looked at after it is not older.
        if len(used) > _PAIR or self._authorizer.epoch() != ticket.epoch:
            return self._authorizer.standing(ticket, used)
        return (
            self._mint.accepts(ticket, self._clock())
            and used <= set(ticket.digests)
            and not any(used.issuperset(pair) for pair in ticket.apart)
        )
