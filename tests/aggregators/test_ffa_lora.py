"""FFA-LoRA: A stays what the seed made it, and unequal ranks share its rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.base import GlobalState
from intarsia_client.errors import InputError
from intarsia_client.start import client_start
from intarsia_client.transport import decode_broadcast, encode_broadcast
from intarsia_client.wire import LowRankFactors


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_ten_rounds_of_changing_ranks_leave_a_as_the_seed_made_it(federation):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    rows = client_start(federation.empty(), rank=16, scaling=1.0, seed=0).trainable.modules
    dense = federation.products(state.whole)
    for number in range(1, 11):
        ranks = generator.permutation([1, 2, 4, 8, 16])[: 2 + number % 3]
        updates = [
            federation.update(
                state.published, f"c{i}", rank=int(r), trains="b", generator=generator
            )
            for i, r in enumerate(ranks)
        ]
        added = federation.dense_sum(federation.empty(), updates)
        dense = {name: product + added[name] for name, product in dense.items()}
        state = federation.aggregate("ffa-lora", state, updates, round_number=number).state
        assert state.exact is None
        for name, found in state.published.modules.items():
            assert np.array_equal(found.a, rows[name].a[: found.rank])
            assert relative_error(found.product(), dense[name]) < 1e-6
    assert state.published.rank == 16


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.003), ("int8", 0.009)])
def test_rounding_on_the_way_costs_no_more_than_the_rounding_of_the_rows(
    federation, precision, bound
):
    generator = np.random.default_rng(1)
    state = GlobalState(published=federation.empty())
    dense = federation.products(state.whole)
    for number in range(1, 11):
        updates = [
            federation.update(state.published, f"c{i}", rank=r, trains="b", generator=generator)
            for i, r in enumerate((4, 16))
        ]
        added = federation.dense_sum(federation.empty(), updates)
        dense = {name: product + added[name] for name, product in dense.items()}
        state = federation.aggregate("ffa-lora", state, updates, round_number=number).state
        for name, found in state.whole.modules.items():
            assert relative_error(found.product(), dense[name]) < bound
        sent = decode_broadcast(encode_broadcast(state.published, precision))
        state = GlobalState(published=sent, exact=state.whole)


def test_other_rows_are_refused(federation):
    generator = np.random.default_rng(2)
    good = federation.update(federation.empty(), "good", rank=4, trains="b", generator=generator)
    start = client_start(federation.empty(), rank=4, scaling=2.0, seed=1).trainable
    other = replace(good, client="other", start=start, trained=start)
    with pytest.raises(InputError, match=r"factor A of layers.* of other: is not the shared one"):
        federation.aggregate("ffa-lora", federation.empty(), [good, other])
    state = federation.aggregate("ffa-lora", federation.empty(), [good]).state
    with pytest.raises(InputError, match=r"factor A of layers.* of other: is not the shared one"):
        federation.aggregate("ffa-lora", state, [other])


def test_directions_that_the_way_rounded_to_nothing_are_let_go_and_told(federation):
    """Clients that did not get a direction train a fresh one in its place."""
    name = "layers.0.q"
    rows = client_start(federation.empty(), rank=2, scaling=1.0, seed=0).trainable.modules[name].a
    b = np.zeros((24, 2), np.float32)
    b[:, 0], b[:, 1] = 1.0, 1e-3
    factors = LowRankFactors(a=rows, b=b, scaling=1.0)
    whole = replace(federation.empty(), modules={**federation.empty().modules, name: factors})
    sent = replace(whole, modules={**whole.modules, name: replace(factors, b=b * [[1, 0]])})
    state = GlobalState(published=sent, exact=whole)
    update = federation.update(sent, "c", rank=2, trains="b", generator=np.random.default_rng(3))
    result = federation.aggregate("ffa-lora", state, [update])
    expected = federation.dense_sum(sent, [update])[name]
    assert relative_error(result.state.whole.modules[name].product(), expected) < 1e-6
    lost = np.linalg.norm(np.outer(b[:, 1], rows[1])) ** 2
    kept = sum(np.linalg.norm(f.product()) ** 2 for f in result.state.whole.modules.values())
    assert result.cut_energy == pytest.approx(lost / (lost + kept))
