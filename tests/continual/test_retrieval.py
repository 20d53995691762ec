"""What is chosen follows from the allowed descriptors alone, and leaves in coarse steps."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors.base import Descriptor, DescriptorMethod
from intarsia_continual.descriptors.catalog import CATALOG, DEFAULT, find_method
from intarsia_continual.retrieval import STEPS, Choice, Retriever, in_steps, restrict
from scipy.special import softmax

ENCODER = bytes_digest(b"an encoder")
WIDTH = 5
METHODS = st.sampled_from([entry.name for entry in CATALOG])
SEEDS = st.integers(0, 30)
NUMBERS = st.floats(-1, 1, allow_subnormal=False)


def rows(seed: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    found = generator.normal(size=WIDTH) + 0.5 * generator.normal(size=(count, WIDTH))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@cache
def described(name: str, seed: int) -> Descriptor:
    """A descriptor that is made of the seed alone."""
    generator = np.random.default_rng(seed)
    return find_method(name).method.fit(rows(seed, 4 + seed % 9), generator, encoder=ENCODER)


def library(name: str, seeds: set[int] | list[int]) -> dict[str, Descriptor]:
    return {f"sha256:{seed:02d}": described(name, seed) for seed in seeds}


@st.composite
def cases(draw: st.DrawFn) -> tuple[Retriever, np.ndarray, str, set[int], frozenset]:
    """A retriever, a query, a method, seeds of adapters and pairs of them that stand apart."""
    name = draw(METHODS)
    retriever = Retriever(
        find_method(name).method,
        top_k=draw(st.integers(1, 5)),
        threshold=draw(st.none() | st.floats(0, 1)),
        temperature=draw(st.floats(1e-3, 10)),
    )
    query = np.array(draw(st.lists(NUMBERS, min_size=WIDTH, max_size=WIDTH)), np.float32)
    seeds = draw(st.sets(SEEDS, max_size=8))
    pairs = draw(st.sets(st.tuples(st.sampled_from(sorted(seeds)), SEEDS))) if seeds else set()
    apart = frozenset((f"sha256:{one:02d}", f"sha256:{other:02d}") for one, other in pairs)
    return retriever, query, name, seeds, apart


@given(case=cases(), more=st.sets(SEEDS, max_size=6), order=st.randoms(use_true_random=False))
def test_what_is_not_allowed_changes_nothing(case, more, order) -> None:
    retriever, query, name, seeds, apart = case
    allowed = library(name, seeds)
    alone = retriever.choose(query, allowed, apart)
    superset = list(library(name, seeds | more).items())
    order.shuffle(superset)
    # Strangers' descriptors may be of another kind altogether.
    other = next(entry.name for entry in CATALOG if entry.name != name)
    superset.append(("sha256:another", described(other, 0)))
    restricted = restrict(dict(superset), set(allowed))
    assert retriever.choose(query, restricted, apart) == alone
    assert retriever.ranking(query, restricted, apart) == retriever.ranking(query, allowed, apart)


@given(case=cases(), removed=st.sets(SEEDS))
def test_an_allowed_adapter_that_was_not_chosen_can_leave(case, removed) -> None:
    retriever, query, name, seeds, apart = case
    chosen = retriever.choose(query, library(name, seeds), apart)
    used = set(retriever.ranking(query, library(name, seeds), apart))
    rest = (seeds - removed) | {seed for seed in seeds if f"sha256:{seed:02d}" in used}
    assert retriever.choose(query, library(name, rest), apart) == chosen


def test_nothing_but_the_allowed_is_looked_at(guarded) -> None:
    held = library("centroid", {1, 2, 3, 4})
    allowed = {"sha256:01", "sha256:03", "sha256:none"}
    found = restrict(guarded(held, allowed), allowed)
    assert list(found) == ["sha256:01", "sha256:03"]
    with pytest.raises(AssertionError, match="was read"):
        guarded(held, allowed)["sha256:02"]


@given(case=cases(), order=st.randoms(use_true_random=False))
def test_the_mappings_order_does_not_matter(case, order) -> None:
    retriever, query, name, seeds, apart = case
    turned = list(library(name, seeds).items())
    order.shuffle(turned)
    swapped = frozenset((other, one) for one, other in apart)
    found = retriever.choose(query, dict(turned), swapped)
    assert found == retriever.choose(query, library(name, seeds), apart)


@given(case=cases())
def test_weights_are_sixteenths_that_sum_to_one(case) -> None:
    retriever, query, name, seeds, apart = case
    chosen = retriever.choose(query, library(name, seeds), apart)
    assert len(chosen) <= retriever.top_k
    assert len({one.digest for one in chosen}) == len(chosen)
    if chosen:
        assert sum(one.weight for one in chosen) == 1.0
    assert all((one.weight * STEPS).is_integer() and one.weight > 0 for one in chosen)
    weights = [one.weight for one in chosen]
    assert weights == sorted(weights, reverse=True)


@given(case=cases())
def test_what_stands_apart_is_never_chosen_together(case) -> None:
    retriever, query, name, seeds, apart = case
    chosen = retriever.ranking(query, library(name, seeds), apart)
    for one, other in itertools.permutations(chosen, 2):
        assert (one, other) not in apart
    # Greedy: whoever was passed over for a worse one is apart from a better one.
    free = Retriever(retriever.method, top_k=STEPS, threshold=retriever.threshold)
    everyone = free.ranking(query, library(name, seeds))
    before: list[str] = []
    for digest in everyone:
        barred = any((digest, one) in apart or (one, digest) in apart for one in before)
        assert (digest in chosen) == (not barred and len(before) < retriever.top_k)
        before += [digest] if digest in chosen else []


def test_weights_are_the_softmax_in_units_of_the_chosen_ones_spread() -> None:
    method = DEFAULT.method
    held = library(method.name, range(6))
    query = rows(3, 1)[0]
    scores = {d: float(method.score(one, query[None])[0]) for d, one in held.items()}
    best = sorted(scores, key=scores.__getitem__, reverse=True)[:3]
    quarters = [np.quantile(held[d].arrays["held_out"].astype(float), [0.25, 0.75]) for d in best]
    unit = max(high - low for low, high in quarters)
    for temperature in (0.5, 2.0, 8.0):
        retriever = Retriever(method, threshold=None, temperature=temperature)
        assert list(retriever.ranking(query, held)) == best
        found = {one.digest: one.weight for one in retriever.choose(query, held)}
        shares = softmax([scores[d] / (temperature * unit) for d in best])
        assert [found.get(d, 0.0) for d in best] == [step / STEPS for step in in_steps(shares)]
    cold = Retriever(method, threshold=None, temperature=1e-3).choose(query, held)
    assert cold == (Choice(digest=best[0], weight=1.0),)
    even = Retriever(method, threshold=None, temperature=1e6).choose(query, held)
    assert [one.weight for one in even] == [6 / 16, 5 / 16, 5 / 16]


def test_of_equal_scores_the_smaller_digest_comes_first() -> None:
    same = {digest: described("centroid", 1) for digest in ("c", "a", "d", "b")}
    chosen = Retriever(find_method("centroid").method, threshold=None).choose(rows(1, 1)[0], same)
    assert [(one.digest, one.weight) for one in chosen] == [
        ("a", 6 / 16),
        ("b", 5 / 16),
        ("c", 5 / 16),
    ]


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
def test_a_stranger_is_answered_by_the_base(entry) -> None:
    held = library(entry.name, {2})
    own, stranger = rows(2, 1)[0], -rows(2, 1)[0]
    retriever = Retriever(entry.method, threshold=0.05)
    assert retriever.choose(stranger, held) == ()
    assert retriever.choose(own, held) == (Choice(digest="sha256:02", weight=1.0),)
    assert Retriever(entry.method, threshold=None).choose(stranger, held)
    assert Retriever(entry.method, threshold=1.0).choose(stranger, held) == ()
    assert retriever.choose(own, {}) == ()


@given(
    case=cases().filter(lambda case: case[0].threshold is not None),
    lower=st.floats(0, 1),
)
def test_a_lower_threshold_lets_through_whoever_passed(case, lower) -> None:
    retriever, query, name, seeds, _ = case
    wide, narrow = sorted((lower, retriever.threshold))
    everyone = [
        set(
            Retriever(retriever.method, top_k=16, threshold=one).ranking(
                query, library(name, seeds)
            )
        )
        for one in (wide, narrow)
    ]
    assert everyone[0] >= everyone[1]


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=3))
def test_steps_are_the_nearest_that_sum_to_one(parts) -> None:
    shares = [part / sum(parts) for part in parts]
    found = in_steps(shares)
    assert sum(found) == STEPS
    distance = sum(abs(step / STEPS - share) for step, share in zip(found, shares, strict=True))
    every = itertools.product(range(STEPS + 1), repeat=len(shares))
    best = min(
        sum(abs(step / STEPS - share) for step, share in zip(steps, shares, strict=True))
        for steps in every
        if sum(steps) == STEPS
    )
    assert distance == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 0}, "top_k: 0; give 1 to 16"),
        ({"top_k": 17}, "top_k: 17"),
        ({"threshold": 1.5}, "threshold: 1.5"),
        ({"threshold": float("nan")}, "threshold: nan"),
        ({"temperature": 0.0}, "temperature: 0.0; give a number above 0"),
        ({"temperature": float("inf")}, "temperature: inf"),
        ({"temperature": float("nan")}, "temperature: nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        Retriever(DEFAULT.method, **settings)


def test_descriptors_of_another_kind_are_refused() -> None:
    method: DescriptorMethod = find_method("centroid").method
    query = rows(0, 1)[0]
    with pytest.raises(InputError, match="method: gaussian; fit it with centroid"):
        Retriever(method).choose(query, library("gaussian", {1}))
    with pytest.raises(
        InputError, match=f"descriptor of sha256:01: encoder {ENCODER}; fit it again"
    ):
        Retriever(method, encoder=bytes_digest(b"b")).choose(query, library("centroid", {1}))
    same = Retriever(method, encoder=ENCODER, threshold=None)
    assert same.choose(query, library("centroid", {1}))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (np.zeros((1, WIDTH), np.float32), "give one vector"),
        (np.full(WIDTH, np.nan, np.float32), "not finite"),
        (np.zeros(WIDTH + 1, np.float32), "query's width: 6"),
    ],
)
def test_malformed_queries_are_refused(query, message) -> None:
    with pytest.raises(InputError, match=message):
        Retriever(DEFAULT.method).choose(query, library(DEFAULT.name, {1}))


def test_an_empty_prompts_vector_is_answered_by_the_base() -> None:
    held = library(DEFAULT.name, {1, 2, 3})
    assert Retriever(DEFAULT.method).choose(np.zeros(WIDTH, np.float32), held) == ()
