"""The norm bound: the sum stays within it, whoever sends what."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_aggregators.robust.base import BOUNDED, KEPT, RobustSettings
from intarsia_aggregators.robust.norm_bound import bound_norms
from intarsia_client.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import added, adding, cohort, dense_sum, global_adapter, vector_like

PUBLISHED = global_adapter(np.random.default_rng(0), head=False)


def clients(*norms: float):
    generator = np.random.default_rng(1)
    ones = []
    for index, norm in enumerate(norms):
        vector = vector_like(generator)
        ones.append(adding(PUBLISHED, f"c{index}", norm * vector / np.linalg.norm(vector)))
    return ones


def test_each_client_is_scaled_to_the_bound_and_no_further():
    outcome = bound_norms(clients(0.5, 2.0, 8.0), RobustSettings(max_norm=2.5))
    assert [one.factor for one in outcome.updates] == [1.0, 1.0, pytest.approx(2.5 / 8.0)]
    assert [one.outcome for one in outcome.decisions] == [KEPT, KEPT, BOUNDED]
    assert [np.linalg.norm(added(one)) for one in outcome.updates] == pytest.approx([0.5, 2.0, 2.5])


@pytest.mark.parametrize(
    ("norms", "bound"), [((1.0, 9.0, 2.0), 2.0), ((1.0, 9.0, 2.0, 5.0), 2.0), ((4.0,), 4.0)]
)
def test_the_bound_is_the_median_of_the_round_where_none_is_given(norms, bound):
    outcome = bound_norms(clients(*norms), RobustSettings())
    assert outcome.measures["bound"] == pytest.approx(bound, rel=1e-6)
    for one, norm in zip(outcome.updates, norms, strict=True):
        assert one.factor == pytest.approx(min(1.0, bound / norm), rel=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    bound=st.floats(1e-3, 1e3),
    exponents=st.lists(st.integers(-10, 15), min_size=1, max_size=8),
)
def test_what_is_added_never_exceeds_the_bound(seed, bound, exponents):
    generator = np.random.default_rng(seed)
    updates = [
        adding(
            PUBLISHED, f"c{i}", vector_like(generator, 10.0**exponent), weight=float(1 + i * 1000)
        )
        for i, exponent in enumerate(exponents)
    ]
    outcome = bound_norms(updates, RobustSettings(max_norm=bound))
    assert np.linalg.norm(dense_sum(outcome.updates)) <= bound * (1 + 1e-9)


def test_less_than_half_cannot_raise_the_median_bound():
    honest = clients(1.0, 1.1, 1.2, 1.3)
    hostile = [
        adding(PUBLISHED, f"x{i}", vector_like(np.random.default_rng(i), 1e9)) for i in (0, 1)
    ]
    bound = bound_norms([*honest, *hostile], RobustSettings()).measures["bound"]
    assert bound <= 1.3 * (1 + 1e-6)


def test_a_factor_that_came_counts_in_the_norm_and_stays():
    from dataclasses import replace

    updates = [replace(one, factor=0.5) for one in cohort(2, 3)]
    outcome = bound_norms(updates, RobustSettings(max_norm=1e-3))
    for one in outcome.updates:
        assert np.linalg.norm(added(one)) == pytest.approx(1e-3)


@pytest.mark.parametrize("bound", [-1.0, float("nan")])
def test_a_bound_that_cannot_be_is_refused(bound):
    with pytest.raises(InputError, match=r"robust\.max_norm"):
        bound_norms(clients(1.0), RobustSettings(max_norm=bound))
