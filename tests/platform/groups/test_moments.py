from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from intarsia_client.errors import InputError
from intarsia_continual.descriptors.base import unit_rows
from intarsia_continual.descriptors.centroid import CENTROID
from intarsia_continual.descriptors.gaussian import GAUSSIAN
from intarsia_platform.groups.moments import MAX_WIDTH, Moments, joined


def vectors(seed, count, width):
    generator = np.random.default_rng(seed)
    # Not round about 0, as no encoder's are.
    return unit_rows(generator.normal(0.3, 1.0, (count, width))).astype(np.float32)


def same(one, other):
    assert one.count == other.count
    np.testing.assert_allclose(one.total, other.total, atol=1e-9)
    np.testing.assert_allclose(one.second, other.second, atol=1e-9)


SIZES = strategies.integers(1, 40)


@given(seed=strategies.integers(0, 99), first=SIZES, second=SIZES, width=strategies.integers(1, 24))
@settings(deadline=None)
def test_moments_of_parts_add_up_and_part_again(seed, first, second, width):
    rows = vectors(seed, first + second, width)
    parts = [Moments.of(some, second=True) for some in (rows[:first], rows[first:])]
    whole = Moments.of(rows, second=True)
    same(joined(parts), whole)
    same(whole.minus(parts[1]), parts[0])


@given(seed=strategies.integers(0, 99), count=strategies.integers(1, 40), width=SIZES)
@settings(deadline=None)
def test_a_sample_has_the_moments_it_is_drawn_from(seed, count, width):
    whole = Moments.of(vectors(seed, count, width), second=True)
    sample = whole.sample()
    assert sample.shape == (count, width)
    again = Moments.of(sample, second=True)
    np.testing.assert_allclose(again.total, whole.total, atol=1e-4)
    np.testing.assert_allclose(again.second, whole.second, atol=1e-4)


@pytest.mark.parametrize(("count", "width"), [(30, 12), (12, 30), (300, 20), (5, 64)])
@pytest.mark.parametrize("method", [CENTROID, GAUSSIAN], ids=lambda method: method.name)
def test_a_method_makes_of_moments_what_it_makes_of_the_texts(method, count, width):
    rows, queries = vectors(1, count, width), unit_rows(vectors(2, 9, width))
    moments = Moments.of(rows, second=method is GAUSSIAN)
    generator = np.random.default_rng(0)
    ours, direct = (
        method.compare(method.summarise(some, generator), queries)
        for some in (moments.sample(), rows)
    )
    # A log density divides by variances that may be a thousandth of the mean one.
    np.testing.assert_allclose(ours, direct, rtol=2e-4, atol=1e-5)
    np.testing.assert_array_equal(np.argsort(ours), np.argsort(direct))


def test_one_text_alone_shows_that_a_sum_is_a_vector():
    # Why sites with few texts say nothing: this is the vector itself.
    rows = vectors(3, 1, 8)
    np.testing.assert_allclose(Moments.of(rows, second=False).total, rows[0], atol=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"count": 4},
        {"count": 101},
        {"total": np.full(8, np.nan)},
        {"total": np.full(8, 99.0)},
        {"total": np.zeros(7)},
        {"second": None},
        {"second": np.eye(7)},
        {"second": np.full((8, 8), np.inf)},
        {"second": 99.0 * np.eye(8)},
        {"second": np.zeros((8, 8))},
        {"second": np.triu(np.ones((8, 8)))},
    ],
)
def test_moments_that_no_texts_can_have_are_refused(change):
    sound = Moments.of(vectors(4, 20, 8), second=True)
    assert sound.checked(8, second=True, most=100) is sound
    with pytest.raises(InputError, match="moments of texts: an impossible"):
        dataclasses.replace(sound, **change).checked(8, second=True, most=100)


def test_second_moments_of_wide_vectors_are_not_asked_for():
    rows = np.zeros((2, MAX_WIDTH + 1), dtype=np.float32)
    with pytest.raises(InputError, match="centroid"):
        Moments.of(rows, second=True)
    assert Moments.of(rows, second=False).second is None
