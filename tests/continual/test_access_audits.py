"""The figures of access audits against scikit-learn's and SciPy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_continual.access_audits import (
    chance_test,
    distinguishability,
    distinguishability_interval,
    exposure,
    loss_attack,
    pair_distinguishability,
    reference_attack,
    rejected,
    utility,
    utility_gap,
    utility_gap_index,
    zlib_attack,
)
from scipy.stats import bootstrap, mannwhitneyu, permutation_test, somersd
from sklearn.metrics import roc_auc_score

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


def generator(seed=0):
    return np.random.default_rng(seed)


def labels(members, others):
    return [1] * len(members) + [0] * len(others)


@given(SCORES, SCORES)
@settings(max_examples=25, deadline=None)
def test_ddi_is_the_area_under_the_curve_from_minus_one_to_one(members, others) -> None:
    area = roc_auc_score(labels(members, others), members + others)
    assert distinguishability(members, others) == pytest.approx(2 * area - 1)
    assert pair_distinguishability(members, others) == pytest.approx(area)
    assert distinguishability(others, members) == pytest.approx(
        -distinguishability(members, others)
    )
    squeezed = [[math.atan(one) for one in some] for some in (members, others)]
    assert distinguishability(*squeezed) == pytest.approx(distinguishability(members, others))


def test_ddi_is_anchored_and_somers_d() -> None:
    assert distinguishability([2.0, 3.0], [0.0, 1.0]) == 1.0
    assert distinguishability([0.0, 1.0], [2.0, 3.0]) == -1.0
    assert distinguishability([0.5] * 4, [0.5] * 3) == 0.0
    members, others = generator().normal(0.4, size=30), generator(1).normal(size=40)
    truth = somersd(labels(members, others), [*members, *others]).statistic
    assert distinguishability(members, others) == pytest.approx(truth)


def test_the_interval_is_the_percentile_bootstrap_of_scipy() -> None:
    members, others = generator(2).normal(0.8, size=40), generator(3).normal(size=50)
    ours = distinguishability_interval(members, others, generator(), resamples=4000)
    theirs = bootstrap(
        (members, others), distinguishability, method="percentile", vectorized=False,
        n_resamples=4000, rng=generator(9),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)
    assert ours.value == distinguishability(members, others)
    assert ours == distinguishability_interval(members, others, generator(), resamples=4000)
    narrow = distinguishability_interval(members, others, generator(), level=0.5)
    assert ours.low < narrow.low < ours.value < narrow.high < ours.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # Of two normal distributions one apart: AUC = Phi(1 / sqrt(2)).
    truth = 2 * 0.5 * (1 + math.erf(0.5)) - 1
    hits = 0
    for seed in range(200):
        draw = generator(seed)
        found = distinguishability_interval(
            draw.normal(1.0, size=40), draw.normal(size=40), draw, resamples=400
        )
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_the_chance_test_is_scipys_permutation_test(shift) -> None:
    members, others = generator(4).normal(shift, size=30), generator(5).normal(size=25)
    ours = chance_test(members, others, generator())
    theirs = permutation_test(
        (members, others), distinguishability, vectorized=False, n_resamples=3000,
        rng=generator(6),
    )  # fmt: skip
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.03)
    rank_sums = mannwhitneyu(members, others, method="asymptotic").pvalue
    assert ours.p_value == pytest.approx(rank_sums, abs=0.02)
    assert ours.low < 0 < ours.high
    assert ours.low == pytest.approx(-ours.high, abs=0.05)


def test_equal_scores_are_chance_itself_and_p_values_are_never_zero() -> None:
    found = chance_test([0.0] * 5, [0.0] * 7, generator())
    assert (found.low, found.high, found.p_value) == (0.0, 0.0, 1.0)
    far = chance_test(np.arange(40) + 100.0, np.arange(40.0), generator(), permutations=999)
    assert far.p_value == 1 / 1000


def test_chance_alone_rejects_as_seldom_as_it_says() -> None:
    values = [
        chance_test(
            generator(seed).normal(size=12), generator(seed + 500).normal(size=9),
            generator(seed), permutations=199,
        ).p_value
        for seed in range(200)
    ]  # fmt: skip
    assert np.mean(np.array(values) <= 0.1) == pytest.approx(0.1, abs=0.06)


def test_holms_rule_steps_down() -> None:
    # Holm 1979 with level 0.05: 0.01 < 0.05/4, 0.013 < 0.05/3, then 0.03 > 0.05/2 ends it.
    assert rejected([0.03, 0.01, 0.04, 0.013]) == [False, True, False, True]
    assert rejected([0.2]) == [False] and rejected([0.05]) == [True]
    assert rejected([]) == []


@given(st.lists(st.floats(0, 1), max_size=12))
@settings(max_examples=25, deadline=None)
def test_holms_rule_rejects_at_least_what_bonferronis_does(p_values) -> None:
    for value, told in zip(p_values, rejected(p_values), strict=True):
        assert told >= (value <= 0.05 / len(p_values))
        assert told <= (value <= 0.05)


def test_attacks_score_members_higher() -> None:
    assert loss_attack([1.0, 2.0]).tolist() == [-1.0, -2.0]
    assert reference_attack([1.0, 2.0], [3.0, 2.0]).tolist() == [2.0, 0.0]
    texts = ["a" * 400, "The rocket flew past the moon."]
    easy, plain = zlib_attack([1.0, 1.0], [10, 10], texts)
    # What repeats itself compresses well, so the same loss says less for it.
    assert easy < plain < 0
    for call in (
        lambda: reference_attack([1.0], [1.0, 2.0]),
        lambda: zlib_attack([1.0], [1], texts),
        lambda: loss_attack([math.nan]),
        lambda: distinguishability([], [1.0]),
        lambda: utility([1.0], [0]),
        lambda: utility_gap_index([1.0], [1.0], [0], generator()),
        lambda: utility_gap_index([1.0], [1.0, 2.0], [1, 1], generator()),
    ):
        with pytest.raises(InputError):
            call()


def test_utility_is_the_inverse_perplexity() -> None:
    losses, tokens = np.array([1.0, 2.0]), np.array([3, 1])
    assert utility(losses, tokens) == pytest.approx(math.exp(-(3 * 1.0 + 2.0) / 4))
    assert utility([0.0], [5]) == 1.0
    assert utility_gap(0.2, 0.5) == utility_gap(0.5, 0.2) == pytest.approx(0.3)


@given(st.integers(0, 2**31), st.floats(-1, 3))
@settings(max_examples=15, deadline=None)
def test_ugi_is_the_share_of_utility_that_is_missing(seed, harder) -> None:
    draw = generator(seed)
    own, tokens = draw.uniform(1, 3, size=30), draw.integers(5, 60, size=30)
    other = own + harder + draw.normal(0, 0.1, size=30)
    found = utility_gap_index(own, other, tokens, draw, resamples=300)
    expected = 1 - utility(other, tokens) / utility(own, tokens)
    assert found.value == pytest.approx(expected)
    assert found.low <= found.value <= found.high < 1
    gap = utility_gap(utility(own, tokens), utility(other, tokens))
    assert gap == pytest.approx(abs(found.value) * utility(own, tokens))


def test_ugi_of_the_same_answers_is_nothing_and_its_interval_scipys() -> None:
    own, tokens = generator().uniform(1, 3, size=40), generator(1).integers(5, 60, size=40)
    same = utility_gap_index(own, own, tokens, generator())
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    other = own + generator(2).gamma(2.0, 0.4, size=40)
    ours = utility_gap_index(own, other, tokens, generator(), resamples=4000)
    theirs = bootstrap(
        (own, other, tokens), lambda a, b, t: 1 - utility(b, t) / utility(a, t), paired=True,
        method="percentile", vectorized=False, n_resamples=4000, rng=generator(9),
    ).confidence_interval  # fmt: skip
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_exposure_is_highest_for_the_first_rank() -> None:
    candidates = np.arange(1.0, 256.0)
    assert exposure(0.5, candidates) == 8.0
    assert exposure(300.0, candidates) == 0.0
    assert exposure(1.0, candidates) == 7.0
    unknown = [exposure(one, candidates) for one in generator().uniform(0, 256, size=4000)]
    assert np.mean(unknown) == pytest.approx(math.log2(math.e), abs=0.1)
