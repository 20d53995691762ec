"""HetLoRA: padding with zeros, weights by share and norm, and how padding dilutes."""

from __future__ import annotations

import numpy as np
import pytest
from intarsia_aggregators.base import GlobalState


def test_padded_factors_are_averaged_by_share_and_norm(federation):
    generator = np.random.default_rng(0)
    ranks, weights, scalings = (2, 6, 4), (1.0, 2.0, 5.0), (2.0, 0.5, 1.5)
    updates = [
        federation.update(
            federation.empty(), f"c{i}", rank=r, weight=w, scaling=s, generator=generator
        )
        for i, (r, w, s) in enumerate(zip(ranks, weights, scalings, strict=True))
    ]
    published = federation.aggregate("hetlora", federation.empty(), updates).state.published
    for name, found in published.modules.items():
        sent = [one.trained.modules[name] for one in updates]
        norms = [np.linalg.norm(f.product()) for f in sent]
        shares = np.multiply(weights, norms) / np.dot(weights, norms)
        a = sum(
            p * np.pad(f.a, ((0, 6 - f.rank), (0, 0))) for p, f in zip(shares, sent, strict=True)
        )
        b = sum(
            p * f.scaling * np.pad(f.b, ((0, 0), (0, 6 - f.rank)))
            for p, f in zip(shares, sent, strict=True)
        )
        assert found.scaling == 1.0
        assert found.a == pytest.approx(a, abs=1e-6)
        assert found.b == pytest.approx(b, abs=1e-6)


def test_where_nobody_trained_the_shares_alone_count(federation):
    updates = [federation.update(federation.empty(), f"c{i}", rank=4) for i in range(3)]
    published = federation.aggregate("hetlora", federation.empty(), updates).state.published
    for name, found in published.modules.items():
        assert found.a == pytest.approx(updates[0].trained.modules[name].a)
        assert not found.b.any()


def test_a_direction_that_half_of_the_weight_holds_keeps_a_quarter(federation):
    """With one norm for both, direction j shrinks by the square of its holders' weight."""
    generator = np.random.default_rng(1)
    first = federation.update(federation.empty(), "c", rank=4, generator=generator)
    state = GlobalState(
        published=federation.aggregate("ledger", federation.empty(), [first]).state.published
    )
    low = federation.update(state.published, "low", rank=2, kind="prefix")
    high = federation.update(state.published, "high", rank=4, kind="prefix")
    after = federation.aggregate("hetlora", state, [low, high]).state.published
    for name, before in state.published.modules.items():
        norms = [np.linalg.norm(one.trained.modules[name].product()) for one in (low, high)]
        held = norms[1] / sum(norms)
        found = after.modules[name]
        for j in range(4):
            term = np.outer(before.b[:, j], before.a[j]) * (1.0 if j < 2 else held**2)
            assert np.outer(found.b[:, j], found.a[j]) == pytest.approx(term, abs=1e-6)
