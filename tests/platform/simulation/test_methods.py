"""Every method of the catalogue, and what a federation may send and keep, end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from intarsia_aggregators.catalog import CATALOG
from intarsia_client.errors import InputError
from intarsia_client.peft_files import read_adapter
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import RunJournal
from intarsia_platform.simulation.run import simulate

CLASSIFIES = ("model.task=sequence-classification", "data.partition=dirichlet:0.5")
INT8 = ("federation.upload=int8", "federation.download=int8")


@pytest.mark.parametrize("method", CATALOG, ids=lambda entry: entry.name)
def test_every_method_runs(method, configure, tmp_path, observer):
    overrides = ["federation.rounds=2", f"federation.method={method.name}"]
    overrides.append(f"lora.ranks={[2, 4] if method.mixed_ranks else [2]}")
    overrides.append("evaluation.clients=true")
    heads_alone = method.trained_factors(1) == "none"
    if heads_alone:
        overrides += CLASSIFIES
    result = simulate(configure(*overrides), home=Home.open(tmp_path / "home"), observer=observer)
    assert [one.accepted for one in result.rounds] == [4, 4]
    assert all(0.0 <= one.cut_energy < 1.0 for one in result.rounds)
    adapter = read_adapter(Path(result.adapter.path))
    learned = any(factors.b.any() for factors in adapter.modules.values())
    if method.shared_factors == "a":
        # Nothing is global but A: the server's test is the base's, each client has its own B.
        assert not learned and result.final == result.base
        assert all(one.federated.loss < one.base.loss for one in result.clients)
    elif heads_alone:
        assert not learned and result.final.loss < result.base.loss
    else:
        assert learned and result.final.loss < result.base.loss
        assert all(one.federated.loss < one.base.loss for one in result.clients)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["method=fedit"], "lora.ranks: [2, 4]; give one rank to all clients of fedit"),
        (["method=fedavg"], "federation.method: fedavg; it trains heads alone"),
        (["method=ffa-lora", "start=fresh"], "federation.start: fresh; ffa-lora begins a client's"),
        (["method=flora", "start=prefix"], "federation.start: prefix; flora begins a client's"),
    ],
)
def test_what_the_method_cannot_do_is_refused_by_key(
    overrides, line, configure, tmp_path, observer
):
    asked = configure(*(f"federation.{one}" for one in overrides))
    with pytest.raises(InputError) as caught:
        simulate(asked, home=Home.open(tmp_path / "home"), observer=observer)
    assert str(caught.value).startswith(line)


def test_moments_cannot_be_kept_of_directions_that_are_always_new(configure, tmp_path, observer):
    asked = configure("federation.start=fresh", "train.keep_optimizer=true")
    with pytest.raises(InputError, match=r"train\.keep_optimizer: true; a fresh start"):
        simulate(asked, home=Home.open(tmp_path / "home"), observer=observer)


@pytest.fixture
def simulated(configure, tmp_path, observer):
    """Runs a simulation in a home of its own; gives its result and its clients' bytes down."""

    def run(*overrides: str):
        home = Home.open(tmp_path / f"home-{len(list(tmp_path.iterdir()))}")
        # The server measures the last round alone.
        asked = configure("evaluation.rounds=9", *overrides)
        result = simulate(asked, home=home, observer=observer)
        with open_database(home.database_url) as database:
            journal = RunJournal(database, result.run)
            down = [
                {part.client: part.bytes_down for part in journal.participations(row.number)}
                for row in journal.published_rounds()
            ]
        return result, down

    return run


def test_a_prefix_client_is_sent_what_it_trains_and_no_more(simulated):
    bound = ("federation.broadcast_rank=8", "lora.ranks=[2, 8]")
    whole, all_down = simulated(*bound)
    prefix, down = simulated(*bound, "federation.start=prefix")
    assert [one.rank for one in whole.rounds] == [one.rank for one in prefix.rounds] == [8, 8, 8]
    # From the second round on there are 8 directions to send; site-0 and site-2 have rank 2.
    for number in (1, 2):
        poor, rich = down[number]["site-0"], down[number]["site-1"]
        assert poor < 0.4 * rich
        assert down[number]["site-2"] == poor and down[number]["site-3"] == rich
        # The same file for everyone; only the assignments differ by a letter or two.
        assert abs(all_down[number]["site-0"] - all_down[number]["site-1"]) < 10
        assert abs(all_down[number]["site-1"] - rich) < 100
    assert prefix.final.loss < prefix.base.loss


def test_int8_both_ways_is_a_quarter_and_close_to_float32(simulated):
    bound = "federation.broadcast_rank=8"
    plain, _ = simulated(bound)
    small, _ = simulated(bound, *INT8)
    assert small.final.loss == pytest.approx(plain.final.loss, rel=0.01)
    assert sum(one.bytes_up for one in small.rounds) < 0.5 * sum(
        one.bytes_up for one in plain.rounds
    )
    # From the second round on; the first adapter is almost nothing but its header.
    assert small.rounds[2].bytes_down < 0.4 * plain.rounds[2].bytes_down


def test_the_published_adapter_is_what_clients_decode(simulated):
    from intarsia_client.transport import decode_broadcast, encode_broadcast

    result, _ = simulated("federation.rounds=1", *INT8)
    adapter = read_adapter(Path(result.adapter.path))
    again = decode_broadcast(encode_broadcast(adapter, "int8"))
    for name, factors in adapter.modules.items():
        assert np.array_equal(again.modules[name].a, factors.a)
        assert np.array_equal(again.modules[name].b, factors.b)


def test_a_bounded_broadcast_holds_back_and_says_so(simulated):
    result, _ = simulated("federation.broadcast_rank=2", "federation.residual_rank=64")
    assert [one.rank for one in result.rounds] == [2, 2, 2]
    assert all(0.0 < one.residual_energy < 0.5 for one in result.rounds)
    assert all(one.cut_energy == 0.0 for one in result.rounds)
    cut, _ = simulated("federation.broadcast_rank=2", "federation.residual_rank=1")
    assert cut.rounds[-1].cut_energy > 0.0


def test_the_default_bound_is_twice_the_largest_rank(simulated):
    result, _ = simulated()
    assert result.rounds[-1].rank == 8
    assert result.rounds[-1].residual_energy > 0.0


def test_a_cap_on_examples_bounds_a_clients_weight(write_records, simulated):
    write_records({"site-0": 12, "site-1": 2, "site-2": 2, "site-3": 2})
    capped, _ = simulated("federation.rounds=1", "federation.max_examples=2")
    loose, _ = simulated("federation.rounds=1", "federation.max_examples=12")
    free, _ = simulated("federation.rounds=1")
    assert free.adapter.digest == loose.adapter.digest != capped.adapter.digest


@pytest.mark.slow
def test_both_grids_give_the_same_bytes_with_states_and_prefixes(simulated):
    settings = (
        "federation.start=prefix", "federation.broadcast_rank=3", "train.keep_optimizer=true",
        "evaluation.clients=true", *INT8,
    )  # fmt: skip
    here, down = simulated(*settings)
    ray, ray_down = simulated(*settings, "engine.grid=ray", "engine.workers=2")
    assert here.adapter.digest == ray.adapter.digest
    assert down == ray_down
    assert [one.federated for one in here.clients] == [one.federated for one in ray.clients]


@pytest.mark.slow
def test_a_clients_own_b_is_found_over_ray_too(simulated):
    personal = ("federation.method=fedsa-lora", "lora.ranks=[2]", "evaluation.clients=true")
    here, _ = simulated(*personal)
    ray, _ = simulated(*personal, "engine.grid=ray", "engine.workers=2")
    assert here.adapter.digest == ray.adapter.digest
    assert [one.federated for one in here.clients] == [one.federated for one in ray.clients]
    assert all(one.federated.loss < one.base.loss for one in ray.clients)
