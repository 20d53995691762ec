"""One contract for every method of the catalogue: each does what its entry says, and no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from intarsia_aggregators.base import (
    AggregationResult,
    AggregationSettings,
    GlobalState,
    WeightedUpdate,
)
from intarsia_aggregators.catalog import CATALOG, CatalogEntry, find_method
from intarsia_client.assignment import SHARED_FACTORS, START_KINDS, TRAINED_FACTORS
from intarsia_client.errors import InputError
from intarsia_client.peft_files import adapter_digest, write_adapter
from intarsia_client.wire import Adapter, ComputedModules, LowRankFactors

HEAD = "classifier.weight"
MIXED = (2, 4, 8)
SAME = (4, 4, 4)
METHODS = pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
# RoLoRA trains another factor in every second round.
ROUNDS = pytest.mark.parametrize("number", [2, 3])
STARTS = pytest.mark.parametrize(
    ("entry", "kind"),
    [(entry, kind) for entry in CATALOG for kind in entry.starts],
    ids=lambda value: getattr(value, "name", value),
)


def ranks_for(entry: CatalogEntry) -> tuple[int, ...]:
    return MIXED if entry.mixed_ranks else SAME


class Rounds:
    """Rounds of one method, clients doing what its entry asks for."""

    def __init__(self, federation, entry: CatalogEntry, kind: str = "") -> None:
        self.federation = federation
        self.entry = entry
        self.kind = kind or entry.starts[0]
        self.generator = np.random.default_rng(0)

    def update(self, state: GlobalState, client: str, **settings) -> WeightedUpdate:
        number = settings.pop("number", 1)
        chosen = {
            "rank": 4,
            "kind": self.kind,
            "share": self.entry.shared_factors,
            "trains": self.entry.trained_factors(number),
            "generator": self.generator,
        }
        return self.federation.update(state.published, client, **{**chosen, **settings})

    def updates(
        self, state: GlobalState, ranks: Sequence[int] = (), **settings
    ) -> list[WeightedUpdate]:
        return [
            self.update(state, f"c{i}", rank=rank, weight=1.0 + i, **settings)
            for i, rank in enumerate(ranks or ranks_for(self.entry))
        ]

    def aggregate(
        self, state: GlobalState, updates: Sequence[WeightedUpdate], number: int = 1
    ) -> AggregationResult:
        return self.federation.aggregate(
            self.entry.name, state, updates, round_number=number, broadcast_rank=16
        )

    def after(self, rounds: int) -> GlobalState:
        """The state after some rounds of training, from nothing."""
        state = GlobalState(published=self.federation.empty())
        for number in range(1, rounds + 1):
            updates = self.updates(state, number=number)
            state = self.aggregate(state, updates, number).state
        return state


@pytest.fixture
def rounds(federation, entry, request) -> Rounds:
    kind = request.node.callspec.params.get("kind", "")
    return Rounds(federation, entry, kind)


def distance(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    """The largest relative distance of any array from its counterpart."""
    assert one.keys() == other.keys()
    return max(
        float(np.linalg.norm(one[name] - other[name]) / (np.linalg.norm(other[name]) or 1.0))
        for name in other
    )


def numbers_of(adapter: Adapter) -> dict[str, np.ndarray]:
    """What an adapter means: its products and head, and A where that is all there is."""
    found: dict[str, np.ndarray] = {f"head {name}": t for name, t in adapter.dense.items()}
    for name, factors in adapter.modules.items():
        found[name] = factors.product() if factors.b.any() else factors.a
    return found


@METHODS
def test_an_entry_says_what_a_person_needs(entry):
    assert find_method(entry.name) is entry
    assert entry.summary and entry.source and entry.upload_cost and entry.download_cost
    assert "arXiv:" in entry.source
    assert entry.starts and set(entry.starts) <= set(START_KINDS)
    assert {entry.trained_factors(number) for number in range(1, 9)} <= set(TRAINED_FACTORS)
    assert entry.shared_factors in SHARED_FACTORS


def test_an_unknown_name_is_answered_with_the_known_ones():
    names = ", ".join(entry.name for entry in CATALOG)
    with pytest.raises(InputError, match=f"fedsum.*choose one of: {names}"):
        find_method("fedsum")
    assert len({entry.name for entry in CATALOG}) == len(CATALOG) == 10


@METHODS
@ROUNDS
def test_equal_orders_give_equal_bytes_and_others_differ_by_rounding(rounds, number):
    state = rounds.after(number - 1)
    updates = rounds.updates(state, number=number)
    one = rounds.aggregate(state, updates, number).state
    again = rounds.aggregate(state, updates, number).state
    assert adapter_digest(one.published) == adapter_digest(again.published)
    assert adapter_digest(one.whole) == adapter_digest(again.whole)
    turned = rounds.aggregate(state, updates[::-1], number).state
    assert distance(numbers_of(turned.whole), numbers_of(one.whole)) < 1e-6


@STARTS
@ROUNDS
def test_exact_means_equal_to_the_float64_sum(rounds, number, kind):
    state = rounds.after(number - 1)
    updates = rounds.updates(state, number=number)
    found = rounds.federation.products(rounds.aggregate(state, updates, number).state.whole)
    error = distance(found, rounds.federation.dense_sum(state.whole, updates))
    assert error < 1e-6 if rounds.entry.exact else error > 1e-2


@METHODS
@ROUNDS
def test_one_client_alone_gives_what_it_sent(rounds, number):
    state = rounds.after(number - 1)
    alone = rounds.update(state, "c", number=number, weight=7.0)
    found = rounds.aggregate(state, [alone], number).state.whole
    if rounds.entry.exact:
        expected = rounds.federation.dense_sum(state.whole, [alone])
        assert distance(rounds.federation.products(found), expected) < 1e-6
    else:
        sent = {name: alone.trained.modules[name] for name in found.modules}
        if rounds.entry.shared_factors == "a":
            sent = {name: replace(f, b=np.zeros_like(f.b)) for name, f in sent.items()}
        expected = numbers_of(replace(alone.trained, modules=sent))
        assert distance(numbers_of(found), expected) < 1e-6
    assert found.dense[HEAD] == pytest.approx(alone.trained.dense[HEAD])


@METHODS
@ROUNDS
def test_unequal_ranks_and_scalings_are_taken_or_refused_as_it_says(rounds, number):
    state = rounds.after(number - 1)
    by_rank = rounds.updates(state, MIXED, number=number)
    by_scaling = [rounds.update(state, f"c{i}", number=number, scaling=1.0 + i) for i in range(3)]
    for updates in (by_rank, by_scaling):
        if rounds.entry.mixed_ranks:
            assert rounds.aggregate(state, updates, number).state.published.rank > 0 or (
                rounds.entry.trained_factors(number) == "none"
            )
        else:
            with pytest.raises(InputError, match=r"of c\d: rank \d, scaling \d.*use one rank"):
                rounds.aggregate(state, updates, number)


@METHODS
@ROUNDS
def test_linear_means_that_only_the_sum_of_what_is_sent_counts(rounds, number):
    state = rounds.after(number - 1)
    updates = rounds.updates(state, SAME, number=number)
    # The first two clients' weights are 1 and 2.
    other = [changed(updates[0], rounds, number, 2.0), changed(updates[1], rounds, number, -1.0)]
    one = rounds.aggregate(state, updates, number).state.whole
    two = rounds.aggregate(state, [*other, updates[2]], number).state.whole
    apart = distance(numbers_of(two), numbers_of(one))
    assert apart < 1e-5 if rounds.entry.linear else apart > 1e-2


def changed(update: WeightedUpdate, rounds: Rounds, number: int, size: float) -> WeightedUpdate:
    """The update with the same change times ``size`` in everything that was trained."""
    generator = np.random.default_rng(number)
    trains = rounds.entry.trained_factors(number)

    def step(values: np.ndarray, trained: bool) -> np.ndarray:
        drawn = generator.standard_normal(values.shape).astype(np.float32)
        return values + np.float32(0.2 * size) * drawn if trained else values

    modules = {
        name: replace(
            factors,
            a=step(factors.a, trains in ("both", "a")),
            b=step(factors.b, trains in ("both", "b")),
        )
        for name, factors in update.trained.modules.items()
    }
    dense = {name: step(head, True) for name, head in update.trained.dense.items()}
    return replace(update, trained=replace(update.trained, modules=modules, dense=dense))


@METHODS
@ROUNDS
def test_scalings_are_read_from_the_updates(rounds, number):
    """The same products, written with unequal scalings, give the same."""
    state = rounds.after(number - 1)
    updates = rounds.updates(state, number=number)
    factors = (0.25, 8.0, 1.5) if rounds.entry.mixed_ranks else (4.0, 4.0, 4.0)
    rescaled = [
        replace(one, start=written(one.start, factor), trained=written(one.trained, factor))
        for one, factor in zip(updates, factors, strict=True)
    ]
    expected = numbers_of(rounds.aggregate(state, updates, number).state.whole)
    found = numbers_of(rounds.aggregate(state, rescaled, number).state.whole)
    assert distance(found, expected) < 1e-6


def written(adapter: Adapter, factor: float) -> Adapter:
    return replace(
        adapter,
        modules={
            name: replace(f, scaling=f.scaling * factor, b=f.b / np.float32(factor))
            for name, f in adapter.modules.items()
        },
    )


FADING = ("hetlora", "flexlora")


@STARTS
def test_rounds_without_training_change_nothing(rounds, kind):
    """But for two methods, of which it is known that they let high directions fade."""
    state = rounds.after(3)
    before = numbers_of(state.whole)
    energy = [
        np.linalg.norm(product) for product in rounds.federation.products(state.whole).values()
    ]
    for number in range(4, 24):
        updates = rounds.updates(state, number=number, generator=None)
        state = rounds.aggregate(state, updates, number).state
    after = rounds.federation.products(state.whole)
    if rounds.entry.name in FADING:
        for product, size in zip(after.values(), energy, strict=True):
            assert np.linalg.norm(product) < 0.99 * size
        assert state.whole.dense[HEAD] == pytest.approx(before[f"head {HEAD}"])
    else:
        assert distance(numbers_of(state.whole), before) < 1e-6


@METHODS
def test_what_was_added_is_bounded_by_factors_or_they_are_refused(rounds):
    state = rounds.after(2)
    updates = rounds.updates(state, number=3)
    updates[1] = replace(updates[1], factor=0.25)
    if not rounds.entry.adds_deltas:
        with pytest.raises(InputError, match=r"factor of c1: 0\.25"):
            rounds.aggregate(state, updates, 3)
        return
    found = rounds.aggregate(state, updates, 3).state.whole
    expected = rounds.federation.dense_sum(state.whole, updates)
    assert distance(rounds.federation.products(found), expected) < 1e-6
    head = state.whole.dense[HEAD].astype(np.float64)
    for one in updates:
        added = one.trained.dense[HEAD].astype(np.float64) - one.start.dense[HEAD]
        head = head + one.weight / 6.0 * one.factor * added
    assert found.dense[HEAD] == pytest.approx(head)


@METHODS
def test_a_client_may_train_some_modules_or_is_refused(rounds):
    state = rounds.after(2)
    updates = rounds.updates(state, number=3)
    updates[2] = rounds.update(
        state, "c2", number=3, rank=updates[2].trained.rank, modules=["layers.0.q"]
    )
    if not rounds.entry.adds_deltas:
        with pytest.raises(InputError, match=r"modules of c2: layers\.0\.v is missing"):
            rounds.aggregate(state, updates, 3)
        return
    found = rounds.aggregate(state, updates, 3).state.whole
    expected = rounds.federation.dense_sum(state.whole, updates)
    assert distance(rounds.federation.products(found), expected) < 1e-6
    none = replace(updates[2], trained=replace(updates[2].trained, modules={}))
    alone = rounds.aggregate(state, [none], 3).state.whole
    expected = rounds.federation.products(state.whole)
    assert distance(rounds.federation.products(alone), expected) < 1e-6


@METHODS
def test_heads_are_averaged_by_weight(rounds):
    state = rounds.after(1)
    updates = rounds.updates(state, number=2)
    found = rounds.aggregate(state, updates, 2).state.published.dense[HEAD]
    weights = [one.weight for one in updates]
    heads = np.stack([one.trained.dense[HEAD] for one in updates]).astype(np.float64)
    assert found == pytest.approx(np.average(heads, axis=0, weights=weights), rel=1e-6)


@METHODS
def test_modules_are_read_once_each_and_one_at_a_time(rounds):
    state = rounds.after(1)
    read: list[tuple[str, str]] = []

    def on_disk(update: WeightedUpdate) -> WeightedUpdate:
        def load(name: str) -> LowRankFactors:
            read.append((name, update.client))
            return update.trained.modules[name]

        modules = ComputedModules(update.trained.modules, load)
        return replace(update, trained=replace(update.trained, modules=modules))

    updates = rounds.updates(state, number=2)
    settings = AggregationSettings(round_number=2, broadcast_rank=16)
    aggregation = rounds.entry.method(state, settings)
    for one in updates:
        aggregation.accumulate(on_disk(one))
    assert read == []
    result = aggregation.finalize()
    assert read == [(name, one.client) for name in state.published.modules for one in updates]
    expected = rounds.aggregate(state, updates, 2).state.whole
    assert distance(numbers_of(result.state.whole), numbers_of(expected)) == 0.0


@METHODS
@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_not_positive_are_refused(rounds, weight):
    state = GlobalState(published=rounds.federation.empty())
    with pytest.raises(InputError, match="weight of c"):
        rounds.aggregate(state, [rounds.update(state, "c", weight=weight)])


@METHODS
@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_factors_below_zero_are_refused(rounds, factor):
    state = GlobalState(published=rounds.federation.empty())
    with pytest.raises(InputError, match="factor of c"):
        rounds.aggregate(state, [rounds.update(state, "c", factor=factor)])


@METHODS
def test_weights_whose_sum_overflows_are_refused(rounds):
    state = GlobalState(published=rounds.federation.empty())
    updates = [rounds.update(state, name, weight=1.7e308) for name in "ab"]
    with pytest.raises(InputError, match="sum of the weights: inf"):
        rounds.aggregate(state, updates)


@METHODS
def test_nothing_to_aggregate_is_refused(rounds):
    with pytest.raises(InputError, match="updates to aggregate: 0"):
        rounds.aggregate(GlobalState(published=rounds.federation.empty()), [])


@METHODS
def test_a_client_counts_once(rounds):
    state = GlobalState(published=rounds.federation.empty())
    with pytest.raises(InputError, match="update of c: comes twice"):
        rounds.aggregate(state, [rounds.update(state, "c"), rounds.update(state, "c")])


def with_module(adapter: Adapter, name: str, factors: LowRankFactors) -> Adapter:
    return replace(adapter, modules={**adapter.modules, name: factors})


@METHODS
def test_modules_shapes_ranks_and_heads_that_do_not_fit_are_refused(rounds):
    state = GlobalState(published=rounds.federation.empty())
    good = rounds.update(state, "c")
    name = "layers.0.q"
    factors = good.trained.modules[name]
    wrong = {
        r"modules of c: layers\.9\.q": with_module(good.trained, "layers.9.q", factors),
        r"layers\.0\.q of c: shape \(23, 32\)": with_module(
            good.trained, name, replace(factors, b=factors.b[:-1])
        ),
        r"layers\.0\.q of c: rank 3": with_module(
            good.trained, name, replace(factors, a=factors.a[:3], b=factors.b[:, :3])
        ),
        r"layers\.0\.q of c: not finite": with_module(
            good.trained, name, replace(factors, a=np.full_like(factors.a, np.nan))
        ),
        "head of c": replace(good.trained, dense={}),
        "head of c: .*5, 4": replace(good.trained, dense={HEAD: np.ones((5, 4), np.float32)}),
    }
    for message, trained in wrong.items():
        with pytest.raises(InputError, match=message):
            rounds.aggregate(state, [replace(good, trained=trained)])


@METHODS
@ROUNDS
def test_a_factor_that_was_to_stay_frozen_is_refused_when_it_changed(rounds, number):
    state = rounds.after(number - 1)
    trains = rounds.entry.trained_factors(number)
    frozen = {"both": (), "a": "B", "b": "A", "none": "A"}[trains]
    update = rounds.update(state, "c", number=number, trains="both")
    if frozen:
        with pytest.raises(InputError, match=f"factor {frozen} of layers.* of c: changed"):
            rounds.aggregate(state, [update], number)
    else:
        rounds.aggregate(state, [update], number)


def test_what_is_published_loads_in_peft(federation, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=8,
        num_labels=3,
        pad_token_id=0,
    )
    llama = replace(
        federation,
        shapes={
            "model.layers.0.self_attn.q_proj": (32, 32),
            "model.layers.0.mlp.up_proj": (24, 32),
        },
    )
    head = {"score.weight": np.ones((3, 32), np.float32)}
    for entry in CATALOG:
        rounds = Rounds(llama, entry)
        state = GlobalState(published=replace(llama.empty(), dense=head))
        published = rounds.aggregate(state, rounds.updates(state)).state.published
        write_adapter(tmp_path / entry.name, published)
        base = LlamaForSequenceClassification(config)
        model = PeftModel.from_pretrained(base, tmp_path / entry.name)
        for name, factors in published.modules.items():
            layer = model.base_model.model.get_submodule(name)
            found = layer.get_delta_weight("default").double().numpy()
            assert np.abs(found - factors.product()).max() < 1e-6
