from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_platform.planning.client_plan import ClientPlan, RankPlan
from intarsia_platform.planning.costs import CostModel, Exchange, Workload
from intarsia_platform.planning.importance import Energy, expected_energy
from intarsia_platform.planning.planner import PlannedClient, plan_clients, ranks_for
from intarsia_platform.planning.profile import BaseProfile, LinearModule, Stage
from intarsia_platform.planning.resources import MEGABYTE, ClientResources

KINDS = {"q": (96, 96), "k": (24, 96), "up": (200, 96), "down": (96, 200)}


def base_profile(blocks: int = 3, kinds: Mapping[str, tuple[int, int]] = KINDS) -> BaseProfile:
    modules = {
        f"layers.{block}.{kind}": LinearModule(shape=shape, stage=1 + block, calls=1)
        for block in range(blocks)
        for kind, shape in kinds.items()
    }
    weights = 4 * sum(math.prod(one.shape) for one in modules.values())
    modules["head"] = LinearModule(shape=(500, 96), stage=blocks + 1, calls=1)
    block = Stage(bytes_per_token=4000.0, bytes_per_pair=0.0, attention_width=96)
    edge = Stage(bytes_per_token=2000.0, bytes_per_pair=0.0, attention_width=0)
    return BaseProfile(
        modules=modules,
        stages=(edge, *[block] * blocks, edge),
        weight_bytes=weights + 4 * 500 * 96,
        head_parameters=0,
        output_width=500,
    )


def cost_model(profile: BaseProfile | None = None, **exchange: object) -> CostModel:
    profile = profile or base_profile()
    return CostModel(
        profile=profile,
        modules=tuple(name for name in profile.modules if name != "head"),
        exchange=Exchange(**{"broadcast_rank": 16, **exchange}),  # type: ignore[arg-type]
    )


COSTS = cost_model()
EVEN = expected_energy({name: one.shape for name, one in COSTS.trainable.items()}, None)
WORK = Workload(tokens=50_000, length=32.0, batch_size=8, longest=64)
SMALL = cost_model(base_profile(2, {"q": (24, 24), "k": (8, 24), "up": (40, 24)}))


def uneven(costs: CostModel, seed: int) -> dict[str, Energy]:
    """A spectrum as training leaves it: modules of unequal weight, directions that fall."""
    generator = np.random.default_rng(seed)
    energy = {
        name: np.sort(generator.pareto(1.0, min(min(one.shape), 64)))[::-1] * generator.pareto(1.0)
        for name, one in costs.trainable.items()
    }
    total = sum(values.sum() for values in energy.values())
    return {name: values / total for name, values in energy.items()}


def planned(resources: ClientResources, **options: object) -> ClientPlan:
    clients = [PlannedClient(name="site", resources=resources, workload=WORK)]
    return plan_clients(clients, COSTS, EVEN, **options).clients[0]  # type: ignore[arg-type]


RESOURCES = st.builds(
    ClientResources,
    memory_mb=st.one_of(st.just(math.inf), st.floats(6.0, 24.0)),
    gflops=st.one_of(st.just(math.inf), st.floats(0.5, 200.0)),
    upload_mbps=st.one_of(st.just(math.inf), st.floats(0.05, 100.0)),
    download_mbps=st.one_of(st.just(math.inf), st.floats(0.05, 100.0)),
)


@settings(max_examples=60)
@given(resources=RESOURCES, round_seconds=st.floats(0.2, 60.0), seed=st.integers(0, 5))
def test_is_never_over_budget(resources: ClientResources, round_seconds: float, seed: int) -> None:
    clients = [PlannedClient(name="site", resources=resources, workload=WORK)]
    plan = plan_clients(clients, COSTS, uneven(COSTS, seed), round_seconds=round_seconds)
    (client,) = plan.clients
    if not client.fits:
        assert (client.rank, client.target_modules, client.energy) == (0, (), 0.0)
        assert client.note.startswith("site: ") and "\n" not in client.note
        return
    assert client.note == ""
    cost = COSTS.at(client.rank, WORK).of(client.target_modules, COSTS.stage_of)
    assert cost.memory_bytes <= resources.memory_mb * MEGABYTE
    assert cost.seconds(resources) <= round_seconds
    assert client.memory_bytes == math.ceil(cost.memory_bytes)
    assert client.rank in ranks_for([one.shape for one in COSTS.trainable.values()])
    assert all(client.rank <= min(COSTS.trainable[one].shape) for one in client.target_modules)


@settings(max_examples=40)
@given(
    resources=RESOURCES,
    more=st.tuples(*[st.sampled_from([1.0, 1.0, 1.3, 4.0])] * 4),
    round_seconds=st.floats(0.5, 30.0),
    seed=st.integers(0, 5),
    all_modules=st.booleans(),
)
def test_more_never_gives_less(
    resources: ClientResources,
    more: tuple[float, ...],
    round_seconds: float,
    seed: int,
    all_modules: bool,
) -> None:
    richer = ClientResources(
        memory_mb=resources.memory_mb * more[0],
        gflops=resources.gflops * more[1],
        upload_mbps=resources.upload_mbps * more[2],
        download_mbps=resources.download_mbps * more[3],
    )
    clients = [
        PlannedClient(name=name, resources=has, workload=WORK)
        for name, has in (("a", resources), ("b", richer))
    ]
    one, other = plan_clients(
        clients, COSTS, uneven(COSTS, seed), round_seconds=round_seconds, all_modules=all_modules
    ).clients
    # The solver keeps 1e-5 of each budget back, of the larger one more.
    assert other.energy >= one.energy - 1e-9 or more == (1.0,) * 4
    if all_modules:
        assert other.rank >= one.rank
        assert one.target_modules in ((), tuple(sorted(COSTS.trainable)))


@settings(max_examples=25)
@given(
    memory=st.floats(0.36, 0.55),
    gflops=st.floats(2.0, 8.0),
    seed=st.integers(0, 20),
)
def test_no_other_choice_holds_more(memory: float, gflops: float, seed: int) -> None:
    resources = ClientResources(memory_mb=memory, gflops=gflops)
    work = replace(WORK, tokens=500, batch_size=1, longest=8)
    energy = uneven(SMALL, seed)
    clients = [PlannedClient(name="site", resources=resources, workload=work)]
    plan = plan_clients(clients, SMALL, energy, round_seconds=0.05)
    held = plan.clients[0].energy * sum(values.sum() for values in energy.values())
    names, best = list(SMALL.trainable), 0.0
    for rank in ranks_for([one.shape for one in SMALL.trainable.values()]):
        # Alike clients share a solution, for which work is rounded up by a twentieth at most.
        costs = SMALL.at(rank, replace(work, tokens=525))
        for size in range(1, len(names) + 1):
            for chosen in itertools.combinations(names, size):
                if any(rank > min(SMALL.trainable[name].shape) for name in chosen):
                    continue
                cost = costs.of(chosen, SMALL.stage_of)
                fits = cost.memory_bytes <= memory * MEGABYTE * (1 - 2e-5)
                if fits and cost.seconds(resources) <= 0.05 * (1 - 2e-5):
                    worth = sum(float(energy[name][:rank].sum()) for name in chosen)
                    best = max(best, worth)
    assert held >= best - 1e-9


def test_is_the_same_twice_and_in_any_order() -> None:
    clients = [
        PlannedClient(
            name=f"site-{number}",
            resources=ClientResources(memory_mb=9.0 + number, gflops=5.0 * (1 + number % 3)),
            workload=replace(WORK, tokens=10_000 * (1 + number % 4)),
        )
        for number in range(8)
    ]
    energy = uneven(COSTS, 3)
    first = plan_clients(clients, COSTS, energy)
    assert plan_clients(clients[::-1], COSTS, energy) == first
    assert [client.client for client in first.clients] == sorted(one.name for one in clients)
    assert len({client.rank for client in first.clients}) > 1


def test_without_bounds_everything_is_trained_at_the_largest_rank() -> None:
    shapes = {"q": (96, 96), "up": (200, 96)}
    costs = cost_model(base_profile(3, shapes))
    energy = expected_energy({name: one.shape for name, one in costs.trainable.items()}, None)
    clients = [PlannedClient(name="site", resources=ClientResources(), workload=WORK)]
    plan = plan_clients(clients, costs, energy)
    (client,) = plan.clients
    assert (client.rank, len(client.target_modules), plan.modules) == (64, 6, 6)
    assert client.energy == pytest.approx(1.0)
    assert client.seconds is None and plan.round_seconds is None


def test_ranks_are_powers_of_two_up_to_the_sides() -> None:
    assert ranks_for([(24, 96), (40, 50)]) == (1, 2, 4, 8, 16, 32)
    assert ranks_for([(4096, 4096)]) == (1, 2, 4, 8, 16, 32, 64)
    assert ranks_for([(2, 300)]) == (1, 2)
    assert ranks_for([]) == ()


def test_poorer_clients_train_less_and_later_blocks() -> None:
    rich = planned(ClientResources(memory_mb=60.0))
    tight = planned(ClientResources(memory_mb=12.0))
    assert tight.rank <= rich.rank and len(tight.target_modules) < len(rich.target_modules)
    # Gradients need not reach the first blocks, which saves what these would keep.
    assert not any(name.startswith("layers.0") for name in tight.target_modules)


def test_energy_decides_where_budgets_allow_a_choice() -> None:
    clients = [PlannedClient(name="site", resources=ClientResources(memory_mb=12.0), workload=WORK)]
    worth = {name: values * (100.0 if ".k" in name else 1.0) for name, values in EVEN.items()}
    plan = plan_clients(clients, COSTS, worth)
    assert any(name.endswith(".k") for name in plan.clients[0].target_modules)
    assert plan.clients[0].energy > planned(ClientResources(memory_mb=12.0)).energy


def test_the_median_client_sets_the_time_where_none_is_given() -> None:
    clients = [
        PlannedClient(name=name, resources=ClientResources(gflops=gflops), workload=WORK)
        for name, gflops in (("a", 40.0), ("b", 20.0), ("c", 14.0), ("d", 0.01))
    ]
    plan = plan_clients(clients, COSTS, EVEN)
    alone = [
        plan_clients([one], COSTS, EVEN, round_seconds=1e9).clients[0].seconds for one in clients
    ]
    times = sorted(second for second in alone if second is not None)
    assert plan.round_seconds == pytest.approx((times[1] + times[2]) / 2, rel=0.06)
    a, b, c, d = plan.clients
    assert a.energy == b.energy > c.energy > d.energy > 0.0
    assert all(one.seconds is not None for one in plan.clients)
    assert c.seconds is not None and c.seconds <= plan.round_seconds
    # The slowest cannot keep up whatever it trains: it trains the least there is, and is named.
    assert (d.rank, len(d.target_modules)) == (1, 1)
    assert d.note.startswith("d: ") and plan.notes == (d.note,)


def test_says_what_a_client_without_memory_would_need() -> None:
    client = planned(ClientResources(memory_mb=0.2))
    assert not client.fits
    needed = int(client.note.split("needs ")[1].split(" MB")[0])
    assert "and has 0.2" in client.note and "resources.memory_mb" in client.note
    assert planned(ClientResources(memory_mb=float(needed))).fits
    assert not planned(ClientResources(memory_mb=needed - 1.0)).fits


def test_says_what_a_client_without_time_would_need() -> None:
    slow = ClientResources(gflops=0.5)
    client = planned(slow, round_seconds=3.0)
    assert not client.fits and "resources.round_seconds" in client.note
    needed = float(client.note.split("takes it ")[1].split(" s")[0])
    assert needed > 3.0
    assert planned(slow, round_seconds=1.06 * needed).fits


def test_all_modules_or_none() -> None:
    client = planned(ClientResources(memory_mb=16.0), all_modules=True)
    assert client.target_modules == tuple(sorted(COSTS.trainable))
    assert client.rank < planned(ClientResources(memory_mb=60.0), all_modules=True).rank <= 16
    refused = planned(ClientResources(memory_mb=12.0), all_modules=True)
    assert not refused.fits


def test_a_plan_comes_back_from_json() -> None:
    import json

    clients = [
        PlannedClient(name="site", resources=ClientResources(memory_mb=11.0), workload=WORK),
        PlannedClient(name="tiny", resources=ClientResources(memory_mb=0.1), workload=WORK),
    ]
    plan = plan_clients(clients, COSTS, EVEN, round_number=4)
    assert plan.round == 4
    assert RankPlan.from_mapping(json.loads(json.dumps(plan.as_mapping()))) == plan


def test_clients_alike_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from intarsia_platform.planning import planner

    solved = []
    milp = planner.milp

    def counted(*arguments: object, **options: object) -> object:
        solved.append(1)
        return milp(*arguments, **options)

    monkeypatch.setattr(planner, "milp", counted)
    clients = [
        PlannedClient(
            name=f"site-{number:05}",
            resources=ClientResources(memory_mb=(11.0, 13.0)[number % 2], gflops=10.0),
            workload=replace(WORK, tokens=10_000 + number),
        )
        for number in range(2000)
    ]
    plan = plan_clients(clients, COSTS, EVEN, round_seconds=20.0)
    assert len(plan.clients) == 2000 and all(client.fits for client in plan.clients)
    # Two kinds of clients, work within 20 % of each other in steps of 5 %, six ranks.
    assert 0 < len(solved) <= 2 * 5 * 6
