"""The privacy ledger: append only, idempotent, and added up by an accountant it is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
from intarsia_client.errors import IntegrityError
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import PrivacySpendRow

SPEND = PrivacySpendRow(
    scope="run",
    client="ada",
    round=1,
    unit="example",
    noise_multiplier=1.1,
    sample_rate=1 / 3,
    steps=100,
    delta=1e-5,
    max_grad_norm=0.7,
)


def test_spends_come_back_exactly_by_round(database: Database) -> None:
    ledger = PrivacyLedger(database)
    second = dataclasses.replace(SPEND, round=2, steps=7)
    assert ledger.record(second)
    assert ledger.record(SPEND)
    assert ledger.spends("run", "ada") == [SPEND, second]
    assert ledger.spends("run", "bert") == []
    assert ledger.history("run", "ada") == [(1.1, 1 / 3, 100), (1.1, 1 / 3, 7)]


def test_the_same_spend_counts_once(database: Database) -> None:
    ledger = PrivacyLedger(database)
    assert ledger.record(SPEND)
    assert not ledger.record(SPEND)
    assert ledger.spends("run", "ada") == [SPEND]


@pytest.mark.parametrize(
    "changes",
    [
        {"unit": "client"},
        {"noise_multiplier": 1.1000000000000003},
        {"sample_rate": 0.25},
        {"steps": 99},
        {"delta": 1e-6},
        {"max_grad_norm": 1.0},
    ],
)
def test_a_spend_is_never_rewritten(database: Database, changes: dict[str, object]) -> None:
    ledger = PrivacyLedger(database)
    ledger.record(SPEND)
    with pytest.raises(IntegrityError, match="privacy spend of ada in run, round 1"):
        ledger.record(dataclasses.replace(SPEND, **changes))
    assert ledger.spends("run", "ada") == [SPEND]


def test_scopes_and_clients_are_listed(database: Database) -> None:
    ledger = PrivacyLedger(database)
    for scope, client in (("b", "z"), ("a", "y"), ("b", "x"), ("b", "z")):
        ledger.record(dataclasses.replace(SPEND, scope=scope, client=client))
    assert ledger.scopes() == ["a", "b"]
    assert ledger.clients("b") == ["x", "z"]
    assert ledger.clients("none") == []


def test_the_accountant_sees_the_whole_history(database: Database) -> None:
    ledger = PrivacyLedger(database)
    ledger.record(SPEND)
    ledger.record(dataclasses.replace(SPEND, round=3, steps=50))

    def accountant(history: Sequence[tuple[float, float, int]], delta: float) -> float:
        return sum(rate * steps / noise for noise, rate, steps in history) + delta

    expected = (100 + 50) / 3 / 1.1 + 1e-6
    assert ledger.total_epsilon("run", "ada", accountant, 1e-6) == pytest.approx(expected)
    assert ledger.total_epsilon("run", "bert", accountant, 1e-6) == 0.0
