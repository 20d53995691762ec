from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_platform.planning.importance import (
    DECAY,
    LARGEST_RANK,
    PRIOR_SHARE,
    expected_energy,
)

SHAPES = {"one": (40, 30), "other": (12, 200), "wide": (300, 500)}


def adapter(ranks: dict[str, int], seed: int = 0) -> Adapter:
    generator = np.random.default_rng(seed)
    modules = {
        name: LowRankFactors(
            a=generator.normal(size=(rank, SHAPES[name][1])).astype(np.float32),
            b=generator.normal(size=(SHAPES[name][0], rank)).astype(np.float32),
            scaling=0.5,
        )
        for name, rank in ranks.items()
    }
    return Adapter(base="base", task="causal-lm", modules=modules)


def test_before_the_first_round_modules_are_equal() -> None:
    energy = expected_energy(SHAPES, None)
    assert sum(values.sum() for values in energy.values()) == pytest.approx(1.0)
    for name, values in energy.items():
        assert len(values) == min(*SHAPES[name], LARGEST_RANK)
        assert values[0] == energy["one"][0]
        assert values[4] / values[0] == pytest.approx(5**-DECAY)


def test_an_adapter_that_adds_nothing_says_nothing() -> None:
    nothing = adapter(dict.fromkeys(SHAPES, 0))
    assert all(
        np.array_equal(values, expected_energy(SHAPES, None)[name])
        for name, values in expected_energy(SHAPES, nothing).items()
    )


@given(
    ranks=st.fixed_dictionaries({name: st.integers(0, 12) for name in SHAPES}),
    seed=st.integers(0, 99),
)
def test_follows_the_dense_singular_values(ranks: dict[str, int], seed: int) -> None:
    published = adapter(ranks, seed)
    squares = {
        name: np.linalg.svd(factors.product(), compute_uv=False)[:LARGEST_RANK] ** 2
        for name, factors in published.modules.items()
    }
    total = sum(values.sum() for values in squares.values())
    energy, prior = expected_energy(SHAPES, published), expected_energy(SHAPES, None)
    for name, values in energy.items():
        expected = prior[name]
        if total:
            expected = (1 - PRIOR_SHARE) * squares[name] / total + PRIOR_SHARE * prior[name]
        np.testing.assert_allclose(values, expected, atol=1e-9)
        assert (values > 0).all()
    assert sum(values.sum() for values in energy.values()) == pytest.approx(1.0)


def test_does_not_depend_on_the_gauge_of_the_factors() -> None:
    published = adapter({"one": 6, "other": 3, "wide": 2})
    mixing = np.random.default_rng(1).normal(size=(6, 6))
    one = published.modules["one"]
    other = LowRankFactors(
        a=(mixing @ one.a).astype(np.float32),
        b=(one.b @ np.linalg.inv(mixing)).astype(np.float32),
        scaling=one.scaling,
    )
    same = Adapter(base="base", task="causal-lm", modules={**published.modules, "one": other})
    first, second = (expected_energy(SHAPES, one) for one in (published, same))
    for name in SHAPES:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-4, atol=1e-9)


def test_what_lies_beyond_the_largest_rank_counts_for_nobody() -> None:
    published = adapter({"one": 0, "other": 0, "wide": 100})
    energy = expected_energy(SHAPES, published)
    assert len(energy["wide"]) == LARGEST_RANK
    assert sum(values.sum() for values in energy.values()) < 1.0
