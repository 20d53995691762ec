"""What a client keeps: it comes back as it was, or is named as damaged."""

from dataclasses import replace

import numpy as np
import pytest
from intarsia_client.client_state import ClientState
from intarsia_client.errors import IntegrityError
from intarsia_client.optimizer_state import ModuleMoments, Moments, OptimizerState
from intarsia_client.transport import CarriedError
from intarsia_client.wire import Adapter, FloatArray, LowRankFactors


def normal(seed: int, *shape: int) -> FloatArray:
    values: FloatArray = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return values


def moments(seed: int, *shape: int) -> Moments:
    return Moments(first=normal(seed, *shape), second=normal(seed + 1, *shape) ** 2, steps=seed)


FACTORS = LowRankFactors(a=normal(0, 2, 5), b=normal(1, 4, 2), scaling=0.3)
FULL = ClientState(
    own_b={"layer.0/odd": normal(2, 4, 2), "q": normal(3, 4, 2)},
    optimizer=OptimizerState(
        modules={
            "q": ModuleMoments(factors=FACTORS, a=moments(4, 2, 5), b=None),
            "v": ModuleMoments(factors=FACTORS, a=None, b=moments(6, 4, 2)),
        },
        dense={"score.weight": moments(8, 3, 4), "score.bias": moments(10, 3)},
    ),
    carried=CarriedError(
        modules={"q": LowRankFactors(a=normal(12, 3, 5), b=normal(13, 4, 3), scaling=1.0)},
        shared_a={"v": normal(14, 2, 5)},
        dense={"score.weight": normal(15, 3, 4)},
    ),
)


def test_a_state_comes_back_as_it_was() -> None:
    data = FULL.to_bytes()
    back = ClientState.from_bytes(data)
    assert back.to_bytes() == data
    np.testing.assert_array_equal(back.own_b["layer.0/odd"], FULL.own_b["layer.0/odd"])
    kept = back.optimizer.modules["q"]
    assert kept.b is None and kept.a is not None and kept.a.steps == 4
    assert kept.factors.scaling == 0.3
    np.testing.assert_array_equal(kept.factors.b, FACTORS.b)
    assert set(back.optimizer.dense) == {"score.weight", "score.bias"}
    assert back.carried.modules["q"].rank == 3
    np.testing.assert_array_equal(back.carried.shared_a["v"], FULL.carried.shared_a["v"])
    np.testing.assert_array_equal(
        back.carried.dense["score.weight"], FULL.carried.dense["score.weight"]
    )


def test_an_empty_state_is_empty() -> None:
    assert ClientState().is_empty and not FULL.is_empty
    assert ClientState.from_bytes(ClientState().to_bytes()) == ClientState()
    assert not replace(ClientState(), own_b={"q": normal(0, 4, 2)}).is_empty


@pytest.mark.parametrize("cut", [0, 4, 8, 100, -1])
def test_a_damaged_state_is_named(cut: int) -> None:
    with pytest.raises(IntegrityError, match="client's own state") as caught:
        ClientState.from_bytes(FULL.to_bytes()[:cut])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"intarsia-client-state-1", b"intarsia-client-state-2"),
        (b"own/q/b", b"own/q/c"),
        (b"q/a.steps", b"q/a.stepz"),
        (b"F32", b"F64"),
        (b"[4,2]", b"[2,4]"),
        (b"q/a.second", b"q/a.xxxxxx"),
    ],
)
def test_a_changed_header_is_named(old: bytes, new: bytes) -> None:
    data = FULL.to_bytes()
    changed = data.replace(old, new, 1)
    assert changed != data
    try:
        found = ClientState.from_bytes(changed)
    except IntegrityError as error:
        assert "client's own state" in str(error)
    else:
        # Two shapes of one size: another state, but a whole one.
        assert found.to_bytes() == changed


def test_the_own_b_takes_the_place_of_the_starts() -> None:
    start = Adapter(
        base="b", task="causal-lm",
        modules={"q": FACTORS, "v": FACTORS, "k": replace(FACTORS, b=normal(5, 7, 2))},
    )  # fmt: skip
    state = ClientState(own_b={"q": normal(2, 4, 2), "k": normal(3, 4, 2)})
    found = state.personal(start)
    np.testing.assert_allclose(found.modules["q"].product(), (
        state.own_b["q"].astype(float) @ FACTORS.a
    ), rtol=1e-5, atol=1e-6)  # fmt: skip
    np.testing.assert_array_equal(found.modules["q"].a, FACTORS.a)
    assert found.modules["v"] is FACTORS
    np.testing.assert_array_equal(found.modules["k"].b, start.modules["k"].b)
