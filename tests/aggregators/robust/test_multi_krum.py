"""Multi-Krum: its scores, what it promises, and where it is known to fail."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_aggregators.robust.base import LEFT_OUT, RobustSettings
from intarsia_aggregators.robust.multi_krum import multi_krum
from intarsia_client.errors import InputError

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import added, adding, cohort, global_adapter, vector_like

PUBLISHED = global_adapter(np.random.default_rng(0), head=False)
SEEDS = st.integers(0, 2**32 - 1)


def around(generator, centre, count, radius, name):
    return [
        adding(PUBLISHED, f"{name}-{i}", centre + radius * vector_like(generator))
        for i in range(count)
    ]


def kept(updates, byzantine):
    return {one.client for one in multi_krum(updates, RobustSettings(byzantine=byzantine)).updates}


@given(seed=SEEDS, count=st.integers(3, 9))
def test_scores_are_the_papers_in_dense_float64(seed, count):
    byzantine = np.random.default_rng(seed).integers(0, (count - 3) // 2 + 1)
    updates = cohort(seed, count)
    rows = [added(one) for one in updates]
    expected = []
    for index, row in enumerate(rows):
        others = sorted(
            float(np.square(row - other).sum()) for j, other in enumerate(rows) if j != index
        )
        expected.append(sum(others[: count - byzantine - 2]))
    outcome = multi_krum(updates, RobustSettings(byzantine=int(byzantine)))
    assert [one.score for one in outcome.decisions] == pytest.approx(expected, rel=1e-9)
    best = sorted(range(count), key=lambda index: expected[index])[: count - byzantine]
    assert [one.client for one in outcome.updates] == [updates[i].client for i in sorted(best)]
    assert [one.weight for one in outcome.updates] == [updates[i].weight for i in sorted(best)]


@given(seed=SEEDS, byzantine=st.integers(0, 4), more=st.integers(0, 4))
def test_far_attackers_are_left_out_and_every_honest_client_is_kept(seed, byzantine, more):
    generator = np.random.default_rng(seed)
    centre = vector_like(generator)
    honest = around(generator, centre, byzantine + 3 + more, 0.01, "honest")
    # Together in one place, which is the hardest for a rule of neighbours.
    hostile = around(generator, 10.0 * vector_like(generator), byzantine, 1e-4, "hostile")
    assert kept([*hostile, *honest], byzantine) == {one.client for one in honest}


@given(seed=SEEDS, byzantine=st.integers(1, 4), reach=st.floats(0.0, 30.0))
def test_whatever_is_kept_lies_near_an_honest_client(seed, byzantine, reach):
    """The guarantee in the rule's docstring, attackers anywhere."""
    generator = np.random.default_rng(seed)
    centre = vector_like(generator)
    honest = around(generator, centre, byzantine + 3, 0.05, "honest")
    meeting = centre + 0.05 * reach * vector_like(generator)
    hostile = around(generator, meeting, byzantine, 0.05 * generator.uniform(), "hostile")
    updates = [*honest, *hostile]
    count = len(updates)
    rows = {one.client: added(one) for one in updates}
    apart = max(np.linalg.norm(rows[a.client] - rows[b.client]) for a in honest for b in honest)
    bound = apart * np.sqrt((count - byzantine - 2) / (count - 2 * byzantine - 1))
    for name in kept(updates, byzantine):
        nearest = min(np.linalg.norm(rows[name] - rows[one.client]) for one in honest)
        assert nearest <= bound * (1 + 1e-9)


def test_more_colluders_than_assumed_win():
    """Its documented failure: f = 2 is assumed of 7, and 4 send almost the same."""
    generator = np.random.default_rng(1)
    honest = around(generator, vector_like(generator), 3, 0.1, "honest")
    hostile = around(generator, vector_like(generator), 4, 1e-4, "hostile")
    assert {f"hostile-{i}" for i in range(4)} <= kept([*honest, *hostile], 2)
    assert len(kept([*honest, *hostile], 2) & {one.client for one in honest}) == 1


def test_an_honest_client_with_other_data_is_left_out():
    """The price: nobody attacks, and the one who differs does not count."""
    generator = np.random.default_rng(2)
    alike = around(generator, vector_like(generator), 6, 0.1, "alike")
    (other,) = around(generator, vector_like(generator), 1, 0.1, "other")
    outcome = multi_krum([*alike, other], RobustSettings(byzantine=1))
    assert [one.client for one in outcome.decisions if one.outcome == LEFT_OUT] == ["other-0"]


@pytest.mark.parametrize(("count", "byzantine"), [(4, 1), (2, 0), (8, 3), (1, 0)])
def test_too_few_clients_are_refused_in_one_line(count, byzantine):
    with pytest.raises(InputError) as caught:
        multi_krum(cohort(3, count), RobustSettings(byzantine=byzantine))
    assert str(caught.value) == (
        f"updates for multi-krum: {count}; bring at least {2 * byzantine + 3} for "
        f"robust.byzantine = {byzantine}, or assume fewer"
    )


def test_a_negative_number_of_attackers_is_refused():
    with pytest.raises(InputError, match=r"robust\.byzantine: -1"):
        multi_krum(cohort(3, 5), RobustSettings(byzantine=-1))
