"""The figures against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_continual.retrieval import Choice
from intarsia_continual.retrieval_metrics import (
    brier_score,
    membership_auc,
    top_k_accuracy,
    total_variation,
)
from scipy.spatial.distance import jensenshannon
from sklearn.metrics import roc_auc_score, top_k_accuracy_score

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@given(SCORES, SCORES)
@settings(max_examples=20)
def test_membership_auc_is_the_area_under_the_curve(members, others) -> None:
    labels = [1] * len(members) + [0] * len(others)
    expected = roc_auc_score(labels, members + others)
    assert membership_auc(members, others) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_accuracy_is_scikit_learns(k) -> None:
    scores = np.random.default_rng(0).random((50, 5))
    truth = np.random.default_rng(1).integers(0, 5, 50)
    rankings = [[str(place) for place in np.argsort(-row)] for row in scores]
    expected = top_k_accuracy_score(truth, scores, k=k, labels=range(5))
    assert top_k_accuracy(rankings, [str(one) for one in truth], k) == pytest.approx(expected)
    assert top_k_accuracy([(), ("a",)], ["a", "a"], k) == 0.5


def test_total_variation_counts_the_base() -> None:
    assert total_variation({"a": 0.5, "b": 0.5}, {"b": 0.25, "a": 0.75}) == 0.25
    assert total_variation({"a": 1.0}, {"b": 1.0}) == 1.0
    assert total_variation({"a": 1.0}, {}) == 1.0
    assert total_variation({}, {}) == 0.0
    one, other = {"a": 0.25, "b": 0.75}, {"a": 0.5, "b": 0.5}
    divergence = float(jensenshannon(list(one.values()), list(other.values()), base=2)) ** 2
    # Lin 1991: the divergence is at most the total variation.
    assert 0 < divergence < total_variation(one, other) < 1


def test_brier_score_counts_the_base_as_wrong() -> None:
    right = [Choice(digest="a", weight=1.0)]
    mixed = [Choice(digest="a", weight=0.75), Choice(digest="b", weight=0.25)]
    assert brier_score([right], ["a"]) == 0.0
    assert brier_score([right], ["b"]) == 2.0
    assert brier_score([[]], ["a"]) == 2.0
    assert brier_score([mixed, right], ["a", "a"]) == (0.25**2 + 0.25**2) / 2
