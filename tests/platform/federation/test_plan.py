"""Who is asked, at which rank, and that a seed decides it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from intarsia_aggregators.catalog import find_method
from intarsia_client.assignment import TrainingParameters
from intarsia_client.errors import InputError
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.planning.client_plan import ClientPlan

PLAN = FederationPlan(
    run="run-1",
    rounds=5,
    seed=0,
    base="base",
    base_digest="sha256:base",
    task="causal-lm",
    target_modules={"q": (64, 64), "v": (32, 64)},
    ranks=(4, 8, 16),
    names={1: "a", 2: "b", 3: "c", 4: "d"},
)


def test_ranks_go_round_in_the_order_of_the_nodes():
    assigned = PLAN.assignments(1, [4, 2, 3, 1], "sha256:start")
    assert {one.client: one.rank for one in assigned.values()} == {"a": 4, "b": 8, "c": 16, "d": 4}
    assert all(one.scaling == 2.0 for one in assigned.values())
    assert list(assigned) == [1, 2, 3, 4]


def test_ranks_follow_the_names_whatever_the_node_identifiers():
    first = replace(PLAN, names={10: "a", 20: "b", 30: "c"})
    other = replace(PLAN, names={99: "a", 5: "b", 1: "c"}, fraction=1.0)
    ranks = [
        {one.client: one.rank for one in plan.assignments(1, list(plan.names), "s").values()}
        for plan in (first, other)
    ]
    assert ranks[0] == ranks[1] == {"a": 4, "b": 8, "c": 16}


def test_a_client_keeps_its_rank_whoever_else_is_sampled():
    some = replace(PLAN, fraction=0.5)
    ranks = {}
    for number in range(1, 20):
        for node, one in some.assignments(number, [1, 2, 3, 4], "s").items():
            assert ranks.setdefault(node, one.rank) == one.rank
    assert set(ranks) == {1, 2, 3, 4}


def test_sampling_is_uniform_repeatable_and_follows_the_seed():
    some = replace(PLAN, fraction=0.25, names={})
    nodes = list(range(40))
    counts = Counter(node for number in range(400) for node in some.sample(number, nodes))
    assert sum(counts.values()) == 400 * 10
    assert min(counts.values()) > 60
    assert max(counts.values()) < 145
    assert some.sample(7, nodes) == some.sample(7, nodes[::-1])
    assert some.sample(7, nodes) != replace(some, seed=1).sample(7, nodes)
    assert len(replace(PLAN, fraction=0.001).sample(1, nodes)) == 1


def test_nonces_differ_between_clients_rounds_and_runs():
    plans = [PLAN, replace(PLAN, run="run-2"), replace(PLAN, seed=1)]
    nonces = [
        one.nonce
        for plan in plans
        for number in (1, 2)
        for one in plan.assignments(number, [1, 2, 3], "s").values()
    ]
    assert len(set(nonces)) == len(nonces) == 18


def test_an_assignment_survives_its_journey():
    one = PLAN.assignment(2, 1, 0, "sha256:start")
    assert type(one).from_json(one.to_json()) == one


def test_a_rank_that_a_layer_cannot_hold_is_refused_with_the_largest_that_fits():
    with pytest.raises(InputError, match=r"rank for v \(64 to 32\): 48; choose at most 32"):
        replace(PLAN, ranks=(4, 48)).check()
    with pytest.raises(InputError, match=r"lora\.ranks"):
        replace(PLAN, ranks=()).check()


def planned(client: str, rank: int, *modules: str, note: str = "") -> ClientPlan:
    return ClientPlan(
        client=client, rank=rank, target_modules=modules, energy=0.1, memory_bytes=1, flops=1,
        bytes_up=1, bytes_down=1, note=note,
    )  # fmt: skip


def test_planned_clients_train_what_was_planned():
    some = replace(
        PLAN, clients={"a": planned("a", 64, "q"), "b": planned("b", 0, note="b: too small")}
    )
    some.check()
    assigned = {one.client: one for one in some.assignments(1, [1, 2, 3], "s").values()}
    assert (assigned["a"].rank, assigned["a"].target_modules) == (64, ("q",))
    assert assigned["a"].scaling == 2.0
    assert some.part("b", 1) == (0, ())
    # Whom nothing fits, and who came after the plan, get the least that the others would.
    for name in ("b", "c"):
        assert (assigned[name].rank, assigned[name].target_modules) == (4, ("q", "v"))
    assert PLAN.part("b", 1) == (8, ("q", "v"))


def test_a_planned_rank_that_a_module_cannot_hold_is_refused():
    with pytest.raises(InputError, match="v"):
        replace(PLAN, clients={"a": planned("a", 64, "q", "v")}).check()


def test_a_sampled_start_is_drawn_from_as_many_directions_as_the_largest_rank():
    plan = replace(PLAN, start="sampled").using(find_method("ledger"))
    assert plan.assignment(1, 1, 0, "sha256:start").sampled_from == 16
    plan = PLAN.using(find_method("ledger"))
    assert plan.start == "residual"
    assert plan.assignment(1, 1, 0, "sha256:start").sampled_from == 0


@pytest.mark.parametrize("start", ["fresh", "sampled"])
def test_moments_are_not_kept_of_directions_that_change_every_round(start):
    plan = replace(PLAN, start=start, training=TrainingParameters(keep_optimizer=True))
    with pytest.raises(InputError, match=rf"train\.keep_optimizer: true; a {start} start"):
        plan.using(find_method("ledger"))
