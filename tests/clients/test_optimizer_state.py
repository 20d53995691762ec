"""Moments in another basis: what an orthogonal change of basis does to them, exactly."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.optimizer_state import (
    ModuleMoments,
    Moments,
    OptimizerState,
    best_rotation,
    mapped_state,
)
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors
from numpy.typing import NDArray

RANK, D_OUT, D_IN = 4, 20, 24


def normal(seed: int, *shape: int) -> FloatArray:
    values: FloatArray = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values


def rotation(seed: int) -> NDArray[np.float64]:
    q, _ = np.linalg.qr(normal(seed, RANK, RANK).astype(np.float64))
    return q


def factors(seed: int = 0, scaling: float = 2.0) -> LowRankFactors:
    return LowRankFactors(
        a=normal(seed, RANK, D_IN), b=normal(seed + 100, D_OUT, RANK), scaling=scaling
    )


def turned(left: LowRankFactors, r: NDArray[np.float64], size: float = 1.0) -> LowRankFactors:
    """The same product in another basis, with the size moved from B to A."""
    return replace(
        left,
        a=(size * r @ left.a).astype(np.float32),
        b=(left.b @ r.T / size).astype(np.float32),
    )


def kept(left: LowRankFactors, steps: int = 9, **changes: Moments | None) -> OptimizerState:
    moments = {
        "a": Moments(first=normal(1, RANK, D_IN), second=normal(2, RANK, D_IN) ** 2, steps=steps),
        "b": Moments(first=normal(3, D_OUT, RANK), second=normal(4, D_OUT, RANK) ** 2, steps=steps),
        **changes,
    }
    return OptimizerState(modules={"q": ModuleMoments(factors=left, **moments)})


def adapter(**modules: LowRankFactors) -> Adapter:
    return Adapter(base="b", task="causal-lm", modules=modules)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 999), st.floats(0.1, 10.0))
def test_a_change_of_basis_is_found(seed: int, size: float) -> None:
    r = rotation(seed)
    np.testing.assert_allclose(best_rotation(factors(), turned(factors(), r, size)), r, atol=1e-5)


def test_no_other_orthogonal_map_is_nearer() -> None:
    left, start = factors(0), factors(7)

    def distance(r: NDArray[np.float64]) -> float:
        return float(
            np.linalg.norm(r @ left.a - start.a) ** 2 + np.linalg.norm(left.b @ r.T - start.b) ** 2
        )

    best = best_rotation(left, start)
    np.testing.assert_allclose(best @ best.T, np.eye(RANK), atol=1e-12)
    assert all(distance(best) <= distance(rotation(seed)) for seed in range(200))


@pytest.mark.parametrize("size", [1.0, 3.0, 0.2])
def test_moments_turn_as_gradients_do(size: float) -> None:
    """For a loss of the product, dL/dA' = size^-1 R dL/dA where A' = size R A, and B likewise."""
    left, r = factors(), rotation(5)
    start = turned(left, r, size)
    gradient = normal(9, D_OUT, D_IN).astype(np.float64)
    of_a, of_b = left.b.T @ gradient, gradient @ left.a.T
    state = kept(
        left,
        a=Moments(first=of_a.astype(np.float32), second=np.ones_like(left.a), steps=9),
        b=Moments(first=of_b.astype(np.float32), second=np.ones_like(left.b), steps=9),
    )
    found = mapped_state(state, adapter(q=start)).modules["q"]
    assert found.a is not None and found.b is not None
    np.testing.assert_allclose(found.a.first, start.b.T @ gradient, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(found.b.first, gradient @ start.a.T, rtol=1e-3, atol=1e-3)
    # The rows of a squared orthogonal map sum to 1.
    np.testing.assert_allclose(found.a.second, size**-2, rtol=1e-3)
    np.testing.assert_allclose(found.b.second, size**2, rtol=1e-3)
    assert found.factors is start


def test_second_moments_are_those_of_uncorrelated_directions() -> None:
    left, r = factors(), rotation(5)
    generator = np.random.default_rng(0)
    deviation = np.abs(normal(8, RANK, D_IN)).astype(np.float64)
    drawn = generator.normal(size=(20_000, RANK, D_IN)) * deviation
    expected = np.square(np.einsum("ij,njk->nik", r, drawn)).mean(0)
    state = kept(left, a=Moments(
        first=np.zeros_like(left.a), second=(deviation**2).astype(np.float32), steps=9
    ))  # fmt: skip
    found = mapped_state(state, adapter(q=turned(left, r))).modules["q"].a
    assert found is not None and (found.second >= 0.0).all()
    np.testing.assert_allclose(found.second, expected, rtol=0.08, atol=1e-3)


def test_the_same_basis_changes_nothing() -> None:
    left = factors()
    found = mapped_state(kept(left), adapter(q=left)).modules["q"]
    before = kept(left).modules["q"]
    for after, then in ((found.a, before.a), (found.b, before.b)):
        assert after is not None and then is not None and after.steps == then.steps
        np.testing.assert_allclose(after.first, then.first, atol=1e-5)
        np.testing.assert_allclose(after.second, then.second, atol=1e-5)


@pytest.mark.parametrize(
    "start",
    [
        replace(factors(), scaling=1.0),
        LowRankFactors(a=normal(0, 3, D_IN), b=normal(1, D_OUT, 3), scaling=2.0),
        LowRankFactors(a=normal(0, RANK, D_IN), b=normal(1, D_OUT + 1, RANK), scaling=2.0),
    ],
    ids=["scaling", "rank", "shape"],
)
def test_where_the_basis_has_no_counterpart_moments_begin_anew(start: LowRankFactors) -> None:
    assert mapped_state(kept(factors()), adapter(q=start)).modules == {}
    assert mapped_state(kept(factors()), adapter(v=factors())).modules == {}


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4, 1e30])
def test_a_counterpart_out_of_all_proportion_gives_no_scale(size: float) -> None:
    left = factors()
    start = replace(left, b=np.float32(size) * left.b)
    found = mapped_state(kept(left), adapter(q=start)).modules["q"]
    assert found.a is None and found.b is not None
    only_b = mapped_state(kept(left, a=None), adapter(q=left)).modules["q"]
    assert only_b.a is None and only_b.b is not None


def test_the_heads_moments_stay_as_they_are() -> None:
    moments = Moments(first=normal(0, 3, 5), second=normal(1, 3, 5) ** 2, steps=4)
    state = OptimizerState(dense={"w": moments, "gone": moments})
    start = replace(adapter(), dense={"w": normal(2, 3, 5), "new": normal(3, 2)})
    assert mapped_state(state, start).dense == {"w": moments}
    reshaped = replace(adapter(), dense={"w": normal(2, 5, 3)})
    assert mapped_state(state, reshaped).dense == {}
