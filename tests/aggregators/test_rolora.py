"""RoLoRA: one factor moves in a round, the other stays, and the sum is exact."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.base import GlobalState
from intarsia_aggregators.catalog import find_method
from intarsia_client.errors import InputError
from intarsia_client.transport import decode_broadcast, encode_broadcast


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_ten_rounds_move_one_factor_each_and_add_up(federation):
    generator = np.random.default_rng(0)
    state = GlobalState(published=federation.empty())
    dense = federation.products(state.whole)
    for number in range(1, 11):
        trains = find_method("rolora").trained_factors(number)
        assert trains == ("b" if number % 2 else "a")
        ranks = generator.permutation([1, 2, 4, 8, 16])[: 2 + number % 3]
        updates = [
            federation.update(
                state.published,
                f"c{i}",
                rank=int(r),
                scaling=0.7 + i,
                trains=trains,
                generator=generator,
            )
            for i, r in enumerate(ranks)
        ]
        added = federation.dense_sum(federation.empty(), updates)
        dense = {name: product + added[name] for name, product in dense.items()}
        before = state.published.modules
        state = federation.aggregate("rolora", state, updates, round_number=number).state
        for name, found in state.published.modules.items():
            assert relative_error(found.product(), dense[name]) < 1e-6
            rank = before[name].rank if number > 1 else 0
            frozen, was = (
                (found.a, before[name].a) if trains == "b" else (found.b.T, before[name].b.T)
            )
            moved, old = (
                (found.b.T, before[name].b.T) if trains == "b" else (found.a, before[name].a)
            )
            assert np.array_equal(frozen[:rank], was[:rank])
            assert number == 1 or not np.array_equal(moved[:rank], old[:rank])


@pytest.mark.parametrize(("precision", "bound"), [("bfloat16", 0.004), ("int8", 0.012)])
def test_rounding_on_the_way_costs_a_part_of_each_update_and_no_more(federation, precision, bound):
    generator = np.random.default_rng(1)
    state = GlobalState(published=federation.empty())
    for number in range(1, 11):
        trains = find_method("rolora").trained_factors(number)
        updates = [
            federation.update(state.published, f"c{i}", rank=r, trains=trains, generator=generator)
            for i, r in enumerate((4, 16))
        ]
        before = federation.products(state.whole)
        expected = federation.dense_sum(state.whole, updates)
        state = federation.aggregate("rolora", state, updates, round_number=number).state
        for name, found in state.whole.modules.items():
            added = expected[name] - before[name]
            missed = np.linalg.norm(found.product() - expected[name])
            assert missed < bound * np.linalg.norm(added)
        sent = decode_broadcast(encode_broadcast(state.published, precision))
        state = GlobalState(published=sent, exact=state.whole)


def test_another_frozen_b_is_refused(federation):
    generator = np.random.default_rng(2)
    first = federation.update(federation.empty(), "c", rank=4, trains="b", generator=generator)
    state = federation.aggregate("rolora", federation.empty(), [first], round_number=1).state
    update = federation.update(state.published, "c", rank=4, trains="a", generator=generator)
    name = "layers.0.v"
    moved = {
        side: replace(
            adapter,
            modules={
                **adapter.modules,
                name: replace(adapter.modules[name], b=adapter.modules[name].b * np.float32(1.01)),
            },
        )
        for side, adapter in (("start", update.start), ("trained", update.trained))
    }
    with pytest.raises(InputError, match=r"factor B of layers\.0\.v of c: is not the published"):
        federation.aggregate("rolora", state, [replace(update, **moved)], round_number=2)
