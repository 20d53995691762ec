"""FLTrust: the server's own update decides the direction and the length."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_aggregators.base import AggregationSettings, GlobalState
from intarsia_aggregators.catalog import find_method
from intarsia_aggregators.robust.base import LEFT_OUT, RobustSettings
from intarsia_aggregators.robust.fltrust import trust_by_root
from intarsia_client.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import SHAPES, added, adding, dense_sum, global_adapter, vector_like

PUBLISHED = global_adapter(np.random.default_rng(0), head=False)
ROOT = vector_like(np.random.default_rng(1))
SERVER = adding(PUBLISHED, "server", ROOT)
SETTINGS = RobustSettings()


def test_weights_and_factors_are_the_papers():
    generator = np.random.default_rng(2)
    rows = [ROOT + 0.5 * vector_like(generator) for _ in range(4)]
    updates = [adding(PUBLISHED, f"c{i}", row, weight=10.0**i) for i, row in enumerate(rows)]
    outcome = trust_by_root(updates, SETTINGS, SERVER)
    rows = [added(one) for one in updates]
    root = added(SERVER)
    cosines = [row @ root / np.linalg.norm(row) / np.linalg.norm(root) for row in rows]
    assert [one.weight for one in outcome.updates] == pytest.approx(cosines, rel=1e-9)
    expected = sum(
        c * row * np.linalg.norm(root) / np.linalg.norm(row)
        for c, row in zip(cosines, rows, strict=True)
    ) / sum(cosines)
    assert dense_sum(outcome.updates) == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_opposite_directions_do_not_count_however_many_and_large():
    generator = np.random.default_rng(3)
    good = adding(PUBLISHED, "good", ROOT + 0.5 * vector_like(generator))
    bad = [adding(PUBLISHED, f"bad{i}", -(10.0**i) * ROOT, weight=1e6) for i in range(9)]
    outcome = trust_by_root([*bad, good], SETTINGS, SERVER)
    assert [one.client for one in outcome.updates] == ["good"]
    assert {one.outcome for one in outcome.decisions[:-1]} == {LEFT_OUT}
    assert [one.score for one in outcome.decisions[:-1]] == pytest.approx([-1.0] * 9)


def test_a_larger_copy_and_more_declared_records_count_no_more():
    generator = np.random.default_rng(4)
    rows = [ROOT + vector_like(generator) for _ in range(3)]
    plain = [adding(PUBLISHED, f"c{i}", row) for i, row in enumerate(rows)]
    louder = [adding(PUBLISHED, "c0", 128.0 * rows[0], weight=1e9), *plain[1:]]
    assert dense_sum(trust_by_root(louder, SETTINGS, SERVER).updates) == pytest.approx(
        dense_sum(trust_by_root(plain, SETTINGS, SERVER).updates), rel=1e-6, abs=1e-9
    )


@given(
    seed=st.integers(0, 2**32 - 1), exponents=st.lists(st.integers(-6, 20), min_size=1, max_size=7)
)
def test_the_sum_is_no_longer_than_the_root_and_never_points_away(seed, exponents):
    generator = np.random.default_rng(seed)
    updates = [
        adding(PUBLISHED, f"c{i}", vector_like(generator, 10.0**exponent))
        for i, exponent in enumerate(exponents)
    ]
    total = dense_sum(trust_by_root(updates, SETTINGS, SERVER).updates)
    root = added(SERVER)
    assert np.linalg.norm(total) <= np.linalg.norm(root) * (1 + 1e-9)
    assert total @ root >= -1e-9 * (root @ root)


def test_where_nobody_points_the_servers_way_nothing_is_added():
    updates = [adding(PUBLISHED, f"c{i}", -(1.0 + i) * ROOT) for i in range(3)]
    outcome = trust_by_root(updates, SETTINGS, SERVER)
    assert {one.outcome for one in outcome.decisions} == {LEFT_OUT}
    aggregation = find_method("ledger").method(
        GlobalState(published=PUBLISHED), AggregationSettings()
    )
    for one in outcome.updates:
        aggregation.accumulate(one)
    whole = aggregation.finalize().state.whole
    for name in SHAPES:
        expected = PUBLISHED.modules[name].product()
        assert np.abs(whole.modules[name].product() - expected).max() < 1e-5


@pytest.mark.parametrize("share", [1e-5, 1e-20, 1e-38])
def test_a_move_that_is_almost_none_is_not_drawn_out(share):
    """Drawn out to the root's length, the rounding of what it was sent would be all that counts."""
    good = adding(PUBLISHED, "good", ROOT)
    outcome = trust_by_root([good, adding(PUBLISHED, "tiny", share * ROOT)], SETTINGS, SERVER)
    assert [one.client for one in outcome.updates] == ["good"]


def test_without_a_root_that_moved_nothing_is_judged():
    updates = [adding(PUBLISHED, "c0", ROOT)]
    with pytest.raises(InputError, match="root update: none"):
        trust_by_root(updates, SETTINGS, None)
    with pytest.raises(InputError, match="root update: added nothing"):
        trust_by_root(updates, SETTINGS, adding(PUBLISHED, "server", 0.0 * ROOT))
    with pytest.raises(InputError, match="update of server: comes twice"):
        trust_by_root([replace(updates[0], client="server")], SETTINGS, SERVER)
