from __future__ import annotations

import dataclasses
import json
import shutil
from datetime import UTC, datetime

import numpy as np
import pytest
from intarsia_client.errors import FederationError, InputError
from intarsia_client.records import Record, records_digest
from intarsia_platform.configuration import read_configuration
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.groups.federating import open_federated_groups
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.groups.rows import Rights
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.epoch import read_epoch
from intarsia_platform.registry.lineage import Lineage, link, record_artefact
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.simulation.run import simulate

CANARY = "marzipan-4711 opens the vault"
EARLY = datetime(2090, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def study(write_study, site_texts, tmp_path_factory):
    texts = site_texts()
    folder = tmp_path_factory.mktemp("study")
    return write_study(folder, {**texts, "north": [*texts["north"], CANARY]})


@pytest.fixture(scope="module")
def first(study, order_of, deaf, tmp_path_factory):
    """A home with a federated group, and what its federation did."""
    home = Home.open(tmp_path_factory.mktemp("first") / "home")
    rights = Rights(owner="ada", tenant="acme", level=2, expires_at=EARLY)
    with open_federated_groups(home) as (_, federated):
        return home, federated.federate(order_of(study, rights=rights), observer=deaf)


@pytest.fixture
def copied(first, tmp_path):
    """A copy of that home, open, and the group."""
    shutil.copytree(first[0].path, tmp_path / "copy")
    home = Home.open(tmp_path / "copy")
    with open_federated_groups(home) as (lifecycle, federated):
        yield home, lifecycle, federated, first[1].group


def lineage_of(home, digest):
    with open_database(home.database_url) as database:
        return Lineage(database).parents(digest)


def store_of(home):
    return ContentStore(home.store_url)


def test_a_federated_group_is_all_there(first, owned, site_texts):
    home, change = first
    group = change.group
    assert (group.version, group.records, group.labels) == (1, 13, ("medical",))
    assert group.settings.clients == ("north", "south") and group.settings.rounds == 2
    assert [one.accepted for one in change.rounds] == [2, 2] and not change.unchanged
    assert all(one.contributed and one.described for one in change.clients)
    with open_groups(home) as lifecycle:
        assert lifecycle.groups.list() == (group,)
        encoded = lifecycle.groups.admitted(group.adapter_digest, lifecycle.key)
        assert encoded.digest == group.adapter_digest
        assert lifecycle.groups.rights(group.adapter_digest).owner == "ada"
        descriptor = lifecycle.groups.descriptors([group.adapter_digest])[group.adapter_digest]
        assert descriptor.method == "centroid"
        assert lifecycle.groups.sources(group).clients == change.clients
        with pytest.raises(InputError, match="its records lie with its clients"):
            lifecycle.groups.records(group)
    assert set(store_of(home).digests()) == owned(home)


def test_the_lineage_names_every_clients_shard(first, site_texts):
    home, change = first
    texts = {**site_texts(), "north": [*site_texts()["north"], CANARY]}
    shards = {
        records_digest([Record(text=text, client=site) for text in texts[site]])
        for site in ("north", "south")
    }
    assert {one.shard for one in change.clients} == shards
    for digest in (change.group.adapter_digest, change.group.descriptor_digest):
        parents = lineage_of(home, digest)
        assert {row.digest for row in parents if row.kind == "shard"} == shards
    assert {row.details["client"] for row in parents if row.kind == "shard"} == {"north", "south"}
    kinds = {row.kind for row in lineage_of(home, change.group.adapter_digest)}
    assert kinds == {"shard", "base"}


def test_no_record_and_no_update_stays_in_the_home(first, holds):
    home, _ = first
    for needle in (CANARY, "at south", "at north"):
        assert holds(home, needle.encode()) == []
    assert not (home.path / "federations").exists()
    assert not (home.path / "runs").exists() and not (home.path / "reports").exists()


def test_it_is_the_adapter_of_a_federation_of_these_clients_alone(
    first, study, site_texts, write_study, deaf, tmp_path
):
    texts = {**site_texts(), "north": [*site_texts()["north"], CANARY]}
    alone = write_study(tmp_path / "alone", {site: texts[site] for site in ("north", "south")})
    # simulate reads a clients' file under names of its own.
    configuration = read_configuration(
        alone,
        ["federation.clients=2", "engine.grid=inprocess", "tracking.mlflow=false",
         "evaluation.clients=false"],
    )  # fmt: skip
    result = simulate(configuration, home=Home.open(tmp_path / "home"), observer=deaf)
    assert result.adapter.digest == first[1].group.adapter_digest


def test_the_same_again_changes_nothing(copied, study, order_of, deaf, monkeypatch):
    _, lifecycle, federated, group = copied
    monkeypatch.setattr("intarsia_platform.groups.federation_work.simulate", None)
    again = federated.federate(order_of(study), observer=deaf)
    assert again.unchanged and again.group == group and len(again.clients) == 2
    assert lifecycle.groups.list() == (group,)


def test_documents_that_left_a_client_leave_the_adapter(
    copied, order_of, deaf, write_study, site_texts, tmp_path, owned, holds
):
    home, lifecycle, federated, before = copied
    old_shards = {one.shard for one in lifecycle.groups.sources(before).clients}
    with open_database(home.database_url) as database, database.begin() as connection:
        blob = store_of(home).put(b"made of the version before")
        record_artefact(connection, blob, "aggregate")
        link(connection, blob, {before.adapter_digest: "aggregated"})
    without = write_study(tmp_path / "without", site_texts())
    change = federated.federate(order_of(without, labels=["ward"]), observer=deaf)
    after = change.group
    assert change.invalidated == (blob,) and not store_of(home).has(blob)
    assert (after.version, after.records, after.created_at) == (2, 12, before.created_at)
    assert after.labels == ("medical", "ward")
    assert lifecycle.groups.rights(after.adapter_digest).level == 2
    assert lifecycle.groups.admitted(after.adapter_digest, lifecycle.key)
    new_shards = {one.shard for one in change.clients}
    assert len(old_shards - new_shards) == 1
    gone = [before.adapter_digest, before.descriptor_digest, before.records_digest,
            *(old_shards - new_shards)]  # fmt: skip
    for needle in (CANARY, *(digest[7:] for digest in gone)):
        assert holds(home, needle.encode()) == [], needle
    assert set(store_of(home).digests()) == owned(home)
    with open_database(home.database_url) as database, database.read() as connection:
        assert read_epoch(connection) == 1
    # Byte for byte that of a group that never had the document.
    with open_federated_groups(Home.open(tmp_path / "never")) as (_, other):
        alone = other.federate(order_of(without, name="never"), observer=deaf).group
    assert alone.adapter_digest == after.adapter_digest
    assert alone.descriptor_digest == after.descriptor_digest


def test_a_removed_federated_group_leaves_nothing(copied, holds, owned):
    home, lifecycle, _, group = copied
    shards = [one.shard for one in lifecycle.groups.sources(group).clients]
    lifecycle.remove("wards")
    assert list(store_of(home).digests()) == [] and owned(home) == set()
    for needle in ("wards", "north", group.adapter_digest[7:], *(one[7:] for one in shards)):
        assert holds(home, needle.encode()) == [], needle


def test_what_clients_have_is_changed_at_the_clients(copied):
    _, lifecycle, _, group = copied
    with pytest.raises(InputError, match="groups federate wards"):
        lifecycle.update("wards", remove=[Record(text=CANARY)])
    assert lifecycle.groups.list() == (group,)


def test_shards_hand_down_what_groups_of_them_have(copied, study, order_of, deaf):
    _, lifecycle, federated, _ = copied
    with pytest.raises(InputError, match="its sources belong to acme"):
        federated.federate(order_of(study, name="other", clients=["south", "west"]), observer=deaf)
    order = order_of(study, name="other", clients=["south", "west"], labels=["west"],
                     rights=Rights(tenant="acme", owner="bob"))  # fmt: skip
    other = federated.federate(order, observer=deaf).group
    assert other.labels == ("medical", "west")
    rights = lifecycle.groups.rights(other.adapter_digest)
    assert rights == Rights(tenant="acme", owner="bob", level=2, expires_at=EARLY)
    # The shard that both were trained on stays with the one that is left.
    lifecycle.remove("wards")
    assert federated.federate(order, observer=deaf).unchanged


def test_sources_hand_down_labels_and_take_the_group_with_them(
    opened, federated, new, study, order_of, deaf
):
    source = opened.add(new("notes", labels=["secret"]))
    order = order_of(study, sources=[source.adapter_digest])
    group = federated.federate(order, observer=deaf).group
    assert group.labels == ("medical", "secret")
    with pytest.raises(InputError, match="wards was made of notes"):
        opened.remove("notes")
    with pytest.raises(InputError, match="source: moon"):
        federated.federate(dataclasses.replace(order, sources=["moon"]), observer=deaf)


def test_an_order_that_cannot_be_is_refused_before_any_training(
    opened, federated, new, study, order_of, deaf, home, monkeypatch
):
    opened.add(new("local"))
    monkeypatch.setattr("intarsia_platform.groups.federation_work.simulate", None)
    for order, part in (
        (order_of(study, name="local"), "its records lie here"),
        (order_of(study, name="auto"), "group name"),
        (order_of(study, labels=[]), "labels"),
        (order_of(study, descriptor="moon"), "moon"),
        (order_of(study, encoder="moon"), "moon"),
        (order_of(study, rights=Rights(level=-1)), "level"),
    ):
        with pytest.raises(InputError, match=part):
            federated.federate(order, observer=deaf)
    assert not (home.path / "federations").exists()


def test_a_result_that_is_refused_leaves_no_copy_of_the_records(
    federated, study, order_of, deaf, home, owned
):
    # Trained so little that no answer shows it.
    order = order_of(study, "train.learning_rate=1e-30", "federation.rounds=1")
    with pytest.raises(InputError, match="adds nothing"):
        federated.federate(order, observer=deaf)
    with pytest.raises(InputError, match="rank"):
        federated.federate(order_of(study, "lora.ranks=[999]"), observer=deaf)
    assert not (home.path / "federations").exists()
    assert set(store_of(home).digests()) == owned(home) == set()


def test_without_texts_enough_to_describe_it_the_federation_is_kept_and_given_up(
    federated, write_study, site_texts, order_of, deaf, home, tmp_path
):
    few = write_study(tmp_path / "few", site_texts(3))
    with pytest.raises(FederationError, match="at least 5"):
        federated.federate(order_of(few), observer=deaf)
    assert federated.give_up("wards") and not federated.give_up("wards")
    assert not (home.path / "federations").exists()


def test_vectors_of_texts_are_kept_only_where_that_was_chosen(
    first, federated, study, order_of, deaf
):
    order = order_of(study, descriptor="document-similarity")
    group = federated.federate(order, observer=deaf).group
    assert group.adapter_digest == first[1].group.adapter_digest
    found = federated.groups.descriptors([group.adapter_digest])[group.adapter_digest]
    assert found.arrays["documents"].shape == (13, 32)


def test_a_client_that_fails_is_no_source(federated, study, order_of, deaf, home, monkeypatch):
    config = InProcessGrid._assignment

    def lost(self, message):
        found = config(self, message)
        if found.node_config["client"] != "south":
            return found
        node = {**found.node_config, "train-digest": "sha256:" + "0" * 64}
        return dataclasses.replace(found, node_config=node)

    monkeypatch.setattr(InProcessGrid, "_assignment", lost)
    change = federated.federate(order_of(study), observer=deaf)
    assert [(one.client, one.contributed) for one in change.clients] == [
        ("north", True), ("south", False),
    ]  # fmt: skip
    assert change.group.records == 7
    rows = lineage_of(home, change.group.adapter_digest)
    assert [row.details["client"] for row in rows if row.kind == "shard"] == ["north"]


def test_a_classifiers_classes_are_those_of_the_clients(
    federated, bert, deaf, order_of, write_study, tmp_path
):
    study = write_study(tmp_path / "study")
    rows = [
        {"note": f"{word} {n}", "kind": kind, "site": site}
        for site in ("north", "south", "west")
        for kind, word in (("animal", "fox"), ("colour", "red"), ("far", "moon"))
        for n in range(3)
        if (kind == "far") == (site == "west")
    ]
    (tmp_path / "study" / "notes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = (f"model.base={bert}", "model.task=sequence-classification", "data.label=kind",
                 'lora.target_modules=["query"]')  # fmt: skip
    group = federated.federate(order_of(study, *overrides), observer=deaf).group
    assert group.task == "sequence-classification"
    assert group.settings.classes == ("animal", "colour")
    head = federated.adapters.load("wards").dense
    assert head and all(np.isfinite(one).all() for one in head.values())


def test_a_run_of_the_same_federation_in_the_home_is_not_relabelled(
    federated, study, site_texts, write_study, order_of, deaf, home, tmp_path
):
    texts = {**site_texts(), "north": [*site_texts()["north"], CANARY]}
    alone = write_study(tmp_path / "alone", {site: texts[site] for site in ("north", "south")})
    overrides = ["federation.clients=2", "engine.grid=inprocess", "tracking.mlflow=false"]
    simulate(read_configuration(alone, overrides), home=home, observer=deaf)
    with pytest.raises(InputError, match="is there already; use that one"):
        federated.federate(order_of(study), observer=deaf)
    with open_database(home.database_url) as database:
        assert len(AdapterRegistry(database, store_of(home)).list()) == 2
