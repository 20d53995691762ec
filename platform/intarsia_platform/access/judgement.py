"""Everything that one principal may use now, in one look at the database."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Connection

from intarsia_platform.access.decisions import apart, decide, decide_together
from intarsia_platform.access.facts import AdapterFacts, read_facts
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.policy_set import PolicySet
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import read_epoch

_REMEMBERED = 256

_Granted = tuple[tuple[AdapterFacts, ...], frozenset[tuple[str, str]]]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one principal may use for one purpose.

    Args:
        known: Whether the entities bring the principal; with no policies at all everybody is, and
            may use nothing.
        policy_version: Digest of the policies; ``""`` where there are none.
        epoch: The epoch; anything that took a right away after it was not looked at.
        granted: The adapters that it may use, sorted by digest.
        apart: Pairs of their digests that no answer may mix.
    """

    known: bool
    policy_version: str
    epoch: int
    granted: tuple[AdapterFacts, ...]
    apart: frozenset[tuple[str, str]]

    @property
    def expires_at(self) -> datetime | None:
        """When the first of the granted adapters expires, None where none does."""
        moments = [facts.expires_at for facts in self.granted if facts.expires_at is not None]
        return min(moments, default=None)


class Judge:
    """Judges principals by the policies and adapters of a database; safe to share by threads.

    Args:
        database: The database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database
        self._policies = PolicyStore(database)
        self._facts: tuple[AdapterFacts, ...] = ()
        # Decisions are a function of what is handed over; the same ones need not be made again.
        self._granted = functools.lru_cache(maxsize=_REMEMBERED)(_granted)

    def judge(self, principal: str, purpose: str, now: datetime) -> Judgement:
        """Find what a principal may use.

        An unknown principal costs as much as one that may use nothing.

        Args:
            principal: Who.
            purpose: What for.
            now: The time, aware.

        Returns:
            What it may use.

        Raises:
            InputError: If the purpose is not a word.
        """
        with self._database.read() as connection:
            # First of all: what changes while the rest is read raises it, and is noticed.
            epoch = read_epoch(connection)
            policies = self._policies.read(connection)
            facts = self._current(connection)
        if any(one.expired(now) for one in facts):
            facts = tuple(one for one in facts if not one.expired(now))
        granted, pairs = self._granted(policies, principal, purpose, facts)
        return Judgement(
            known=policies is None or policies.knows(principal),
            policy_version="" if policies is None else policies.version,
            epoch=epoch,
            granted=granted,
            apart=pairs,
        )

    def allows_together(
        self, principal: str, purpose: str, digests: frozenset[str], now: datetime
    ) -> bool:
        """Whether a principal may use some adapters in one answer.

        Args:
            principal: Who.
            purpose: What for.
            digests: What is used; nothing may be used by whoever is known.
            now: The time, aware.

        Returns:
            Whether each is still registered and may be used alone, every two of them together,
            and all of them together.

        Raises:
            InputError: If the purpose is not a word.
        """
        with self._database.read() as connection:
            policies = self._policies.read(connection)
            facts = read_facts(connection, *sorted(digests)) if digests else ()
        if len(facts) != len(digests):
            return False
        if policies is not None and not policies.knows(principal):
            return False
        judged = (*decide(policies, principal, facts, purpose, now=now),)
        together = (*decide_together(policies, principal, facts, purpose, now=now),)
        allowed = all(decision.allowed for decision in (*judged, *together))
        return allowed and not apart(policies, principal, facts, purpose, now=now)

    def _current(self, connection: Connection) -> tuple[AdapterFacts, ...]:
        """All facts; the same tuple as before while nothing changed."""
        facts = read_facts(connection)
        if facts != self._facts:
            self._facts = facts
        return self._facts


def _granted(
    policies: PolicySet | None, principal: str, purpose: str, facts: tuple[AdapterFacts, ...]
) -> _Granted:
    # None of these facts has expired; no later moment is asked for here.
    moment = datetime.min.replace(tzinfo=UTC)
    decisions = decide(policies, principal, facts, purpose, now=moment)
    granted = tuple(one for one, decision in zip(facts, decisions, strict=True) if decision.allowed)
    return granted, apart(policies, principal, granted, purpose, now=moment)
