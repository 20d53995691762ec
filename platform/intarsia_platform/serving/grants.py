"""What the engine asks of access control, and the check that an answer stays inside a ticket."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Protocol

from intarsia_client.errors import InputError

from intarsia_platform.access.refusal import refused
from intarsia_platform.access.ticket import Ticket

MAX_CHOICES = 64
MAX_WEIGHT = 16.0


class Admission(Protocol):
    """The part of :class:`intarsia_platform.access.authorization.Authorizer` that serving uses."""

    def epoch(self) -> int:
        """A number that changes whenever a right may have been taken away."""

    def admit(self, ticket: Ticket) -> None:
        """Let a ticket in, once; raises AccessError."""

    def standing(self, ticket: Ticket, used_digests: Iterable[str]) -> bool:
        """Whether a ticket still covers the use of these adapters together."""


class Weighted(Protocol):
    """One adapter of a mixture and its weight, as a retriever or a caller chose it."""

    @property
    def digest(self) -> str:
        """The adapter."""

    @property
    def weight(self) -> float:
        """Its weight."""


def check_grants(ticket: Ticket, choices: Sequence[Weighted]) -> tuple[tuple[str, float], ...]:
    """Check a mixture against a ticket.

    Args:
        ticket: The ticket.
        choices: The mixture; empty for the base alone.

    Returns:
        Digests and weights, ordered by digest.

    Raises:
        AccessError: If the ticket does not grant an adapter, or not together with another one; in
            the same words as for an adapter that does not exist.
        InputError: If a weight is not above 0 and at most :data:`MAX_WEIGHT`, an adapter comes
            twice, or there are more than :data:`MAX_CHOICES`.
    """
    if len(choices) > MAX_CHOICES:
        raise InputError("mixture", f"{len(choices)} adapters", f"use at most {MAX_CHOICES}")
    parts = sorted((ticket.adapter(one.digest).digest, float(one.weight)) for one in choices)
    digests = [digest for digest, _ in parts]
    if len(set(digests)) < len(digests):
        raise InputError("mixture", "an adapter comes twice", "name each once")
    for _, weight in parts:
        if not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
            raise InputError("weight", weight, f"use a number above 0 and at most {MAX_WEIGHT:g}")
    for pair in combinations(digests, 2):
        if pair in ticket.apart:
            raise refused("adapter", ticket.adapter(pair[1]).name)
    return tuple(parts)


class Watch:
    """Whether one ticket still covers one use of adapters, asked as seldom as is safe.

    The ticket is judged again when the epoch is not the one it was last judged in, and it ends at
    its expiry.

    Args:
        admission: Access control.
        ticket: The ticket.
        digests: The adapters in use.
        clock: Seconds since 1970.
    """

    def __init__(
        self,
        admission: Admission,
        ticket: Ticket,
        digests: Iterable[str],
        clock: Callable[[], float],
    ) -> None:
        """Judged when the ticket was issued."""
        self._admission = admission
        self._ticket = ticket
        self._digests = tuple(digests)
        self._clock = clock
        self._epoch = ticket.epoch

    def stands(self, epoch: int) -> bool:
        """Whether the ticket covers the use now.

        Args:
            epoch: The epoch, read before this call.

        Returns:
            Whether it does.
        """
        if self._clock() >= self._ticket.expires_at:
            return False
        if epoch != self._epoch:
            if not self._admission.standing(self._ticket, self._digests):
                return False
            self._epoch = epoch
        return True
