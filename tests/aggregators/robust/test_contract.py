"""What every rule of the catalogue owes, whatever it does."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators.base import AggregationSettings, GlobalState
from intarsia_aggregators.catalog import find_method
from intarsia_aggregators.robust.base import BOUNDED, KEPT, LEFT_OUT, REWEIGHED, RobustSettings
from intarsia_aggregators.robust.catalog import CATALOG, find_rule
from intarsia_client.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import HEAD, SHAPES, added, cohort, dense_sum, gauged, global_adapter, update

SEEDS = st.integers(0, 2**32 - 1)
every_rule = pytest.mark.parametrize("entry", CATALOG, ids=[entry.name for entry in CATALOG])


def judge(entry, updates, root, settings=None):
    return entry.rule(updates, settings or RobustSettings(byzantine=1), root)


def with_root(seed: int, count: int = 7):
    """A cohort in which not everything is noise: each client adds the root's part and its own."""
    generator = np.random.default_rng(seed)
    published = global_adapter(generator)
    root = update(published, "server", generator)
    ones = [
        update(published, f"c{i}", generator, size=0.05, weight=1.0 + i % 3) for i in range(count)
    ]
    ones = [
        replace(
            one,
            trained=replace(
                one.trained,
                modules={
                    name: replace(
                        held,
                        a=held.a + 0.5 * (root.trained.modules[name].a - start.a),
                        b=held.b + 0.5 * (root.trained.modules[name].b - start.b),
                    )
                    for name, held in one.trained.modules.items()
                    for start in [one.start.modules[name]]
                },
            ),
        )
        for one in ones
    ]
    return published, ones, root


def influence(outcome) -> dict[str, float]:
    return {one.client: one.share * one.factor for one in outcome.decisions}


@every_rule
def test_the_catalogue_says_what_a_rule_needs(entry):
    assert find_rule(entry.name) is entry
    assert entry.assumption
    assert "arXiv:" in entry.source
    assert entry.fewest(RobustSettings(byzantine=2)) == (7 if entry.name == "multi-krum" else 1)


def test_an_unknown_rule_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"krumm.*norm-bound, multi-krum, geometric-median, flt"):
        find_rule("krumm")


@every_rule
@given(seed=SEEDS)
@settings(max_examples=15)
def test_decisions_tell_what_was_done_to_whom(entry, seed):
    _, updates, root = with_root(seed)
    outcome = judge(entry, updates, root)
    assert [one.client for one in outcome.decisions] == [one.client for one in updates]
    assert math.isclose(math.fsum(one.share for one in outcome.decisions), 1.0, rel_tol=1e-12)
    total = sum(one.weight for one in outcome.updates)
    by_name = {one.client: one for one in outcome.updates}
    for came, decision in zip(updates, outcome.decisions, strict=True):
        assert decision.norm == pytest.approx(np.linalg.norm(added(came)), rel=1e-9)
        if decision.outcome == LEFT_OUT:
            assert decision.share * decision.factor == 0.0
            continue
        goes = by_name[came.client]
        assert goes.weight / total == pytest.approx(decision.share, rel=1e-12)
        assert goes.factor == decision.factor
        assert goes.start is came.start
        assert goes.trained is came.trained
        assert decision.outcome in (KEPT, BOUNDED, REWEIGHED)
        if decision.outcome == KEPT:
            assert decision.share >= decision.share_before
            assert decision.factor == 1.0


@every_rule
def test_the_ledger_adds_what_a_rule_leaves(entry):
    published, updates, root = with_root(11)
    outcome = judge(entry, updates, root)
    aggregation = find_method("ledger").method(
        GlobalState(published=published), AggregationSettings()
    )
    for one in outcome.updates:
        aggregation.accumulate(one)
    whole = aggregation.finalize().state.whole
    found = np.concatenate(
        [(whole.modules[n].product() - published.modules[n].product()).ravel() for n in SHAPES]
        + [(whole.dense[HEAD].astype(np.float64) - published.dense[HEAD]).ravel()]
    )
    expected = dense_sum(outcome.updates)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(expected - dense_sum(updates)) > 1e-3 * np.linalg.norm(expected)


@every_rule
def test_equal_inputs_give_equal_bytes(entry):
    _, updates, root = with_root(12)
    assert repr(judge(entry, updates, root)) == repr(judge(entry, updates, root))


@every_rule
@given(seed=SEEDS)
@settings(max_examples=15)
def test_the_order_of_clients_decides_nothing(entry, seed):
    _, updates, root = with_root(seed)
    order = np.random.default_rng(seed).permutation(len(updates))
    found = influence(judge(entry, [updates[index] for index in order], root))
    expected = influence(judge(entry, updates, root))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)


@every_rule
@given(seed=SEEDS, exponent=st.integers(-40, 40))
@settings(max_examples=15)
def test_the_gauge_decides_nothing(entry, seed, exponent):
    _, updates, root = with_root(seed)
    turned = [gauged(updates[0], 2.0**exponent), *updates[1:]]
    assert influence(judge(entry, turned, root)) == pytest.approx(
        influence(judge(entry, updates, root)), rel=1e-6, abs=1e-9
    )


@every_rule
def test_clients_that_changed_nothing_change_nothing(entry):
    generator = np.random.default_rng(13)
    published = global_adapter(generator)
    root = update(published, "server", generator)
    still = [update(published, f"c{i}", generator, size=0.0) for i in range(5)]
    outcome = judge(entry, still, root)
    assert outcome.updates
    assert np.array_equal(dense_sum(outcome.updates), np.zeros_like(added(root)))


@every_rule
def test_no_update_and_the_same_client_twice_are_refused(entry):
    _, updates, root = with_root(14)
    with pytest.raises(InputError, match="updates to judge: 0"):
        judge(entry, [], root)
    with pytest.raises(InputError, match="update of c0: comes twice"):
        judge(entry, [*updates, updates[0]], root)
    with pytest.raises(InputError, match="weight of c0"):
        judge(entry, [replace(updates[0], weight=float("inf")), *updates[1:]], root)


@every_rule
def test_rules_take_clients_of_unequal_ranks_scalings_and_starts(entry):
    updates = cohort(15, 9)
    outcome = judge(entry, updates[1:], replace(updates[0], client="server"))
    assert outcome.updates
    assert np.isfinite(dense_sum(outcome.updates)).all()


@pytest.mark.parametrize("name", ["norm-bound", "geometric-median"])
def test_one_client_alone_is_taken_as_it_is(name):
    (one,) = cohort(16, 1)
    (left,) = judge(find_rule(name), [one], None).updates
    assert left.factor == 1.0
    assert np.array_equal(dense_sum([left]), added(one))
