"""The ledger: exact against float64, bounded broadcasts, and rounds that change nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_aggregators.base import GlobalState, WeightedUpdate
from intarsia_client.start import client_start
from intarsia_client.transport import decode_broadcast, encode_broadcast
from intarsia_client.wire import Adapter, LowRankFactors

SCALINGS = (2.0, 0.75, 1 / np.sqrt(8), 4.0, 1.0)
BOUNDS = {
    "unbounded": {},
    "bounded": {"broadcast_rank": 4, "residual_rank": 64},
}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def sent(state: GlobalState, precision: str) -> GlobalState:
    """The state after its published adapter was encoded for the clients and decoded."""
    if precision == "float32":
        return state
    published = decode_broadcast(encode_broadcast(state.published, precision))
    return GlobalState(published=published, exact=state.whole)


@pytest.mark.parametrize("kind", ["residual", "prefix", "fresh", "sampled"])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_ten_rounds_with_changing_ranks_and_dropouts_equal_the_float64_sum(
    federation, kind, bound, precision
):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    dense = federation.products(state.whole)
    for number in range(10):
        ranks = generator.permutation([1, 2, 4, 8, 16])[: 2 + number % 4]
        updates = [
            federation.update(
                state.published,
                f"c{i}",
                rank=int(rank),
                weight=float(1 + i),
                scaling=SCALINGS[i],
                kind=kind,
                generator=generator,
            )
            for i, rank in enumerate(ranks)
        ]
        added = federation.dense_sum(federation.empty(), updates)
        dense = {name: product + added[name] for name, product in dense.items()}
        result = federation.aggregate("ledger", state, updates, **BOUNDS[bound])
        for name, product in federation.products(result.state.whole).items():
            assert relative_error(product, dense[name]) < 1e-6
        assert result.cut_energy == 0.0
        assert result.state.published.rank <= (4 if bound == "bounded" else 24)
        state = sent(result.state, precision)


def test_what_is_published_is_the_best_approximation_and_the_rest_is_told(federation):
    generator = np.random.default_rng(1)
    updates = [
        federation.update(federation.empty(), f"c{i}", rank=r, generator=generator)
        for i, r in enumerate([2, 4, 8])
    ]
    result = federation.aggregate(
        "ledger", federation.empty(), updates, broadcast_rank=3, residual_rank=5
    )
    total = held = cut = 0.0
    for name, dense in federation.dense_sum(federation.empty(), updates).items():
        u, sigma, v = np.linalg.svd(dense)
        published = result.state.published.modules[name]
        exact = result.state.exact.modules[name]
        assert (published.rank, exact.rank) == (3, 8)
        assert relative_error(published.product(), (u[:, :3] * sigma[:3]) @ v[:3]) < 1e-6
        assert relative_error(exact.product(), (u[:, :8] * sigma[:8]) @ v[:8]) < 1e-6
        assert np.linalg.norm(exact.a, axis=1) == pytest.approx(np.sqrt(sigma[:8]), rel=1e-5)
        assert np.linalg.norm(exact.b, axis=0) == pytest.approx(np.sqrt(sigma[:8]), rel=1e-5)
        total += np.sum(sigma**2)
        held += np.sum(sigma[3:8] ** 2)
        cut += np.sum(sigma[8:] ** 2)
    assert result.residual_energy == pytest.approx(held / total)
    assert result.cut_energy == pytest.approx(cut / total)
    assert min(held, cut) > 0.0


@pytest.mark.parametrize("kind", ["residual", "prefix", "fresh", "sampled"])
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_rounds_without_training_leave_every_singular_value(federation, kind, bound, precision):
    generator = np.random.default_rng(2)
    updates = [
        federation.update(federation.empty(), f"c{i}", rank=r, generator=generator)
        for i, r in enumerate([2, 4, 8])
    ]
    state = federation.aggregate("ledger", federation.empty(), updates, **BOUNDS[bound]).state
    before = federation.products(state.whole)
    for _ in range(20):
        state = sent(state, precision)
        updates = [
            federation.update(state.published, f"c{i}", rank=r, kind=kind, scaling=0.7)
            for i, r in enumerate([2, 4, 8])
        ]
        state = federation.aggregate("ledger", state, updates, **BOUNDS[bound]).state
    for name, product in before.items():
        sigma = np.linalg.svd(product, compute_uv=False)
        after = np.linalg.svd(state.whole.modules[name].product(), compute_uv=False)
        assert np.abs(after - sigma).max() < 1e-6 * sigma[0]
        assert relative_error(state.whole.modules[name].product(), product) < 1e-6


def test_averaging_full_adapters_instead_would_shrink_the_upper_directions(federation):
    """The control of the test above: without the delta form the same rounds lose energy."""
    generator = np.random.default_rng(1)
    first = federation.update(federation.empty(), "c", rank=8, generator=generator)
    published = federation.aggregate("ledger", federation.empty(), [first]).state.published
    updates = [
        federation.update(published, f"c{i}", rank=r, kind="prefix")
        for i, r in enumerate([2, 4, 8])
    ]
    name = "layers.0.q"
    mean = sum(one.trained.modules[name].product() for one in updates) / 3
    energy = np.linalg.norm(mean) ** 2 / np.linalg.norm(published.modules[name].product()) ** 2
    assert energy < 0.9


def test_what_is_held_back_comes_out_when_it_has_grown(federation):
    """Of two directions only one is sent; the other is added to until it is the larger one."""
    name = "layers.0.q"
    first, second = np.eye(24, dtype=np.float32)[:2], np.eye(32, dtype=np.float32)[:2]

    def adding(state: GlobalState, size: float, direction: int) -> WeightedUpdate:
        start = client_start(
            state.published, rank=1, scaling=1.0, seed=0, kind="fresh", modules=[name]
        ).trainable
        factors = LowRankFactors(
            a=np.float32(size) * second[direction][None], b=first[direction][:, None], scaling=1.0
        )
        trained = replace(start, modules={name: factors})
        return WeightedUpdate(client="c", weight=1.0, start=start, trained=trained)

    bound = {"broadcast_rank": 1, "residual_rank": 4}
    state = GlobalState(published=federation.empty())
    state = federation.aggregate("ledger", state, [adding(state, 1.0, 0)], **bound).state
    seen = []
    for _ in range(4):
        result = federation.aggregate("ledger", state, [adding(state, 0.3, 1)], **bound)
        state = result.state
        seen.append(float(state.published.modules[name].product()[1, 1]))
    assert seen == pytest.approx([0.0, 0.0, 0.0, 1.2], abs=1e-6)
    assert result.residual_energy == pytest.approx(1.0 / (1.0 + 1.2**2))


def test_a_client_that_sends_what_it_was_sent_changes_nothing(federation):
    generator = np.random.default_rng(3)
    first = federation.update(federation.empty(), "c", rank=8, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first]).state
    echo = federation.update(state.published, "echo", rank=4, weight=2.0)
    trained = federation.update(state.published, "c", rank=4, generator=generator)
    after = federation.aggregate("ledger", state, [echo, trained]).state.whole
    expected = federation.dense_sum(state.whole, [trained])
    for name, before in federation.products(state.whole).items():
        # It takes its share of the cohort, and adds nothing.
        diluted = before + (expected[name] - before) / 3
        assert relative_error(after.modules[name].product(), diluted) < 1e-6


def test_modules_that_nobody_trained_stay_and_partial_ones_count_where_they_are(federation):
    generator = np.random.default_rng(4)
    first = federation.update(federation.empty(), "c", rank=8, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first]).state
    partial = federation.update(
        state.published, "p", rank=4, modules=["layers.0.q"], generator=generator
    )
    alone = federation.aggregate("ledger", state, [partial]).state.whole
    for name, dense in federation.dense_sum(state.whole, [partial]).items():
        assert relative_error(alone.modules[name].product(), dense) < 1e-6
    assert set(alone.modules) == set(federation.shapes)


def test_updates_whose_rows_begin_alike_are_told_apart(federation):
    """A client may leave the first row of A as it was and train the others."""
    generator = np.random.default_rng(7)
    updates = []
    for i in range(3):
        one = federation.update(federation.empty(), f"c{i}", rank=3, generator=generator)
        modules = {
            name: replace(
                f, a=np.concatenate([one.start.modules[name].a[: 1 + i % 2], f.a[1 + i % 2 :]])
            )
            for name, f in one.trained.modules.items()
        }
        updates.append(replace(one, trained=replace(one.trained, modules=modules)))
    found = federation.aggregate("ledger", federation.empty(), updates).state.whole
    for name, dense in federation.dense_sum(federation.empty(), updates).items():
        assert relative_error(found.modules[name].product(), dense) < 1e-6


def test_directions_come_largest_first_and_rank_stays_within_the_shape(federation):
    generator = np.random.default_rng(5)
    published = federation.empty()
    for _ in range(4):
        updates = [
            federation.update(published, f"c{i}", rank=16, generator=generator) for i in range(4)
        ]
        published = federation.aggregate("ledger", published, updates).state.published
    for name, factors in published.modules.items():
        assert factors.rank <= min(federation.shapes[name])
        sizes = np.linalg.norm(factors.b, axis=0) * np.linalg.norm(factors.a, axis=1)
        assert (np.diff(sizes) <= 1e-6 * sizes[0]).all()


@settings(max_examples=25, deadline=None)
@given(
    clients=st.lists(
        st.tuples(
            st.integers(1, 16),
            st.floats(1e-3, 1e3),
            st.floats(0.0, 1.0),
            st.sampled_from(SCALINGS),
            st.sampled_from(["residual", "prefix", "fresh", "sampled"]),
        ),
        min_size=1,
        max_size=4,
    ),
    bound=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_any_round_equals_the_float64_sum(federation, clients, bound, seed):
    generator = np.random.default_rng(seed)
    first = federation.update(federation.empty(), "c", rank=6, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first], broadcast_rank=4).state
    updates = [
        federation.update(
            state.published,
            f"c{i}",
            rank=rank,
            weight=weight,
            factor=factor,
            scaling=scaling,
            kind=kind,
            generator=generator,
        )
        for i, (rank, weight, factor, scaling, kind) in enumerate(clients)
    ]
    result = federation.aggregate("ledger", state, updates, broadcast_rank=bound)
    for name, dense in federation.dense_sum(state.whole, updates).items():
        assert relative_error(result.state.whole.modules[name].product(), dense) < 1e-6


def test_clients_that_share_their_start_cost_no_room(federation):
    """An adapter that is only sent back has the rank it had, however many send it."""
    generator = np.random.default_rng(6)
    first = federation.update(federation.empty(), "c", rank=8, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first]).state
    echoes = [
        federation.update(state.published, f"c{i}", rank=1 + i % 16, scaling=3.0) for i in range(20)
    ]
    after: Adapter = federation.aggregate("ledger", state, echoes).state.whole
    assert {name: f.rank for name, f in after.modules.items()} == {
        name: f.rank for name, f in state.whole.modules.items()
    }
