"""FedIT: the means of the factors, and the cross terms that come with them."""

from __future__ import annotations

import numpy as np
import pytest


def test_factors_are_averaged_apart_and_the_cross_terms_are_what_is_wrong(federation):
    generator = np.random.default_rng(0)
    updates = [
        federation.update(
            federation.empty(), f"c{i}", rank=4, weight=1.0 + 2 * i, generator=generator
        )
        for i in range(2)
    ]
    published = federation.aggregate("fedit", federation.empty(), updates).state.published
    exact = federation.dense_sum(federation.empty(), updates)
    for name, found in published.modules.items():
        first, second = (one.trained.modules[name] for one in updates)
        assert found.scaling == first.scaling
        assert found.a == pytest.approx(np.average([first.a, second.a], axis=0, weights=[1, 3]))
        assert found.b == pytest.approx(np.average([first.b, second.b], axis=0, weights=[1, 3]))
        # With p and q = 1 - p: what is missing is p q (B1 - B2) (A1 - A2).
        apart = (first.b - second.b).astype(np.float64) @ (first.a - second.a)
        missing = exact[name] - found.product()
        assert missing == pytest.approx(3 / 16 * first.scaling * apart, abs=1e-6)
        assert np.abs(missing).max() > 1e-3
