"""FedEx-LoRA: clients train on from the means, and what the means miss lies frozen beneath."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.base import GlobalState
from intarsia_client.start import client_start


def test_the_next_start_is_the_means_and_beneath_lies_what_they_miss(federation):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    dense = federation.products(state.published)
    for number in (1, 2, 3):
        updates = [
            federation.update(
                state.published, f"c{i}", rank=4, weight=w, scaling=0.7, generator=generator
            )
            for i, w in enumerate((1.0, 3.0))
        ]
        dense = federation.dense_sum(state.whole, updates)
        state = federation.aggregate("fedex-lora", state, updates, round_number=number).state
        start = client_start(state.published, rank=4, scaling=0.7, seed=0)
        for name, trainable in start.trainable.modules.items():
            sent = [one.trained.modules[name] for one in updates]
            assert trainable.a == pytest.approx(
                np.average([f.a for f in sent], axis=0, weights=[1, 3]), abs=1e-6
            )
            assert trainable.b == pytest.approx(
                np.average([f.b for f in sent], axis=0, weights=[1, 3]), abs=1e-6
            )
            rest = dense[name] - trainable.product()
            assert np.linalg.norm(rest) > 1e-3 * np.linalg.norm(dense[name])
            found = start.underneath.modules[name].product()
            assert np.abs(found - rest).max() < 1e-6 * np.linalg.norm(dense[name])


def test_clients_that_agree_leave_no_rest(federation):
    generator = np.random.default_rng(1)
    one = federation.update(federation.empty(), "a", rank=4, generator=generator)
    two = federation.update(federation.empty(), "b", rank=4, weight=2.0)
    two = replace(two, trained=one.trained)
    published = federation.aggregate("fedex-lora", federation.empty(), [one, two]).state.published
    for name, factors in published.modules.items():
        assert factors.rank == 4
        assert factors.a == pytest.approx(one.trained.modules[name].a)


def test_a_bounded_client_moves_the_means_by_its_factor(federation):
    generator = np.random.default_rng(2)
    first = federation.update(federation.empty(), "c", rank=4, generator=generator)
    state = federation.aggregate("fedex-lora", federation.empty(), [first]).state
    bounded = federation.update(
        state.published, "c", rank=4, factor=0.25, modules=["layers.0.q"], generator=generator
    )
    after = federation.aggregate("fedex-lora", state, [bounded]).state.published.modules
    start, trained = (one.modules["layers.0.q"] for one in (bounded.start, bounded.trained))
    found = after["layers.0.q"]
    assert found.a[:4] == pytest.approx(0.75 * start.a + 0.25 * trained.a, abs=1e-6)
    assert found.b[:, :4] == pytest.approx(0.75 * start.b + 0.25 * trained.b, abs=1e-6)
    untrained = state.published.modules["layers.0.v"]
    assert np.array_equal(after["layers.0.v"].a, untrained.a)
