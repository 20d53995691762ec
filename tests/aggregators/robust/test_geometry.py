"""Inner products of what clients added, against dense float64."""

from __future__ import annotations

import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.gram import distances
from intarsia_aggregators.robust import geometry
from intarsia_aggregators.robust.geometry import norms_of
from intarsia_client.errors import InputError
from intarsia_client.wire import Adapter, ComputedModules, LowRankFactors

sys.path.insert(0, str(Path(__file__).parent))
from cohorts import HEAD, SHAPES, added, cohort, counted, gauged, global_adapter, update

SEEDS = st.integers(0, 2**32 - 1)


def gram_matrix(updates) -> np.ndarray:
    return geometry.gram_matrix(updates).numpy()


def dense_gram(updates) -> np.ndarray:
    rows = np.stack([added(one) for one in updates])
    return rows @ rows.T


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@given(seed=SEEDS, count=st.integers(1, 8), head=st.booleans(), size=st.sampled_from([1e-3, 1, 30]))
def test_inner_products_norms_and_distances_are_those_of_dense_matrices(seed, count, head, size):
    updates = cohort(seed, count, head=head, size=size)
    expected = dense_gram(updates)
    gram = gram_matrix(updates)
    assert relative(gram, expected) < 1e-12
    assert np.array_equal(gram, gram.T)
    assert relative(norms_of(updates), np.sqrt(np.diagonal(expected))) < 1e-12
    rows = np.stack([added(one) for one in updates])
    apart = np.square(rows[:, None] - rows[None, :]).sum(axis=2)
    found = np.square(distances(geometry.gram_matrix(updates)).numpy())
    assert np.abs(found - apart).max() <= 1e-11 * expected.max()


def test_factors_multiply_what_was_added():
    updates = [replace(one, factor=0.25 * index) for index, one in enumerate(cohort(1, 5))]
    assert relative(gram_matrix(updates), dense_gram(updates)) < 1e-12
    assert relative(norms_of(updates), np.sqrt(np.diagonal(dense_gram(updates)))) < 1e-12


def test_modules_that_a_client_did_not_train_add_nothing():
    updates = cohort(2, 6)
    names = list(SHAPES)
    for index in (1, 4):
        kept = {name: updates[index].trained.modules[name] for name in names[: index // 2]}
        updates[index] = replace(
            updates[index], trained=replace(updates[index].trained, modules=kept)
        )
    assert relative(gram_matrix(updates), dense_gram(updates)) < 1e-12
    assert relative(norms_of(updates), np.sqrt(np.diagonal(dense_gram(updates)))) < 1e-12


@pytest.mark.parametrize("directions", [1, 7, 20])
def test_blocks_change_nothing_but_rounding(monkeypatch, directions):
    updates = cohort(3, 9)
    whole = gram_matrix(updates)
    monkeypatch.setattr(geometry, "_DIRECTIONS", directions)
    assert relative(gram_matrix(updates), whole) < 1e-13


@given(seed=SEEDS, exponent=st.integers(-40, 40))
def test_the_gauge_changes_no_inner_product(seed, exponent):
    updates = cohort(seed, 4)
    expected = gram_matrix(updates)
    # Powers of two, so that float32 factors stay exactly the same update.
    turned = [gauged(updates[0], 2.0**exponent), *updates[1:]]
    assert relative(gram_matrix(turned), expected) < 1e-12
    scales = 2.0 ** np.random.default_rng(seed).integers(-40, 41, updates[1].trained.rank)
    turned[1] = gauged(updates[1], scales)
    assert relative(gram_matrix(turned), expected) < 1e-12
    assert relative(norms_of(turned), np.sqrt(np.diagonal(expected))) < 1e-12


def test_the_factors_own_norms_do_change_under_the_gauge():
    """The control of the test above."""
    one = cohort(4, 1)[0]
    name = min(SHAPES)
    before = np.linalg.norm(one.trained.modules[name].b)
    assert np.linalg.norm(gauged(one, 1024.0).trained.modules[name].b) == 1024.0 * before


@pytest.mark.parametrize("kind", ["residual", "prefix", "fresh", "sampled"])
def test_what_comes_back_as_it_went_out_has_norm_zero(kind):
    generator = np.random.default_rng(5)
    published = global_adapter(generator)
    still = update(published, "still", generator, kind=kind, size=0.0)
    moved = update(published, "moved", generator, kind=kind)
    gram = gram_matrix([still, moved])
    assert gram[0, 0] == gram[0, 1] == 0.0
    assert norms_of([still])[0] == 0.0


@pytest.mark.parametrize("size", [1e-4, 1e-6])
def test_small_moves_from_a_large_start_keep_their_digits(size):
    generator = np.random.default_rng(6)
    published = global_adapter(generator, head=False)
    updates = [update(published, f"c{i}", generator, size=size) for i in range(3)]
    assert relative(gram_matrix(updates), dense_gram(updates)) < 1e-7


def test_each_module_is_read_once():
    reads: list[str] = []
    gram_matrix([counted(one, reads) for one in cohort(7, 5)])
    assert len(reads) == len(set(reads)) == 5 * len(SHAPES)


def test_memory_does_not_grow_with_the_number_of_modules():
    def peak(modules: int) -> int:
        names = [f"layers.{number}" for number in range(modules)]

        def make(client: int):
            def compute(name: str) -> LowRankFactors:
                generator = np.random.default_rng([client, len(name)])
                return LowRankFactors(
                    a=generator.standard_normal((8, 512), np.float32),
                    b=generator.standard_normal((512, 8), np.float32),
                    scaling=1.0,
                )

            return Adapter(base="base", task="causal-lm", modules=ComputedModules(names, compute))

        updates = [
            WeightedUpdate(client=f"c{i}", weight=1.0, start=make(0), trained=make(i + 1))
            for i in range(10)
        ]
        tracemalloc.start()
        gram_matrix(updates)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    few = peak(2)
    assert peak(40) < 1.15 * few


def test_the_order_of_updates_changes_nothing_but_rounding():
    updates = cohort(8, 7)
    order = np.random.default_rng(8).permutation(7)
    permuted = gram_matrix([updates[index] for index in order])
    assert relative(permuted, gram_matrix(updates)[np.ix_(order, order)]) < 1e-13


def spoilt(one: WeightedUpdate, value: float) -> WeightedUpdate:
    name = min(SHAPES)
    held = one.trained.modules[name]
    b = held.b.copy()
    b[0, 0] = value
    return replace(
        one, trained=replace(one.trained, modules={**one.trained.modules, name: replace(held, b=b)})
    )


@pytest.mark.parametrize("measure", [gram_matrix, norms_of])
@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("updates to judge: 0", lambda ones: []),
        ("update of client-0: comes twice", lambda ones: [ones[0], *ones]),
        ("weight of client-0: nan", lambda ones: [replace(ones[0], weight=float("nan")), ones[1]]),
        ("weight of client-0: 0.0", lambda ones: [replace(ones[0], weight=0.0), ones[1]]),
        ("weight of client-0: -1.0", lambda ones: [replace(ones[0], weight=-1.0), ones[1]]),
        ("factor of client-0: inf", lambda ones: [replace(ones[0], factor=float("inf")), ones[1]]),
        ("factor of client-0: -1.0", lambda ones: [replace(ones[0], factor=-1.0), ones[1]]),
        (r"layers\.0\.q of client-1: not finite", lambda ones: [ones[0], spoilt(ones[1], np.nan)]),
        (r"layers\.0\.q of client-1: not finite", lambda ones: [ones[0], spoilt(ones[1], np.inf)]),
    ],
)
def test_what_cannot_be_judged_is_refused_by_name(measure, words, spoil):
    with pytest.raises(InputError, match=words):
        measure(spoil(cohort(9, 2)))


def test_a_head_that_is_not_finite_is_refused():
    one, other = cohort(10, 2)
    head = np.full_like(other.trained.dense[HEAD], np.inf)
    with pytest.raises(InputError, match=r"classifier\.weight of client-1: not finite"):
        gram_matrix([one, replace(other, trained=replace(other.trained, dense={HEAD: head}))])


def test_modules_and_heads_that_do_not_fit_are_refused():
    one, other = cohort(10, 2)
    lacking = replace(other, trained=replace(other.trained, dense={}))
    with pytest.raises(InputError, match=r"head of client-1: classifier\.weight is missing"):
        gram_matrix([one, lacking])
    short = replace(other.trained, dense={HEAD: other.trained.dense[HEAD][:2]})
    with pytest.raises(InputError, match=r"classifier\.weight of client-1"):
        gram_matrix([one, replace(other, trained=short)])
    odd = {**other.trained.modules, "layers.9.q": other.trained.modules["layers.0.q"]}
    with pytest.raises(InputError, match=r"modules of client-1: layers\.9\.q"):
        gram_matrix([one, replace(other, trained=replace(other.trained, modules=odd))])
    crossed = {**other.trained.modules, "layers.0.q": other.trained.modules["layers.0.v"]}
    with pytest.raises(InputError, match=r"layers\.0\.q of client-1"):
        gram_matrix([one, replace(other, trained=replace(other.trained, modules=crossed))])
