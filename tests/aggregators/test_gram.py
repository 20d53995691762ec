"""Gram matrices, inner products, norms and distances against dense float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators.gram import (
    distances,
    equilibrium,
    gram,
    inner_products,
    norms,
    symmetric_product,
)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 200, 517])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_symmetric_product_is_the_product(count, transposed):
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn((count, 90), generator=generator, dtype=torch.float64)
    given_rows = rows.T.contiguous().T if transposed else rows
    found = symmetric_product(given_rows)
    assert torch.equal(found, found.T)
    assert torch.allclose(found, rows @ rows.T, rtol=1e-12, atol=1e-12)
    out = torch.full((count, count), torch.nan, dtype=torch.float64)
    assert symmetric_product(given_rows, out=out) is out
    assert torch.equal(out, found)


def test_the_gram_matrix_sums_in_float64():
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn((30, 5000), generator=generator)
    wanted = rows.double() @ rows.double().T
    assert torch.allclose(gram(rows), wanted, rtol=1e-12, atol=1e-9)
    single = symmetric_product(rows).double()
    assert (gram(rows) - wanted).abs().max() < 1e-3 * (single - wanted).abs().max()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
)
def test_inner_products_norms_and_distances_are_the_dense_ones(ranks, d_out, d_in, seed):
    generator = np.random.default_rng(seed)
    total = sum(ranks)
    b = generator.standard_normal((d_out, total)).astype(np.float32)
    a = generator.standard_normal((total, d_in)).astype(np.float32)
    coefficients = generator.uniform(-2, 2, total)
    ends = np.cumsum([0, *ranks])
    dense = np.stack(
        [
            ((b[:, i:j].astype(np.float64) * coefficients[i:j]) @ a[i:j].astype(np.float64)).ravel()
            for i, j in pairwise(ends)
        ]
    )
    found = inner_products(
        torch.from_numpy(b), torch.from_numpy(a), torch.from_numpy(coefficients), ranks
    )
    scale = max(float(np.abs(dense @ dense.T).max()), 1e-30)
    assert np.abs(found.numpy() - dense @ dense.T).max() <= 1e-12 * scale
    assert np.allclose(norms(found).numpy() ** 2, (dense**2).sum(1), atol=1e-12 * scale)
    apart = ((dense[:, None] - dense[None]) ** 2).sum(-1)
    assert np.abs(distances(found).numpy() ** 2 - apart).max() <= 1e-11 * scale
    assert (distances(found).diagonal() == 0).all()


def test_a_difference_of_equal_terms_is_nothing_and_never_negative():
    generator = np.random.default_rng(2)
    b = torch.from_numpy(generator.standard_normal((30, 4)).astype(np.float32))
    a = torch.from_numpy(generator.standard_normal((4, 40)).astype(np.float32))
    coefficients = torch.cat([torch.full((4,), 0.3), torch.full((4,), -0.3)])
    found = inner_products(torch.cat([b, b], 1), torch.cat([a, a], 0), coefficients, [8])
    assert 0.0 <= float(norms(found)[0]) < 1e-6


@pytest.mark.parametrize("gauge", [1e-15, 1.0, 1e15])
def test_the_equilibrium_undoes_the_gauge(gauge):
    generator = torch.Generator().manual_seed(3)
    b = torch.randn((20, 5), generator=generator, dtype=torch.float64) * gauge
    a = torch.randn((5, 30), generator=generator, dtype=torch.float64) / gauge
    b[:, 2] = 0.0
    coefficients = torch.tensor([1.0, -2.0, 3.0, 0.0, 0.5], dtype=torch.float64)
    balance = equilibrium((b**2).sum(0), (a**2).sum(1), coefficients)
    left, right = b * balance.left, a * balance.right[:, None]
    assert torch.allclose(left @ right, (b * coefficients) @ a, rtol=1e-12, atol=1e-12)
    assert torch.allclose((left**2).sum(0), (right**2).sum(1), rtol=1e-12)
    for scale in (balance.left, balance.right):
        assert scale[2] == scale[3] == 0.0
