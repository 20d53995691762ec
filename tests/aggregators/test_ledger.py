"""The ledger: exact against float64, and a round without training changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.catalog import CATALOG, find_method
from intarsia_aggregators.ledger import LedgerAggregation
from intarsia_client.errors import InputError
from intarsia_client.peft_files import decode_adapter, encode_adapter
from intarsia_client.start import client_start
from intarsia_client.wire import Adapter, LowRankFactors

SHAPES = {"layers.0.q": (24, 32), "layers.0.v": (16, 32)}


def empty() -> Adapter:
    modules = {
        name: LowRankFactors(
            a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
        )
        for name, (d_out, d_in) in SHAPES.items()
    }
    return Adapter(base="base", task="causal-lm", modules=modules)


def travelled(adapter: Adapter) -> Adapter:
    """What the adapter is after it was written and read."""
    encoded = encode_adapter(adapter)
    return decode_adapter(encoded.configuration, encoded.tensors)


def update(
    published: Adapter, client: str, rank: int, weight: float, generator=None, scaling: float = 2.0
) -> WeightedUpdate:
    start = client_start(published, rank=rank, scaling=scaling, seed=0).trainable
    trained = start
    if generator is not None:
        trained = replace(
            start,
            modules={
                name: replace(
                    f,
                    a=f.a + 0.1 * generator.standard_normal(f.a.shape).astype(np.float32),
                    b=f.b + 0.1 * generator.standard_normal(f.b.shape).astype(np.float32),
                )
                for name, f in start.modules.items()
            },
        )
    return WeightedUpdate(client=client, weight=weight, start=start, trained=travelled(trained))


def aggregate(published: Adapter, updates: list[WeightedUpdate]) -> Adapter:
    aggregation = LedgerAggregation(published)
    for one in updates:
        aggregation.accumulate(one)
    return travelled(aggregation.finalize())


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_ten_rounds_with_changing_ranks_and_dropouts_equal_the_float64_sum():
    generator = np.random.default_rng(0)
    published = empty()
    dense = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for number in range(10):
        ranks = generator.permutation([1, 2, 4, 8, 16])[: 2 + number % 4]
        scalings = [2.0, 0.75, 1 / np.sqrt(8), 4.0, 1.0]
        updates = [
            update(published, f"c{i}", int(rank), float(1 + i), generator, scaling=scalings[i])
            for i, rank in enumerate(ranks)
        ]
        total = sum(one.weight for one in updates)
        for name in SHAPES:
            for one in updates:
                dense[name] += (one.weight / total) * (
                    one.trained.modules[name].product() - one.start.modules[name].product()
                )
        published = aggregate(published, updates)
        for name in SHAPES:
            assert relative_error(published.modules[name].product(), dense[name]) < 1e-6


def test_rounds_without_training_leave_every_singular_value():
    generator = np.random.default_rng(1)
    published = aggregate(
        empty(), [update(empty(), f"c{i}", r, 1.0, generator) for i, r in enumerate([2, 4, 8])]
    )
    before = {n: np.linalg.svd(f.product(), compute_uv=False) for n, f in published.modules.items()}
    for _ in range(20):
        published = aggregate(
            published, [update(published, f"c{i}", r, 1.0) for i, r in enumerate([2, 4, 8])]
        )
    for name, sigma in before.items():
        after = np.linalg.svd(published.modules[name].product(), compute_uv=False)
        assert np.abs(after - sigma).max() < 1e-6 * sigma[0]


def test_averaging_full_adapters_instead_would_shrink_the_upper_directions():
    """The control of the test above: without the delta form the same rounds lose energy."""
    generator = np.random.default_rng(1)
    published = aggregate(empty(), [update(empty(), "c", 8, 1.0, generator)])
    updates = [update(published, f"c{i}", r, 1.0) for i, r in enumerate([2, 4, 8])]
    name = "layers.0.q"
    mean = sum(one.trained.modules[name].product() for one in updates) / 3
    energy = np.linalg.norm(mean) ** 2 / np.linalg.norm(published.modules[name].product()) ** 2
    assert energy < 0.9


def test_directions_come_largest_first_and_rank_stays_within_the_shape():
    generator = np.random.default_rng(2)
    published = empty()
    for _ in range(4):
        published = aggregate(
            published, [update(published, f"c{i}", 16, 1.0, generator) for i in range(4)]
        )
    for name, factors in published.modules.items():
        assert factors.rank <= min(SHAPES[name])
        sizes = np.linalg.norm(factors.b, axis=0) * np.linalg.norm(factors.a, axis=1)
        assert (np.diff(sizes) <= 1e-6 * sizes[0]).all()


def test_the_order_of_updates_changes_nothing_but_rounding():
    generator = np.random.default_rng(3)
    updates = [update(empty(), f"c{i}", r, 1.0 + i, generator) for i, r in enumerate([1, 4, 8])]
    one, other = aggregate(empty(), updates), aggregate(empty(), updates[::-1])
    for name in SHAPES:
        assert relative_error(one.modules[name].product(), other.modules[name].product()) < 1e-6


def test_heads_are_averaged_by_weight():
    head = {"classifier.weight": np.ones((3, 4), np.float32)}
    published = replace(empty(), task="sequence-classification", dense=head)
    first = update(published, "a", 2, 1.0)
    second = update(published, "b", 4, 3.0)
    second = replace(
        second,
        trained=replace(
            second.trained, dense={"classifier.weight": np.full((3, 4), 5.0, np.float32)}
        ),
    )
    result = aggregate(published, [first, second])
    assert result.dense["classifier.weight"] == pytest.approx(np.full((3, 4), 4.0))


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_positive_are_refused(weight):
    with pytest.raises(InputError, match="weight of c"):
        LedgerAggregation(empty()).accumulate(update(empty(), "c", 2, weight))


def test_nothing_to_aggregate_is_refused():
    with pytest.raises(InputError, match="updates to aggregate: 0"):
        LedgerAggregation(empty()).finalize()


def test_other_modules_are_refused():
    odd = update(empty(), "c", 2, 1.0)
    modules = dict(odd.trained.modules)
    modules.pop("layers.0.v")
    with pytest.raises(InputError, match=r"layers\.0\.v"):
        LedgerAggregation(empty()).accumulate(
            replace(odd, trained=replace(odd.trained, modules=modules))
        )


def test_every_method_of_the_catalogue_is_found_by_its_name():
    for entry in CATALOG:
        assert find_method(entry.name) is entry
        assert entry.summary
        assert entry.source
    with pytest.raises(InputError, match=r"fedsum.*choose one of: ledger"):
        find_method("fedsum")
