"""Where a client starts: the whole global adapter, split by what its rank can train."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_client.peft_files import decode_adapter, encode_adapter
from intarsia_client.start import check_rank, client_start, held_directions
from intarsia_client.wire import Adapter, LowRankFactors

D_OUT, D_IN = 12, 9


def factors(rank: int, scaling: float = 1.0, seed: int = 0) -> LowRankFactors:
    generator = np.random.default_rng(seed)
    return LowRankFactors(
        a=generator.normal(size=(rank, D_IN)).astype(np.float32),
        b=generator.normal(size=(D_OUT, rank)).astype(np.float32),
        scaling=scaling,
    )


def adapter(**modules: LowRankFactors) -> Adapter:
    head = {"score.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    return Adapter(base="b", task="sequence-classification", modules=modules, dense=head)


@settings(deadline=None)
@given(
    held=st.integers(0, 9),
    rank=st.integers(1, 9),
    published=st.floats(1e-3, 1e3),
    scaling=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_the_two_parts_add_up_to_the_global_adapter(
    held: int, rank: int, published: float, scaling: float, seed: int
) -> None:
    whole = factors(held, published, seed)
    start = client_start(adapter(q=whole), rank=rank, scaling=scaling, seed=seed)
    trainable = start.trainable.modules["q"]
    assert trainable.rank == rank
    assert trainable.scaling == scaling
    total = trainable.product()
    if "q" in start.underneath.modules:
        total = total + start.underneath.modules["q"].product()
    assert ("q" in start.underneath.modules) == (held > rank)
    # The reference is the global product in float64; what is lost is float32's rounding of B.
    bound = 1e-6 * published * (np.abs(whole.b).astype(float) @ np.abs(whole.a).astype(float))
    assert (np.abs(total - whole.product()) <= bound + 1e-30).all()


def test_the_leading_directions_are_the_trained_ones() -> None:
    whole = factors(5)
    start = client_start(adapter(q=whole), rank=2, scaling=0.5, seed=0)
    np.testing.assert_array_equal(start.trainable.modules["q"].a, whole.a[:2])
    np.testing.assert_array_equal(start.trainable.modules["q"].b, 2 * whole.b[:, :2])
    np.testing.assert_array_equal(start.underneath.modules["q"].a, whole.a[2:])
    np.testing.assert_array_equal(start.underneath.modules["q"].b, whole.b[:, 2:])


def test_a_split_by_powers_of_two_is_exact() -> None:
    whole = factors(6, 1.0)
    start = client_start(adapter(q=whole), rank=4, scaling=2.0, seed=0)
    lead = LowRankFactors(a=whole.a[:4], b=whole.b[:, :4], scaling=1.0)
    np.testing.assert_array_equal(start.trainable.modules["q"].product(), lead.product())


def test_the_head_is_trained_and_not_underneath() -> None:
    given_adapter = adapter(q=factors(3))
    start = client_start(given_adapter, rank=2, scaling=1.0, seed=0)
    np.testing.assert_array_equal(
        start.trainable.dense["score.weight"], given_adapter.dense["score.weight"]
    )
    assert start.underneath.dense == {}
    assert start.trainable.task == start.underneath.task == "sequence-classification"


def fresh(seed: int, rank: int, **modules: LowRankFactors) -> dict[str, LowRankFactors]:
    return dict(
        client_start(adapter(**modules), rank=rank, scaling=1.0, seed=seed).trainable.modules
    )


def test_fresh_directions_add_nothing_and_are_nested_over_ranks() -> None:
    small, large = (fresh(7, rank, q=factors(2))["q"] for rank in (4, 9))
    assert not small.b[:, 2:].any() and not large.b[:, 2:].any()
    np.testing.assert_array_equal(small.a, large.a[:4])
    # LoRA's own initialisation: uniform on +-1/sqrt(width).
    rows = fresh(0, 9, q=factors(0))["q"].a
    assert np.abs(rows).max() <= D_IN**-0.5
    assert rows.std() == pytest.approx(D_IN**-0.5 / 3**0.5, rel=0.2)


def test_fresh_directions_depend_on_seed_and_module_only() -> None:
    first = fresh(7, 4, q=factors(0), v=factors(0))
    np.testing.assert_array_equal(first["q"].a, fresh(7, 4, q=factors(0, 3.0, seed=9))["q"].a)
    assert (first["q"].a != first["v"].a).all()
    assert (first["q"].a != fresh(8, 4, q=factors(0))["q"].a).all()


def test_global_random_state_neither_matters_nor_changes() -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    fresh(0, 4, q=factors(0))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=9))
def test_held_directions_end_at_the_last_that_adds_something(nonzero: list[bool]) -> None:
    whole = factors(len(nonzero))
    masked = LowRankFactors(a=whole.a, b=whole.b * np.array(nonzero, dtype=np.float32), scaling=2.0)
    held = held_directions(masked)
    assert held.rank == max((i + 1 for i, kept in enumerate(nonzero) if kept), default=0)
    np.testing.assert_array_equal(held.product(), masked.product())


@pytest.mark.parametrize("held", [0, 3])
def test_the_start_from_a_file_is_the_start_from_memory(held: int) -> None:
    """The server has the adapter in memory, the client reads its file, where rank 0 is rank 1."""
    given_adapter = adapter(q=factors(held, 0.3))
    encoded = encode_adapter(given_adapter)
    decoded = decode_adapter(encoded.configuration, encoded.tensors)
    at_server, at_client = (
        client_start(which, rank=4, scaling=2.0, seed=1).trainable.modules["q"]
        for which in (given_adapter, decoded)
    )
    np.testing.assert_array_equal(at_server.a, at_client.a)
    np.testing.assert_allclose(at_server.b, at_client.b, rtol=1e-7)


def test_a_rank_larger_than_a_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"rank for q \(9 to 12\): 10; choose at most 9 or leave"):
        client_start(adapter(q=factors(2)), rank=10, scaling=1.0, seed=0)
    check_rank("q", 9, (D_OUT, D_IN))


def test_the_global_adapter_is_not_changed_by_training_the_start() -> None:
    whole = factors(5)
    before: dict[str, Any] = {"a": whole.a.copy(), "b": whole.b.copy()}
    trainable = client_start(adapter(q=whole), rank=3, scaling=1.0, seed=0).trainable.modules["q"]
    trainable.a[:] = 0
    trainable.b[:] = 0
    np.testing.assert_array_equal(whole.a, before["a"])
    np.testing.assert_array_equal(whole.b, before["b"])
