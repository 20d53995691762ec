from __future__ import annotations

from datetime import UTC, datetime

import pytest
from intarsia_client.errors import InputError, IntegrityError
from intarsia_platform.access.facts import AdapterFactsReader
from intarsia_platform.groups.desk import AdmissionDesk
from intarsia_platform.groups.rows import Rights
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.epoch import read_epoch
from intarsia_platform.registry.store import ContentStore

EARLY = datetime(2090, 1, 1, tzinfo=UTC)


@pytest.fixture
def database(home):
    with open_database(home.database_url) as database:
        yield database


@pytest.fixture
def store(home):
    return ContentStore(home.store_url)


@pytest.fixture
def desk(database, store, home):
    return AdmissionDesk(database, store, home)


@pytest.fixture
def groups(opened, new, records):
    """Two groups of different labels and rights."""
    first = opened.add(new("one", records=records[:3], labels=["a"],
                           rights=Rights(tenant="acme", level=4)))  # fmt: skip
    second = opened.add(new("two", records=records[3:6], labels=["b"],
                            rights=Rights(tenant="acme", expires_at=EARLY)))  # fmt: skip
    return first, second


def registered(database, store, opened, new, parents):
    """An adapter of the same base, as a federation over ``parents`` leaves it."""
    opened.add(new("source", settings={"seed": 9}))
    registry = AdapterRegistry(database, store)
    adapter = registry.load("source")
    opened.remove("source")
    return registry.register(
        registry.prepare(adapter, name="joint", labels=["own"]), parents=parents
    )


def test_a_federations_result_inherits_from_all_of_its_sources(
    desk, groups, opened, new, database, store, home, owned
):
    joint = registered(database, store, opened, new, [one.adapter_digest for one in groups])
    admitted = desk.admit("joint", rights=Rights(tenant="acme", level=1, owner="me"))
    assert admitted.labels == ("a", "b", "own") and admitted.digest == joint.digest
    facts = AdapterFactsReader(database).of(joint.digest)
    assert (facts.labels, facts.level, facts.expires_at) == (("a", "b", "own"), 4, EARLY)
    assert opened.groups.admitted(joint.digest, opened.key).digest == joint.digest
    assert set(store.digests()) == owned(home)
    with database.read() as connection:
        assert read_epoch(connection) == 2
    again = desk.admit("joint", labels=["more"], rights=Rights(tenant="acme"))
    assert again.labels == ("a", "b", "more", "own")
    assert set(store.digests()) == owned(home)


def test_records_hand_down_the_labels_of_their_group(desk, groups, opened, new, database, store):
    registered(database, store, opened, new, [])
    shards = [one.records_digest for one in groups]
    admitted = desk.admit("joint", sources=shards, rights=Rights(tenant="acme"))
    assert admitted.labels == ("a", "b", "own")


def test_without_sources_or_with_others_tenants_nothing_is_admitted(
    desk, groups, opened, new, database, store, home, owned
):
    registered(database, store, opened, new, [])
    with pytest.raises(InputError, match="lineage of joint"):
        desk.admit("joint")
    with pytest.raises(InputError, match="tenant"):
        desk.admit("joint", sources=[groups[0].adapter_digest], rights=Rights(tenant="other"))
    with pytest.raises(IntegrityError, match="not a known artefact"):
        desk.admit("joint", sources=["sha256:" + "0" * 64])
    with pytest.raises(InputError, match="admitted"):
        opened.groups.admitted(AdapterRegistry(database, store).get("joint").digest, opened.key)
    assert set(store.digests()) == owned(home)


def test_a_groups_own_adapter_is_not_relabelled(desk, groups):
    with pytest.raises(InputError, match="a group's own"):
        desk.admit("one", labels=["z"], rights=Rights(tenant="acme"))


def test_an_admitted_descendant_leaves_with_its_source(
    desk, groups, opened, new, database, store, home, owned
):
    joint = registered(database, store, opened, new, [groups[0].adapter_digest])
    desk.admit("joint", rights=Rights(tenant="acme"))
    assert opened.remove("one").invalidated == (joint.digest,)
    assert AdapterFactsReader(database).of(joint.digest) is None
    assert set(store.digests()) == owned(home)
