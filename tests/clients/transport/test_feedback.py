"""Error feedback: what int8 loses in one round arrives in a later one."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.transport import (
    CarriedError,
    decode_update,
    encode_update,
    encode_with_feedback,
)
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors
from numpy.typing import NDArray

RANK = 4
ROUNDS = 30


def normal(generator: np.random.Generator, *shape: int) -> FloatArray:
    values: FloatArray = generator.normal(size=shape).astype(np.float32)
    return values


def with_factors(a: FloatArray, b: FloatArray, head: FloatArray) -> Adapter:
    factors = LowRankFactors(a=a, b=b, scaling=2.0)
    return Adapter(
        base="b", task="sequence-classification", modules={"q": factors},
        dense={"score.weight": head},
    )  # fmt: skip


def rounds(factors: str, seed: int) -> Iterator[tuple[Adapter, Adapter]]:
    """A start that wanders from round to round, and what was trained from it."""
    generator = np.random.default_rng(seed)
    a, b = normal(generator, RANK, 96), normal(generator, 80, RANK)
    head = normal(generator, 3, 80)
    for _ in range(ROUNDS):
        a = a + 0.05 * normal(generator, *a.shape)
        b = b + 0.05 * normal(generator, *b.shape)
        start = with_factors(a, b, head)
        moved_a = 0.3 * normal(generator, *a.shape) if factors in ("both", "a") else 0.0 * a
        moved_b = 0.3 * normal(generator, *b.shape) if factors in ("both", "b") else 0.0 * b
        yield start, with_factors(a + moved_a, b + moved_b, head + 0.1 * head[::-1])


def product(adapter: Adapter) -> NDArray[np.float64]:
    return adapter.modules["q"].product()


def errors(factors: str, *, feedback: bool, seed: int = 0) -> list[float]:
    """After each round, how far the decoded sum is from the true one, in the Frobenius norm."""
    carried, missing, found = CarriedError(), np.zeros((80, 96)), []
    for start, trained in rounds(factors, seed):
        if feedback:
            encoded, carried = encode_with_feedback(trained, start, carried, factors=factors)
        else:
            encoded = encode_update(trained, start, "int8", factors=factors)
        missing += product(decode_update(encoded, start, factors=factors)) - product(trained)
        found.append(float(np.linalg.norm(missing)))
    return found


@pytest.mark.parametrize("factors", ["both", "a", "b"])
@pytest.mark.parametrize("seed", range(2))
def test_the_sum_of_what_arrives_stays_near_the_true_sum(factors: str, seed: int) -> None:
    """Without feedback the error of the sum grows with the root of the rounds."""
    without, fed = (errors(factors, feedback=one, seed=seed) for one in (False, True))
    assert without[-1] > 4.0 * without[0]
    assert fed[-1] < 3.0 * fed[0]
    assert fed[-1] < 0.5 * without[-1]


@pytest.mark.parametrize("factors", ["both", "a", "b"])
def test_what_is_missing_is_what_is_carried(factors: str) -> None:
    """Exactly, as long as the bound of the rank cuts nothing."""
    carried, missing = CarriedError(), np.zeros((80, 96))
    for number, (start, trained) in enumerate(rounds(factors, 5)):
        encoded, carried = encode_with_feedback(trained, start, carried, factors=factors)
        missing += product(trained) - product(decode_update(encoded, start, factors=factors))
        owed = carried.modules["q"]
        assert owed.rank <= 2 * RANK and owed.scaling == 1.0
        if number < (1 if factors == "both" else 2):
            error = np.linalg.norm(owed.product() - missing)
            assert error < 1e-4 * np.linalg.norm(missing)


def test_a_constant_small_drift_arrives() -> None:
    """One direction moves by less than a step of its block each round, so plain int8 loses it."""
    generator = np.random.default_rng(1)
    a, b = normal(generator, RANK, 64), normal(generator, 64, RANK)
    head = np.zeros((1, 64), np.float32)
    start = with_factors(a, b, head)
    moved = b.copy()
    moved[0] += 1.0
    moved[1:] += 1.0 / 127 / 4
    trained = with_factors(a, moved, head)
    arrived = {True: np.zeros((64, 64)), False: np.zeros((64, 64))}
    carried = CarriedError()
    for _ in range(ROUNDS):
        encoded, carried = encode_with_feedback(trained, start, carried, factors="b")
        arrived[True] += product(decode_update(encoded, start, factors="b")) - product(start)
        plain = encode_update(trained, start, "int8", factors="b")
        arrived[False] += product(decode_update(plain, start, factors="b")) - product(start)
    true = ROUNDS * (product(trained) - product(start))
    lost = {fed: np.linalg.norm((true - one)[1:]) for fed, one in arrived.items()}
    assert lost[False] > 0.9 * np.linalg.norm(true[1:])
    assert lost[True] < 0.15 * np.linalg.norm(true[1:])


def test_the_head_carries_its_own_loss() -> None:
    carried, true, arrived = CarriedError(), np.zeros((3, 80)), np.zeros((3, 80))
    for start, trained in rounds("none", 2):
        encoded, carried = encode_with_feedback(trained, start, carried, factors="none")
        decoded = decode_update(encoded, start, factors="none")
        true += trained.dense["score.weight"]
        arrived += decoded.dense["score.weight"]
        owed = carried.dense["score.weight"]
        np.testing.assert_allclose(arrived + owed, true, rtol=1e-4, atol=1e-4)
        step = np.abs(trained.dense["score.weight"] - start.dense["score.weight"]).max() / 127
        assert np.abs(owed).max() <= 1.1 * step
    assert carried.modules == {} and carried.shared_a == {}


def test_where_only_a_is_shared_a_carries_its_own_loss() -> None:
    carried, true, arrived = CarriedError(), 0.0, 0.0
    for start, trained in rounds("both", 3):
        encoded, carried = encode_with_feedback(
            trained, start, carried, factors="a", only_a_is_shared=True
        )
        decoded = decode_update(encoded, start, factors="a")
        true, arrived = true + trained.modules["q"].a, arrived + decoded.modules["q"].a
        owed = carried.shared_a["q"]
        np.testing.assert_allclose(arrived + owed, true, rtol=1e-4, atol=1e-3)
        assert np.abs(owed).max() < 0.02
    assert carried.modules == {}


@pytest.mark.parametrize("factors", ["both", "a", "b", "none"])
def test_who_changes_nothing_and_owes_nothing_sends_zeros(factors: str) -> None:
    start, _ = next(rounds("both", 0))
    encoded, carried = encode_with_feedback(start, start, CarriedError(), factors=factors)
    assert encoded == encode_update(start, start, "int8", factors=factors)
    decoded = decode_update(encoded, start, factors=factors)
    assert product(decoded).tobytes() == product(start).tobytes()
    assert carried.modules == {} and not carried.dense["score.weight"].any()


def test_what_is_owed_arrives_even_if_nothing_is_trained_then() -> None:
    steps = rounds("b", 4)
    start, trained = next(steps)
    encoded, carried = encode_with_feedback(trained, start, CarriedError(), factors="b")
    owed = product(trained) - product(decode_update(encoded, start, factors="b"))
    before = np.linalg.norm(owed)
    for _ in range(3):
        encoded, carried = encode_with_feedback(start, start, carried, factors="b")
        owed -= product(decode_update(encoded, start, factors="b")) - product(start)
    assert np.linalg.norm(owed) < 1e-3 * before


def test_modules_that_are_not_trained_keep_what_they_owe() -> None:
    start, trained = next(rounds("both", 6))
    _, carried = encode_with_feedback(trained, start, CarriedError())
    renamed = [replace(one, modules={"v": one.modules["q"]}, dense={}) for one in (trained, start)]
    _, later = encode_with_feedback(renamed[0], renamed[1], carried)
    assert set(later.modules) == {"q", "v"}
    assert later.modules["q"] is carried.modules["q"]


def test_what_another_rank_left_is_taken_up() -> None:
    """What is owed is a product: it does not matter at which rank it was left."""
    start, trained = next(rounds("both", 7))
    _, carried = encode_with_feedback(trained, start, CarriedError())
    generator = np.random.default_rng(0)
    smaller = with_factors(
        normal(generator, 2, 96), normal(generator, 80, 2), start.dense["score.weight"]
    )
    _, later = encode_with_feedback(smaller, smaller, carried)
    assert 0 < later.modules["q"].rank <= 4


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 999),
    factors=st.sampled_from(["both", "a", "b"]),
    size=st.floats(-6, 3),
    dead=st.booleans(),
)
def test_corrections_stay_in_proportion(seed: int, factors: str, size: float, dead: bool) -> None:
    """Dependent rows, zero columns and any size: what is sent is finite, and nothing explodes."""
    generator = np.random.default_rng(seed)
    a, b = normal(generator, RANK, 96), normal(generator, 80, RANK)
    head = np.zeros((1, 80), np.float32)
    if dead:
        a[1] = a[0]
        b[:, 2] = 0.0
    start = with_factors(a, b, head)
    moved_a = 10.0**size * normal(generator, *a.shape) if factors != "b" else 0.0 * a
    moved_b = 10.0**size * normal(generator, *b.shape) if factors != "a" else 0.0 * b
    trained = with_factors((a + moved_a).astype(np.float32), (b + moved_b).astype(np.float32), head)
    change = np.linalg.norm(product(trained) - product(start))
    carried, owed = CarriedError(), 0.0
    for _ in range(6):
        encoded, carried = encode_with_feedback(trained, start, carried, factors=factors)
        decoded = decode_update(encoded, start, factors=factors)
        owed = owed + product(trained) - product(decoded)
        assert np.isfinite(product(decoded)).all()
        rounding = 1e-5 * np.linalg.norm(product(trained))
        assert np.linalg.norm(owed) <= 0.1 * change + rounding
