"""Low-rank algebra against dense float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators.factors import (
    Term,
    cut_energy,
    decompose,
    product_norm,
    stack,
    truncated,
    without_rounding,
)
from intarsia_client.wire import LowRankFactors


def random_factors(
    generator: np.random.Generator, d_out: int, d_in: int, rank: int, scaling: float = 1.0
) -> LowRankFactors:
    return LowRankFactors(
        a=generator.standard_normal((rank, d_in)).astype(np.float32),
        b=generator.standard_normal((d_out, rank)).astype(np.float32),
        scaling=scaling,
    )


def dense_sum(terms: list[Term]) -> np.ndarray:
    return sum(term.weight * term.factors.product() for term in terms)


shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))
ranks = st.lists(st.integers(0, 8), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(shapes, ranks, st.integers(0, 2**32 - 1))
def test_decomposition_of_a_stack_is_the_dense_sum(shape, term_ranks, seed):
    generator = np.random.default_rng(seed)
    terms = [
        Term(
            weight=float(generator.uniform(-1, 1)),
            factors=random_factors(generator, *shape, rank, float(generator.uniform(0.1, 4))),
        )
        for rank in term_ranks
    ]
    dense = dense_sum(terms)
    whole = without_rounding(decompose(*stack(terms)))
    scale = max(np.linalg.norm(dense), 1e-30)
    rebuilt = (whole.u * whole.sigma) @ whole.v
    assert np.linalg.norm(rebuilt.numpy() - dense) <= 1e-7 * scale + 1e-12
    assert list(whole.sigma) == sorted(whole.sigma, reverse=True)
    reference = np.linalg.svd(dense, compute_uv=False)[: len(whole.sigma)]
    assert np.allclose(whole.sigma.numpy(), reference, rtol=1e-9, atol=1e-9 * scale)
    balanced = whole.balanced()
    assert np.linalg.norm(balanced.product() - dense) <= 1e-6 * scale + 1e-12


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 8), st.integers(0, 10), st.integers(0, 2**32 - 1))
def test_truncation_cuts_what_it_says_and_is_the_best(shape, rank, keep, seed):
    generator = np.random.default_rng(seed)
    terms = [Term(weight=1.0, factors=random_factors(generator, *shape, rank))]
    dense = dense_sum(terms)
    whole = decompose(*stack(terms))
    kept = truncated(whole, keep)
    rebuilt = ((kept.u * kept.sigma) @ kept.v).numpy()
    squares = np.linalg.svd(dense, compute_uv=False) ** 2
    assert np.linalg.norm(dense - rebuilt) ** 2 == pytest.approx(
        squares[keep:].sum(), rel=1e-6, abs=1e-9 * squares.sum()
    )
    assert cut_energy(whole, keep) == pytest.approx(
        squares[keep:].sum() / squares.sum(), rel=1e-6, abs=1e-9
    )


@pytest.mark.parametrize("gauge", [1.0, 4.0, 1024.0])
def test_product_norm_is_the_dense_norm_and_ignores_the_gauge(gauge):
    generator = np.random.default_rng(3)
    factors = random_factors(generator, 12, 20, 4, 0.5)
    moved = LowRankFactors(
        a=(factors.a / gauge).astype(np.float32), b=factors.b * np.float32(gauge), scaling=0.5
    )
    assert product_norm(moved) == pytest.approx(np.linalg.norm(factors.product()), rel=1e-6)


def test_opposite_terms_cancel_to_rank_zero():
    generator = np.random.default_rng(4)
    factors = random_factors(generator, 10, 9, 3)
    terms = [Term(weight=0.7, factors=factors), Term(weight=-0.7, factors=factors)]
    whole = decompose(*stack(terms))
    assert float(whole.sigma.max()) < 1e-12


def test_directions_of_float32_rounding_do_not_count_as_rank():
    generator = np.random.default_rng(5)
    factors = random_factors(generator, 30, 40, 3)
    noisy = LowRankFactors(a=factors.a, b=factors.b * np.float32(1 + 1e-10), scaling=1.0)
    terms = [Term(weight=0.5, factors=factors), Term(weight=0.5, factors=noisy)]
    assert len(without_rounding(decompose(*stack(terms))).sigma) == 3
