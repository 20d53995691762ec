"""Ranks planned from what clients have, in federations that run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.home import Home
from intarsia_platform.results import SimulationResult
from intarsia_platform.simulation.preparation import prepare_base, prepare_data, prepare_plan
from intarsia_platform.simulation.ranks import prepare_ranks
from intarsia_platform.simulation.run import simulate

# Lists are given in the order of the names: poor, rich, slow.
PLANNED = (
    "lora.ranks=auto",
    "lora.target_modules=all-linear",
    "federation.clients=3",
    "federation.rounds=2",
    "federation.broadcast_rank=8",
    "resources.memory_mb=[22, 400, 400]",
    "resources.gflops=[20, 20, 12]",
    "resources.upload_mbps=[1000]",
    "resources.download_mbps=[1000]",
)


@pytest.fixture(autouse=True)
def three_sites(write_records) -> None:
    """As many records at each of three sites."""
    write_records(dict.fromkeys(("poor", "rich", "slow"), 6))


def test_the_poor_train_less_and_the_run_ends(configure, tmp_path, observer):
    result = simulate(configure(*PLANNED), home=Home.open(tmp_path / "home"), observer=observer)
    (plan,) = result.plan
    assert observer.plans == [plan] and plan.round == 1 and plan.modules == 28
    poor, rich, slow = plan.clients
    assert (poor.client, rich.client, slow.client) == ("poor", "rich", "slow")
    assert len(poor.target_modules) < len(rich.target_modules) == 28
    assert poor.rank < rich.rank and poor.energy < slow.energy < rich.energy
    assert poor.memory_bytes <= 22e6 < rich.memory_bytes
    assert slow.seconds <= plan.round_seconds
    for one in result.rounds:
        assert {client.client: client.rank for client in one.clients} == {
            client.client: client.rank for client in plan.clients
        }
        assert one.accepted == 3 and not one.refused
        # What the cost model says of the bytes is enough, and not much more.
        assert one.bytes_up <= sum(client.bytes_up for client in plan.clients) < 1.1 * one.bytes_up
    down = sum(client.bytes_down for client in plan.clients)
    assert result.rounds[-1].bytes_down <= down < 1.1 * result.rounds[-1].bytes_down
    assert result.rounds[-1].test.perplexity < 0.9 * result.base.perplexity
    assert SimulationResult.from_mapping(json.loads(json.dumps(result.as_mapping()))) == result
    page = Path(result.report).read_text()
    assert "Planned from round 1" in page and f"{len(poor.target_modules)} of 28" in page


def test_a_client_that_fits_nothing_sits_out_and_is_told_what_it_needs(
    configure, tmp_path, observer
):
    configuration = configure(*PLANNED, "resources.memory_mb=[1, 400, 400]")
    result = simulate(configuration, home=Home.open(tmp_path / "home"), observer=observer)
    assert len(result.plan[0].notes) == 1
    for one in result.rounds:
        assert one.accepted == 2
        ((absent),) = one.sat_out
        assert absent.client == "poor" and absent.reason == result.plan[0].notes[0]
    assert "needs" in result.plan[0].notes[0] and "has 1" in result.plan[0].notes[0]


def test_nothing_runs_where_nobody_can_train(configure, tmp_path, observer):
    configuration = configure(*PLANNED, "resources.memory_mb=[1]")
    with pytest.raises(InputError, match=r'lora\.ranks: "auto"; no client can train; poor: '):
        simulate(configuration, home=Home.open(tmp_path / "home"), observer=observer)


@pytest.mark.parametrize(
    ("method", "remedy"),
    [("fedit", "give one rank to all clients of fedit"), ("fedsa-lora", "give one rank")],
)
def test_methods_of_one_rank_are_refused(configure, tmp_path, method, remedy):
    configuration = configure(*PLANNED, f"federation.method={method}")
    data = prepare_data(configuration, tmp_path)
    base = prepare_base(configuration, data.labels)
    with pytest.raises(InputError, match=remedy):
        prepare_ranks(configuration, prepare_plan(configuration, data, base), data, base)


def test_methods_that_need_every_module_get_every_module(configure, tmp_path):
    configuration = configure(
        *PLANNED, "federation.method=hetlora", "resources.memory_mb=[26, 400, 400]"
    )
    data = prepare_data(configuration, tmp_path)
    base = prepare_base(configuration, data.labels)
    plan, planning = prepare_ranks(
        configuration, prepare_plan(configuration, data, base), data, base
    )
    assert planning is not None
    ranks = {name: client.rank for name, client in plan.clients.items()}
    assert ranks["poor"] < ranks["rich"]
    assert all(len(client.target_modules) == 28 for client in plan.clients.values())
    plan.check()
    assert plan.largest_rank == max(ranks.values())


@pytest.mark.parametrize("method", ["ffa-lora", "flora", "flexlora"])
def test_bytes_are_enough_whatever_the_method_sends(method, configure, tmp_path, observer):
    configuration = configure(
        *PLANNED, f"federation.method={method}", "resources.memory_mb=[60, 400, 400]"
    )
    result = simulate(configuration, home=Home.open(tmp_path / "home"), observer=observer)
    (plan,) = result.plan
    for one in result.rounds:
        assert one.accepted == 3
        assert one.bytes_up <= sum(client.bytes_up for client in plan.clients) < 1.1 * one.bytes_up
        assert one.bytes_down <= sum(client.bytes_down for client in plan.clients)


def test_ranks_that_are_given_stay_given(configure, tmp_path):
    configuration = configure("resources.memory_mb=[1]", "federation.clients=3")
    data = prepare_data(configuration, tmp_path)
    base = prepare_base(configuration, data.labels)
    plan = prepare_plan(configuration, data, base)
    assert prepare_ranks(configuration, plan, data, base) == (plan, None)
    assert plan.clients == {}


def spectrum_of(result: SimulationResult) -> list[Mapping[str, tuple[str, ...]]]:
    return [{one.client: one.target_modules for one in plan.clients} for plan in result.plan]


def test_later_plans_follow_the_spectrum_and_survive_a_kill(
    configure, configuration_file, tmp_path, observer, kill_at
):
    overrides = (
        *PLANNED, "federation.rounds=3", "lora.replan_rounds=1",
        "resources.memory_mb=[20, 400, 400]",
    )  # fmt: skip
    whole = simulate(configure(*overrides), home=Home.open(tmp_path / "one"), observer=observer)
    assert [plan.round for plan in whole.plan] == [1, 2, 3]
    chosen = spectrum_of(whole)
    # Before round 1 all modules are worth the same; what was learned tells them apart.
    assert chosen[0]["poor"] != chosen[1]["poor"]
    kill_at("accepted", configuration_file, tmp_path / "two", *overrides)
    observer.plans.clear()
    resumed = simulate(
        configure(*overrides), home=Home.open(tmp_path / "two"), resume=True, observer=observer
    )
    assert resumed.adapter.digest == whole.adapter.digest
    assert resumed.plan == whole.plan
    assert [plan.round for plan in observer.plans] == [2, 3]
