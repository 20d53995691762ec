"""The geometric median: against an optimiser on dense vectors, and where it must not go."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_aggregators.robust.geometric_median import (
    MOST_STEPS,
    TOLERANCE,
    geometric_median,
    weiszfeld,
)
from scipy.optimize import minimize

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import added, adding, cohort, dense_sum, global_adapter, vector_like

PUBLISHED = global_adapter(np.random.default_rng(0), head=False)
SEEDS = st.integers(0, 2**32 - 1)


def shares_of(updates) -> np.ndarray:
    weights = np.array([one.weight for one in updates])
    return weights / weights.sum()


def distance_sum(point, rows, shares) -> float:
    return float(shares @ np.linalg.norm(rows - point, axis=1))


def dense_median(rows, shares) -> np.ndarray:
    """The minimum by quasi-Newton steps on the coordinates, from the mean."""

    def value_and_slope(point):
        apart = point - rows
        lengths = np.linalg.norm(apart, axis=1)
        return shares @ lengths, (shares / lengths) @ apart

    found = minimize(
        value_and_slope, shares @ rows, jac=True, method="BFGS",
        options={"gtol": 1e-12, "maxiter": 2000},
    )  # fmt: skip
    return found.x


@given(seed=SEEDS, count=st.integers(3, 9))
@settings(max_examples=25)
def test_it_is_the_minimum_that_an_optimiser_finds_on_dense_vectors(seed, count):
    updates = cohort(seed, count)
    rows, shares = np.stack([added(one) for one in updates]), shares_of(updates)
    outcome = geometric_median(updates, RobustSettings())
    found = dense_sum(outcome.updates)
    expected = dense_median(rows, shares)
    least = min(distance_sum(expected, rows, shares), *(
        distance_sum(row, rows, shares) for row in rows
    ))  # fmt: skip
    assert distance_sum(found, rows, shares) <= least * (1 + 1e-6)
    assert [one.score for one in outcome.decisions] == pytest.approx(
        np.linalg.norm(rows - found, axis=1), rel=1e-5, abs=1e-5 * np.abs(rows).max()
    )


@given(seed=SEEDS, count=st.integers(3, 9))
@settings(max_examples=25)
def test_no_direction_leads_down_from_it(seed, count):
    """The condition of a minimum, from dense vectors alone (Kuhn 1973)."""
    updates = cohort(seed, count)
    rows, shares = np.stack([added(one) for one in updates]), shares_of(updates)
    found = dense_sum(geometric_median(updates, RobustSettings()).updates)
    apart = rows - found
    lengths = np.linalg.norm(apart, axis=1)
    near = lengths < 1e-4 * np.median(np.linalg.norm(rows, axis=1))
    pull = np.linalg.norm((shares[~near] / lengths[~near]) @ apart[~near])
    assert pull <= shares[near].sum() + 1e-4


def test_three_points_of_a_triangle_meet_at_120_degrees():
    """Fermat's point, known since Torricelli."""
    points = np.array([[0.0, 0.0], [4.0, 0.0], [1.0, 3.0]])
    median = weiszfeld(torch.from_numpy(points @ points.T), np.full(3, 1 / 3))
    apart = points - median.weights @ points
    units = apart / np.linalg.norm(apart, axis=1)[:, None]
    assert units @ units.T == pytest.approx(np.where(np.eye(3), 1.0, -0.5), abs=1e-6)
    assert median.moved <= TOLERANCE
    assert median.steps < MOST_STEPS


@given(
    seed=SEEDS,
    honest=st.integers(2, 8),
    share=st.floats(0.01, 0.45),
    exponent=st.integers(0, 30),
    together=st.booleans(),
)
@settings(max_examples=60)
def test_less_than_half_of_the_weight_cannot_carry_it_away(seed, honest, share, exponent, together):
    generator = np.random.default_rng(seed)
    centre = vector_like(generator)
    rows = [centre + 0.1 * vector_like(generator) for _ in range(honest)]
    good = [
        adding(PUBLISHED, f"h{i}", row, weight=(1 - share) / honest) for i, row in enumerate(rows)
    ]
    far = [vector_like(generator, 10.0**exponent) for _ in range(1 if together else 3)]
    bad = [adding(PUBLISHED, f"x{i}", row, weight=share / len(far)) for i, row in enumerate(far)]
    found = dense_sum(geometric_median([*bad, *good], RobustSettings()).updates)
    true = [added(one) for one in good]
    middle = np.mean(true, axis=0)
    radius = max(np.linalg.norm(row - middle) for row in true)
    bound = radius * (1 - share) / np.sqrt(1 - 2 * share)
    assert np.linalg.norm(found - middle) <= bound * (1 + 1e-4)


def test_more_than_half_of_the_weight_does_carry_it_away():
    """The control: just above half, the median is theirs."""
    generator = np.random.default_rng(1)
    good = [adding(PUBLISHED, f"h{i}", vector_like(generator), weight=0.12) for i in range(4)]
    bad = adding(PUBLISHED, "x", vector_like(generator, 1e6), weight=0.52)
    found = dense_sum(geometric_median([*good, bad], RobustSettings()).updates)
    assert np.linalg.norm(found) > 1e6


def test_it_converges_within_the_bound_just_below_half():
    generator = np.random.default_rng(2)
    good = [adding(PUBLISHED, f"h{i}", vector_like(generator), weight=0.051) for i in range(10)]
    bad = [
        adding(PUBLISHED, f"x{i}", vector_like(generator, 1e12), weight=0.049) for i in range(10)
    ]
    outcome = geometric_median([*good, *bad], RobustSettings())
    largest = max(np.linalg.norm(added(one)) for one in good)
    assert np.linalg.norm(dense_sum(outcome.updates)) < 10 * largest
    assert outcome.measures["steps"] < MOST_STEPS
    assert outcome.measures["moved"] <= TOLERANCE


def test_equal_updates_keep_their_shares():
    row = vector_like(np.random.default_rng(3))
    updates = [adding(PUBLISHED, f"c{i}", row, weight=1.0 + i) for i in range(4)]
    outcome = geometric_median(updates, RobustSettings())
    assert [one.share for one in outcome.decisions] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_majority_in_one_place_is_the_median():
    generator = np.random.default_rng(4)
    row = vector_like(generator)
    same = [adding(PUBLISHED, f"s{i}", row) for i in range(3)]
    others = [adding(PUBLISHED, f"o{i}", vector_like(generator)) for i in range(2)]
    found = dense_sum(geometric_median([*others, *same], RobustSettings()).updates)
    assert np.linalg.norm(found - row) < 1e-4 * np.linalg.norm(row)
