"""Whole federations on the embedded base: repeatable, durable, and deaf to bad updates."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from intarsia_client.base_model import load_base
from intarsia_client.errors import FederationError, InputError, StorageError
from intarsia_client.messages import adapter_of
from intarsia_client.peft_files import read_adapter
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import list_runs
from intarsia_platform.registry.lineage import Lineage
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.simulation import run
from intarsia_platform.simulation.preparation import (
    for_run,
    initial_adapter,
    prepare_base,
    prepare_data,
    prepare_plan,
    virtual_clients,
)
from intarsia_platform.simulation.run import simulate


def test_the_same_configuration_and_seed_give_the_same_adapter(configure, tmp_path, observer):
    first = simulate(configure(), home=Home.open(tmp_path / "one"), observer=observer)
    second = simulate(configure(), home=Home.open(tmp_path / "two"), observer=observer)
    other = simulate(
        configure("federation.seed=1"), home=Home.open(tmp_path / "two"), observer=observer
    )
    assert first.adapter.digest == second.adapter.digest != other.adapter.digest
    assert [r.test for r in first.rounds] == [r.test for r in second.rounds]
    assert len(first.rounds) == 3
    assert all(r.accepted == 4 and not r.refused for r in first.rounds)
    assert first.rounds[-1].test.perplexity < 0.8 * first.base.perplexity
    assert first.rounds[1].bytes_down > first.rounds[0].bytes_down > 0
    assert read_adapter(Path(first.adapter.path)).rank == first.adapter.rank
    assert Path(first.report).is_file()


def test_flowers_own_loop_gives_the_same_adapter_as_the_durable_one(configure, tmp_path, observer):
    configuration = configure()
    durable = simulate(configuration, home=Home.open(tmp_path / "home"), observer=observer)
    data = prepare_data(configuration, tmp_path / "data")
    base = prepare_base(configuration, data.labels)
    plan = for_run(prepare_plan(configuration, data, base), durable.run)
    strategy = LoraStrategy(plan)
    initial = initial_adapter(plan, base)
    with InProcessGrid(run.CLIENT_APP, clients=virtual_clients(plan, data)) as grid:
        from intarsia_client.messages import adapter_record

        result = strategy.start(grid=grid, initial_arrays=adapter_record(initial), num_rounds=3)
    assert adapter_of(result.arrays).digest == durable.adapter.digest
    assert result.train_metrics_clientapp[3]["accepted"] == 4
    assert result.evaluate_metrics_clientapp[3]["clients"] == 4


def test_lineage_leads_from_every_shard_to_the_version(configure, tmp_path, observer):
    home = Home.open(tmp_path / "home")
    result = simulate(configure("federation.rounds=2"), home=home, observer=observer)
    with open_database(home.database_url) as database:
        lineage = Lineage(database)
        kinds = [row.kind for row in lineage.ancestors(result.adapter.digest)]
        registry = AdapterRegistry(database, ContentStore(home.store_url))
        assert registry.get(result.adapter.digest).round == 2
    assert kinds.count("shard") == 4
    assert kinds.count("update") == 8
    assert kinds.count("base") == 1


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("nan", "not-finite"),
        ("shape", "wrong-shape"),
        ("stale", "stale-round"),
        ("base", "wrong-base"),
        ("crash", "client-error"),
    ],
)
def test_a_bad_update_is_named_and_the_round_goes_on(
    attack, reason, configure, tmp_path, observer, monkeypatch
):
    monkeypatch.setenv("HOSTILE", attack)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(run, "CLIENT_APP", "hostile_app:app")
    result = simulate(
        configure("federation.rounds=2"), home=Home.open(tmp_path / "home"), observer=observer
    )
    for one in result.rounds:
        assert one.accepted == 3
        assert [(r.client, r.reason) for r in one.refused] == [("site-1", reason)]
    adapter = read_adapter(Path(result.adapter.path))
    assert all(np.isfinite(f.product()).all() for f in adapter.modules.values())


def test_too_few_updates_end_the_run_and_a_resume_asks_the_failed_again(
    configure, tmp_path, observer, monkeypatch
):
    home = Home.open(tmp_path / "home")
    configuration = configure("federation.minimum_accepted=4")
    undisturbed = simulate(configuration, home=Home.open(tmp_path / "other"), observer=observer)
    monkeypatch.setenv("HOSTILE", "crash")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    with monkeypatch.context() as patch:
        patch.setattr(run, "CLIENT_APP", "hostile_app:app")
        with pytest.raises(FederationError, match=r"round 1: 3; at least 4.*disk is gone"):
            simulate(configuration, home=home, observer=observer)
    resumed = simulate(configuration, home=home, resume=True, observer=observer)
    assert resumed.adapter.digest == undisturbed.adapter.digest


def test_a_full_disk_is_one_line_and_the_run_goes_on_when_there_is_space(
    configure, tmp_path, observer, monkeypatch
):
    home = Home.open(tmp_path / "home")
    undisturbed = simulate(configure(), home=Home.open(tmp_path / "other"), observer=observer)
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            simulate(configure(), home=home, observer=observer)
    assert not [path for path in home.path.rglob(".*") if path.is_file()]
    with open_database(home.database_url) as database:
        assert list_runs(database)[-1].status == "failed"
    resumed = simulate(configure(), home=home, resume=True, observer=observer)
    assert resumed.adapter.digest == undisturbed.adapter.digest


def test_sampling_a_fraction_asks_only_those(configure, tmp_path, observer):
    result = simulate(
        configure("federation.fraction=0.5"), home=Home.open(tmp_path / "home"), observer=observer
    )
    assert [one.accepted for one in result.rounds] == [2, 2, 2]
    assert len({client for _, client, _ in observer.replies}) > 2


def test_own_adapters_and_federated_ones_are_measured_at_every_client(
    configure, tmp_path, observer
):
    result = simulate(
        configure("evaluation.clients=true", "evaluation.own_adapters=true"),
        home=Home.open(tmp_path / "home"),
        observer=observer,
    )
    assert [one.client for one in result.clients] == [f"site-{n}" for n in range(4)]
    for one in result.clients:
        assert one.own.perplexity < one.base.perplexity
        assert one.federated.perplexity < one.base.perplexity
        assert one.own.perplexity != one.federated.perplexity


def test_classification_learns_and_its_head_travels(configure, tmp_path, observer):
    result = simulate(
        configure(
            "model.task=sequence-classification",
            "data.partition=dirichlet:0.5",
            "federation.rounds=4",
        ),
        home=Home.open(tmp_path / "home"),
        observer=observer,
    )
    assert result.base.accuracy is not None
    assert result.rounds[-1].test.perplexity is None
    head = read_adapter(Path(result.adapter.path)).dense
    base = load_base(
        configure().model.base, task="sequence-classification", labels=("even", "odd"), seed=0
    )
    start = base.model.score.weight.detach().numpy()
    assert head["score.weight"].shape == start.shape
    assert not np.allclose(head["score.weight"], start)


def test_private_training_reports_its_epsilon_and_can_be_repeated(configure, tmp_path, observer):
    private = ("privacy.unit=example", "privacy.delta=1e-2", "privacy.epsilon=8.0")
    result = simulate(configure(*private), home=Home.open(tmp_path / "one"), observer=observer)
    epsilons = [one.epsilon_max for one in result.rounds]
    assert epsilons == sorted(epsilons)
    assert 7.0 < epsilons[-1] <= 8.01
    again = simulate(configure(*private), home=Home.open(tmp_path / "two"), observer=observer)
    assert again.adapter.digest == result.adapter.digest


def test_a_client_whose_budget_would_be_exceeded_sits_the_round_out(
    configure, write_records, tmp_path, observer
):
    # Two records are in every batch, so this site spends much faster than the others.
    write_records({"site-0": 2, "site-1": 12, "site-2": 12, "site-3": 12})
    result = simulate(
        configure(
            "privacy.unit=example",
            "privacy.delta=1e-2",
            "privacy.epsilon=4.0",
            "privacy.noise_multiplier=1.0",
        ),
        home=Home.open(tmp_path / "home"),
        observer=observer,
    )
    assert [one.accepted for one in result.rounds] == [4, 4, 3]
    (absent,) = result.rounds[2].sat_out
    assert absent.client == "site-0"
    assert "budget" in absent.reason
    assert result.rounds[2].epsilon_max < 4.0


def test_epsilon_that_no_noise_reaches_is_refused_before_training(configure, tmp_path, observer):
    home = Home.open(tmp_path / "home")
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        simulate(
            configure("privacy.unit=example", "privacy.epsilon=1e-9"), home=home, observer=observer
        )
    with open_database(home.database_url) as database:
        assert list_runs(database) == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.ranks=[4096]", r"rank for .*: 4096; choose at most"),
        ("model.base=nowhere/at-all", r"model\.base: nowhere/at-all"),
        ("lora.target_modules=nothing_proj", r"lora\.target_modules"),
        ("federation.clients=9", r"federation\.clients"),
        ("federation.method=fedsum", "fedsum"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(override, words, configure, tmp_path, observer):
    home = Home.open(tmp_path / "home")
    with pytest.raises(InputError, match=words) as caught:
        simulate(configure(override), home=home, observer=observer)
    assert "\n" not in str(caught.value)
    with open_database(home.database_url) as database:
        assert list_runs(database) == []


def test_a_label_that_training_lacks_is_refused(configure, configuration_file, tmp_path, observer):
    test = configuration_file.parent / "test.jsonl"
    test.write_text(test.read_text() + '{"text": "What is this?", "label": "prime"}\n')
    with pytest.raises(InputError, match=r"data\.test, record 9: prime"):
        simulate(
            configure("model.task=sequence-classification", "data.partition=iid"),
            home=Home.open(tmp_path / "home"),
            observer=observer,
        )


def test_nothing_to_resume_and_another_configuration_are_refused(configure, tmp_path, observer):
    home = Home.open(tmp_path / "home")
    with pytest.raises(InputError, match="--resume"):
        simulate(configure(), home=home, resume=True, observer=observer)
    with pytest.raises(FederationError):
        simulate(configure("federation.deadline_seconds=1e-9"), home=home, observer=observer)
    with pytest.raises(InputError, match="is not the one it was begun with"):
        simulate(configure(), home=home, resume=True, observer=observer)


def test_the_project_is_no_shadow_of_the_standard_library():
    import platform

    assert Path(platform.__file__).is_relative_to(Path(sys.base_prefix))
