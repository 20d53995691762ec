"""Where a client starts: the whole global adapter, split by what its rank can train."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.assignment import START_KINDS, TrainAssignment
from intarsia_client.errors import InputError
from intarsia_client.peft_files import decode_adapter, encode_adapter
from intarsia_client.start import assigned_start, check_rank, client_start, held_directions
from intarsia_client.transport import broadcast_prefix_size, decode_broadcast, encode_broadcast
from intarsia_client.wire import Adapter, ComputedModules, LowRankFactors

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
    total = total + start.underneath.modules["q"].product()
    assert start.underneath.modules["q"].rank == max(0, held - rank)
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
    start = client_start(adapter(q=factors(2)), rank=10, scaling=1.0, seed=0)
    with pytest.raises(InputError, match=r"rank for q \(9 to 12\): 10; choose at most 9 or leave"):
        start.trainable.modules["q"]
    check_rank("q", 9, (D_OUT, D_IN))


def test_the_global_adapter_is_not_changed_by_training_the_start() -> None:
    whole = factors(5)
    before: dict[str, Any] = {"a": whole.a.copy(), "b": whole.b.copy()}
    trainable = client_start(adapter(q=whole), rank=3, scaling=1.0, seed=0).trainable.modules["q"]
    trainable.a[:] = 0
    trainable.b[:] = 0
    np.testing.assert_array_equal(whole.a, before["a"])
    np.testing.assert_array_equal(whole.b, before["b"])


def equal(first: LowRankFactors, second: LowRankFactors) -> bool:
    return (
        first.a.tobytes() == second.a.tobytes()
        and first.b.tobytes() == second.b.tobytes()
        and first.shape == second.shape
        and first.scaling == second.scaling
    )


@pytest.mark.parametrize("kind", START_KINDS)
@pytest.mark.parametrize("held", [0, 3, 8])
def test_each_kind_sees_what_it_shall(kind: str, held: int) -> None:
    whole = factors(held, 0.5)
    start = client_start(adapter(q=whole), rank=4, scaling=2.0, seed=1, kind=kind)
    trainable = start.trainable.modules["q"]
    assert (trainable.rank, trainable.scaling) == (4, 2.0)
    lead = LowRankFactors(a=whole.a[:4], b=whole.b[:, :4], scaling=0.5).product()
    trained = {"residual": lead, "prefix": lead, "fresh": 0.0 * lead}.get(kind)
    seen = lead if kind == "prefix" else whole.product()
    if trained is not None:
        np.testing.assert_allclose(trainable.product(), trained, atol=1e-6)
    np.testing.assert_allclose(start.whole.modules["q"].product(), seen, atol=1e-6)
    assert ("q" in start.underneath.modules) == (kind != "prefix")
    assert set(start.whole.dense) == {"score.weight"} and start.underneath.dense == {}


def test_a_fresh_start_trains_rows_of_its_own() -> None:
    whole = factors(8)
    start = client_start(adapter(q=whole), rank=4, scaling=2.0, seed=1, kind="fresh")
    trainable = start.trainable.modules["q"]
    assert not trainable.b.any()
    np.testing.assert_array_equal(trainable.a, fresh(1, 4, q=factors(0))["q"].a)


@pytest.mark.parametrize("kind", START_KINDS)
def test_a_subset_of_modules_leaves_the_others_underneath(kind: str) -> None:
    published = adapter(q=factors(6), v=factors(7, seed=1))
    start = client_start(published, rank=4, scaling=1.0, seed=0, kind=kind, modules=["v"])
    alone = client_start(adapter(v=published.modules["v"]), rank=4, scaling=1.0, seed=0, kind=kind)
    assert set(start.trainable.modules) == {"v"}
    assert equal(start.trainable.modules["v"], alone.trainable.modules["v"])
    frozen = start.underneath.modules["q"]
    assert start.whole.modules["v"].rank == {"prefix": 4, "fresh": 11}.get(kind, 7)
    assert frozen.rank == (4 if kind == "prefix" else 6)
    np.testing.assert_array_equal(frozen.a, published.modules["q"].a[: frozen.rank])


def test_an_unknown_module_or_name_is_refused() -> None:
    published = adapter(q=factors(6))
    with pytest.raises(InputError, match="module to train: k; name modules"):
        client_start(published, rank=4, scaling=1.0, seed=0, modules=["q", "k"])
    known = "residual, prefix, fresh, sampled"
    with pytest.raises(InputError, match=f"start: warm; choose one of {known}"):
        client_start(published, rank=4, scaling=1.0, seed=0, kind="warm")
    with pytest.raises(InputError, match="shared_factors: b; choose one of both, a"):
        client_start(published, rank=4, scaling=1.0, seed=0, share="b")


def test_where_only_a_is_shared_its_rows_count_without_b() -> None:
    whole = factors(5)
    zero = LowRankFactors(a=whole.a, b=np.zeros_like(whole.b), scaling=1.0)
    for kind in ("residual", "prefix"):
        start = client_start(adapter(q=zero), rank=3, scaling=1.0, seed=0, kind=kind, share="a")
        trainable = start.trainable.modules["q"]
        np.testing.assert_array_equal(trainable.a, whole.a[:3])
        assert not trainable.b.any()
    both = client_start(adapter(q=zero), rank=3, scaling=1.0, seed=0).trainable.modules["q"]
    assert (both.a != whole.a[:3]).all()


def test_a_zero_row_of_a_is_no_direction() -> None:
    """PEFT has no rank 0; the one zero direction in its place must not be trained: it is dead."""
    empty = LowRankFactors(
        a=np.zeros((1, 9), np.float32), b=np.zeros((12, 1), np.float32), scaling=1.0
    )
    start = client_start(adapter(q=empty), rank=2, scaling=1.0, seed=0, share="a")
    assert start.trainable.modules["q"].a.all()


@settings(deadline=None, max_examples=30)
@given(
    held=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    rank=st.integers(1, 9),
    zero=st.lists(st.integers(0, 8), max_size=4),
    share=st.sampled_from(["both", "a"]),
)
def test_a_prefix_of_the_broadcast_gives_the_start_of_the_whole(
    held: list[int], rank: int, zero: list[int], share: str
) -> None:
    """The server has all directions, the client the first ones; zero columns may stand anywhere."""
    modules = {}
    for index, count in enumerate(held):
        whole = factors(count, 0.5, seed=index)
        whole.b[:, [column for column in zero if column < count]] = 0.0
        modules[f"m{index}"] = whole
    data = encode_broadcast(adapter(**modules), "float32")
    received = decode_broadcast(data[: broadcast_prefix_size(data, rank)], rank=rank)
    at_server, at_client = (
        client_start(which, rank=rank, scaling=2.0, seed=3, kind="prefix", share=share)
        for which in (adapter(**modules), received)
    )
    for name in modules:
        assert equal(at_server.trainable.modules[name], at_client.trainable.modules[name])
    assert not at_client.underneath.modules


def assigned(**changes: Any) -> TrainAssignment:
    given_fields: dict[str, Any] = {
        "run": "r", "round": 1, "rounds": 3, "client": "c", "nonce": "n", "seed": 5, "base": "b",
        "base_digest": "", "start_digest": "", "task": "sequence-classification", "rank": 4,
        "lora_alpha": 8.0, "target_modules": ("q",), **changes,
    }  # fmt: skip
    return TrainAssignment(**given_fields)


def test_the_assigned_start_takes_everything_from_the_assignment() -> None:
    published = adapter(q=factors(6), v=factors(6, seed=1))
    for kind in ("residual", "prefix"):
        found = assigned_start(published, assigned(start=kind))
        expected = client_start(published, rank=4, scaling=2.0, seed=5, kind=kind, modules=["q"])
        assert list(found.trainable.modules) == ["q"]
        assert equal(found.trainable.modules["q"], expected.trainable.modules["q"])
        assert equal(found.underneath.modules["v"], expected.underneath.modules["v"])


def test_fresh_rows_are_new_in_every_round_and_the_same_for_every_client() -> None:
    published = adapter(q=factors(6))

    def rows(**changes: Any) -> bytes:
        start = assigned_start(published, assigned(start="fresh", **changes))
        return start.trainable.modules["q"].a.tobytes()

    assert rows(round=1) == rows(round=1, client="other", run="other")
    assert len({rows(round=1), rows(round=2), rows(round=1, seed=6)}) == 3


@settings(deadline=None)
@given(
    held=st.integers(0, 9),
    rank=st.integers(1, 9),
    sampled_from=st.integers(0, 9),
    round_number=st.integers(1, 50),
)
def test_a_sampled_start_draws_from_the_leading_directions(
    held: int, rank: int, sampled_from: int, round_number: int
) -> None:
    whole = factors(held)
    assignment = assigned(
        start="sampled", sampled_from=sampled_from, rank=rank, lora_alpha=rank, round=round_number
    )
    start = assigned_start(adapter(q=whole), assignment)
    trainable, rest = start.trainable.modules["q"], start.underneath.modules["q"]
    places = [whole.a.tolist().index(row) for row in trainable.a[: min(rank, held)].tolist()]
    # In order, none twice; beyond the leading ones only where those are too few.
    assert places == sorted(set(places))
    assert max(places, default=0) < max(rank, sampled_from or held)
    left = [place for place in range(held) if place not in places]
    np.testing.assert_array_equal(rest.a, whole.a[left])
    np.testing.assert_array_equal(rest.b, whole.b[:, left])
    assert not trainable.b[:, min(rank, held) :].any()


def test_what_is_sampled_differs_by_client_round_and_seed_and_is_one_draw_for_all_modules() -> None:
    published = adapter(q=factors(9), v=factors(9, seed=1))

    def drawn(module: str = "q", **changes: Any) -> tuple[int, ...]:
        asked = assigned(start="sampled", rank=2, target_modules=("q", "v"), **changes)
        rows = assigned_start(published, asked).trainable.modules[module].a.tolist()
        return tuple(published.modules[module].a.tolist().index(row) for row in rows)

    by_client = {drawn(client=f"client-{number}") for number in range(200)}
    by_round = {drawn(round=number) for number in range(1, 201)}
    by_seed = {drawn(seed=number) for number in range(200)}
    # Of 36 pairs; the least likely one comes once in 276 draws.
    assert min(len(by_client), len(by_round), len(by_seed)) > 27
    assert {place for pair in by_client for place in pair} == set(range(9))
    assert all(drawn(round=number) == drawn("v", round=number) for number in range(1, 20))
    assert drawn(run="other", nonce="other") == drawn()


def test_the_nth_largest_is_drawn_first_with_weight_one_over_n() -> None:
    published = adapter(q=factors(5))
    places = [
        published.modules["q"]
        .a.tolist()
        .index(
            assigned_start(published, assigned(start="sampled", rank=1, round=number))
            .trainable.modules["q"]
            .a[0]
            .tolist()
        )
        for number in range(1, 2001)
    ]
    weights = 1 / np.arange(1, 6)
    shares = np.bincount(places, minlength=5) / 2000
    # Four standard deviations of the largest share.
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.045)


def test_new_rows_of_a_sampled_start_are_the_clients_own() -> None:
    published = adapter(q=factors(0))
    first, second = (
        assigned_start(published, assigned(start="sampled", client=name)).trainable.modules["q"]
        for name in ("one", "two")
    )
    assert (first.a != second.a).all()
    assert np.linalg.matrix_rank(np.concatenate([first.a, second.a])) == 8


def test_a_start_reads_one_module_at_a_time_and_keeps_none() -> None:
    read: list[str] = []
    held = {name: factors(6, seed=index) for index, name in enumerate("qkv")}

    def reading(name: str) -> LowRankFactors:
        read.append(name)
        return held[name]

    published = Adapter(base="b", task="causal-lm", modules=ComputedModules(held, reading))
    start = client_start(published, rank=4, scaling=1.0, seed=0)
    assert read == []
    assert list(start.trainable.modules) == list("qkv") and "k" in start.underneath.modules
    assert read == []
    start.trainable.modules["k"]
    start.trainable.modules["k"]
    assert read == ["k", "k"]
