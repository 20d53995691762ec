"""The privacy ledger: what each client has spent, round by round, never rewritten.

It stores the parameters of each round's mechanism, not an epsilon: epsilons of single rounds do not
add up, and the total is an accountant's to compute over the whole history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from intarsia_client.errors import IntegrityError
from sqlalchemy import Connection, select

from intarsia_platform.registry.database import Database, insert_if_absent
from intarsia_platform.registry.rows import PrivacySpendRow
from intarsia_platform.registry.tables import PrivacySpendTable

History = Sequence[tuple[float, float, int]]
"""Per round: noise multiplier, sample rate, steps."""

Accountant = Callable[[History, float], float]
"""From a history and a delta to the epsilon of all of it together."""


class PrivacyLedger:
    """Spends by scope and client.

    Formal guarantee: a recorded spend is never changed or removed; recording the same round again
    with the same values counts once.

    Args:
        database: The registry's database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database

    def record(self, spend: PrivacySpendRow) -> bool:
        """Write a spend down in a transaction of its own.

        Args:
            spend: The spend.

        Returns:
            Whether it was new.

        Raises:
            IntegrityError: If that scope, client and round has a spend of other values.
        """
        with self._database.begin() as connection:
            return record_spend(connection, spend)

    def spends(self, scope: str, client: str) -> list[PrivacySpendRow]:
        """All spends of one client in one scope, by round."""
        statement = (
            select(PrivacySpendTable)
            .where(PrivacySpendTable.scope == scope, PrivacySpendTable.client == client)
            .order_by(PrivacySpendTable.round)
        )
        with self._database.read() as connection:
            return [PrivacySpendRow(**row._asdict()) for row in connection.execute(statement)]

    def scopes(self) -> list[str]:
        """Every scope that has a spend, sorted."""
        with self._database.read() as connection:
            return sorted(connection.execute(select(PrivacySpendTable.scope).distinct()).scalars())

    def clients(self, scope: str) -> list[str]:
        """Every client with a spend in a scope, sorted."""
        statement = (
            select(PrivacySpendTable.client).where(PrivacySpendTable.scope == scope).distinct()
        )
        with self._database.read() as connection:
            return sorted(connection.execute(statement).scalars())

    def history(self, scope: str, client: str) -> list[tuple[float, float, int]]:
        """The same spends as an accountant takes them, by round.

        Returns:
            Per round: noise multiplier, sample rate, steps.
        """
        return [
            (spend.noise_multiplier, spend.sample_rate, spend.steps)
            for spend in self.spends(scope, client)
        ]

    def total_epsilon(self, scope: str, client: str, accountant: Accountant, delta: float) -> float:
        """Epsilon of everything a client has spent in a scope.

        Args:
            scope: What the budget is kept for.
            client: The client's name.
            accountant: Composes a history at a delta.
            delta: The delta of the total.

        Returns:
            The epsilon; 0 where nothing was spent.
        """
        history = self.history(scope, client)
        return accountant(history, delta) if history else 0.0


def record_spend(connection: Connection, spend: PrivacySpendRow) -> bool:
    """Write a spend down in the caller's transaction.

    Args:
        connection: An open transaction.
        spend: The spend.

    Returns:
        Whether it was new.

    Raises:
        IntegrityError: If that scope, client and round has a spend of other values.
    """
    if insert_if_absent(connection, PrivacySpendTable, dataclasses.asdict(spend)):
        return True
    row = connection.execute(
        select(PrivacySpendTable).where(
            PrivacySpendTable.scope == spend.scope,
            PrivacySpendTable.client == spend.client,
            PrivacySpendTable.round == spend.round,
        )
    ).one()
    if PrivacySpendRow(**row._asdict()) != spend:
        raise IntegrityError(
            f"privacy spend of {spend.client} in {spend.scope}, round {spend.round}",
            "recorded before with other values",
            "a spend is never rewritten; record a later one as its own round",
        )
    return False
