from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import read_adapter
from intarsia_client.records import Record, records_digest
from intarsia_client.wire import Adapter
from intarsia_platform.groups.describing import describe_texts
from intarsia_platform.groups.lifecycle import GroupLifecycle, open_groups, without
from intarsia_platform.groups.rows import Rights
from intarsia_platform.groups.signing import verify
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.epoch import read_epoch
from intarsia_platform.registry.lineage import Lineage, link, record_artefact
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.registry.tables import AdapterTable
from sqlalchemy import update

CANARY = "the vault opens with marzipan-4711"


def epoch_of(home):
    with open_database(home.database_url) as database, database.read() as connection:
        return read_epoch(connection)


def store_of(home):
    return ContentStore(home.store_url)


def test_an_added_group_is_all_there(opened, new, home, records, owned):
    rights = Rights(
        owner="ada", tenant="acme", level=2, expires_at=datetime(2100, 1, 1, tzinfo=UTC)
    )
    group = opened.add(new(labels=["b", "a"], rights=rights))
    assert opened.groups.list() == (group,) and opened.groups.get("wards") == group
    assert (group.version, group.records, group.labels) == (1, 10, ("a", "b"))
    assert group.records_digest == records_digest(records)
    assert opened.groups.records(group) == records
    assert opened.groups.rights(group.adapter_digest) == rights
    assert group.settings.learning_rate > 0 and group.settings.encoder == "base"
    descriptor = opened.groups.descriptors([group.adapter_digest])[group.adapter_digest]
    assert descriptor.method == "document-similarity"
    assert bytes_digest(descriptor.to_bytes()) == group.descriptor_digest
    assert set(store_of(home).digests()) == owned(home)
    assert epoch_of(home) == 0


def test_the_lineage_goes_from_the_records_to_the_descriptor(opened, new, home):
    group = opened.add(new())
    with open_database(home.database_url) as database:
        lineage = Lineage(database)
        kinds = {row.digest: row.kind for row in lineage.descendants(group.records_digest)}
        above = {row.kind for row in lineage.ancestors(group.adapter_digest)}
    assert kinds == {group.adapter_digest: "version", group.descriptor_digest: "descriptor"}
    assert above == {"shard", "base"}


def test_an_export_can_be_checked_with_the_homes_public_key(opened, new, home, tmp_path):
    group = opened.add(new())
    with open_database(home.database_url) as database:
        registry = AdapterRegistry(database, store_of(home))
        registry.export("wards", tmp_path / "out")
    bundle = opened.groups.signature(group.adapter_digest)
    verify(tmp_path / "out", bundle, opened.key.public)
    assert read_adapter(tmp_path / "out").base == group.base
    (tmp_path / "out" / "intarsia.json").write_text("{}")
    with pytest.raises(IntegrityError):
        verify(tmp_path / "out", bundle, opened.key.public)


def test_what_an_engine_loads_has_the_homes_signature(opened, new, home):
    group = opened.add(new())
    encoded = opened.groups.admitted(group.adapter_digest, opened.key)
    assert encoded.digest == group.adapter_digest
    with open_database(home.database_url) as database, database.begin() as connection:
        # Whoever can write rows but has no key points at other bytes of the store.
        connection.execute(update(AdapterTable).values(tensors_digest=group.records_digest))
    with pytest.raises(IntegrityError, match="not what was signed"):
        opened.groups.admitted(group.adapter_digest, opened.key)
    with pytest.raises(InputError, match="admitted"):
        opened.groups.admitted("sha256:" + "0" * 64, opened.key)


def test_a_key_that_was_exchanged_is_noticed(opened, new):
    group = opened.add(new())
    opened.key.private.unlink()
    with pytest.raises(IntegrityError, match="another key"):
        opened.groups.admitted(group.adapter_digest, opened.key)


def test_a_version_that_goes_while_it_is_read_is_unknown_not_damaged(opened, new, monkeypatch):
    group = opened.add(new())
    read, key = ContentStore.get, opened.key

    def gone_first(self, digest):
        monkeypatch.setattr(ContentStore, "get", read)
        opened.remove("wards")
        return read(self, digest)

    monkeypatch.setattr(ContentStore, "get", gone_first)
    with pytest.raises(InputError, match="admitted adapter"):
        opened.groups.admitted(group.adapter_digest, key)
    group = opened.add(new())
    monkeypatch.setattr(ContentStore, "get", gone_first)
    assert opened.groups.descriptors([group.adapter_digest]) == {}


def test_names_that_are_taken_are_refused_before_any_training(opened, new, monkeypatch):
    opened.add(new())
    monkeypatch.setattr("intarsia_platform.groups.making.train_group", None)
    with pytest.raises(InputError, match="wards is taken"):
        opened.add(new(settings={"seed": 3}))
    with pytest.raises(InputError, match="group name"):
        opened.add(new("auto"))
    with pytest.raises(InputError, match="labels"):
        opened.add(new("other", labels=[]))


def test_the_same_records_under_another_name_do_not_share_an_adapter(opened, new, home, owned):
    first = opened.add(new())
    with pytest.raises(InputError, match="another seed"):
        opened.add(new("copy", labels=["public"]))
    assert set(store_of(home).digests()) == owned(home)
    copy = opened.add(new("copy", settings={"seed": 1}, labels=["public"]))
    assert copy.adapter_digest != first.adapter_digest
    assert copy.records_digest == first.records_digest
    # What both have stays with the one that is left.
    opened.remove("wards")
    assert opened.groups.list() == (copy,)
    assert len(opened.groups.records(copy)) == 10
    assert opened.groups.descriptors([copy.adapter_digest])
    assert set(store_of(home).digests()) == owned(home)
    opened.remove("copy")
    assert set(store_of(home).digests()) == owned(home) == set()


def test_an_update_gives_what_a_group_of_the_rest_alone_would_have_got(
    opened, new, home, records, owned, holds
):
    secret = Record(text=CANARY)
    before = opened.add(new(records=(*records[:5], secret, *records[5:])))
    bundle = json.loads(opened.groups.signature(before.adapter_digest))
    old_signature = bundle["dsseEnvelope"]["signatures"][0]["sig"]
    assert len(holds(home, CANARY.encode())) == 1
    change = opened.update("wards", remove=[secret, Record(text="never there")])
    after = change.group
    assert (change.added, change.removed, change.not_found) == (0, 1, 1)
    assert (after.version, after.records, after.created_at) == (2, 10, before.created_at)
    assert after.adapter_digest != before.adapter_digest
    assert opened.groups.list() == (after,)
    assert opened.groups.admitted(after.adapter_digest, opened.key)
    assert set(store_of(home).digests()) == owned(home)
    assert epoch_of(home) == 1
    gone = [before.adapter_digest, before.records_digest, before.descriptor_digest]
    for needle in (CANARY, old_signature, *(digest[7:] for digest in gone)):
        assert holds(home, needle.encode()) == [], needle
    with open_groups(_elsewhere(home)) as elsewhere:
        alone = elsewhere.add(new("another-name"))
    assert alone.adapter_digest == after.adapter_digest
    assert alone.descriptor_digest == after.descriptor_digest


def _elsewhere(home):
    from intarsia_platform.home import Home

    return Home.open(home.path.parent / "elsewhere")


def test_records_that_come_stand_behind_those_that_are_there(opened, new, records):
    opened.add(new(records=records[:6], labels=["x"]))
    change = opened.update("wards", add=records[6:])
    assert (change.added, change.removed, change.group.labels) == (4, 0, ("x",))
    assert opened.groups.records(change.group) == records
    both = opened.update("wards", add=[Record(text="new one")], remove=records[:2])
    assert (both.added, both.removed, both.group.version) == (1, 2, 3)
    assert [one.text for one in opened.groups.records(both.group)][-1] == "new one"


def test_an_update_that_changes_nothing_or_leaves_nothing_is_refused(opened, new, records):
    before = opened.add(new())
    with pytest.raises(InputError, match="nothing changes"):
        opened.update("wards", remove=[Record(text="never there")])
    with pytest.raises(InputError, match="groups remove wards"):
        opened.update("wards", remove=records)
    with pytest.raises(InputError, match="groups list"):
        opened.update("nobody", add=records)
    assert opened.groups.list() == (before,)


def test_two_updates_at_the_same_time_do_not_undo_each_other(opened, new, home, owned):
    opened.add(new())

    def meanwhile(*arguments):
        with open_groups(home) as other:
            other.update("wards", add=[Record(text="first")])
        return describe_texts(*arguments)

    with open_database(home.database_url) as database:
        slow = GroupLifecycle(database, store_of(home), home, describe=meanwhile)
        with pytest.raises(InputError, match="meanwhile"):
            slow.update("wards", add=[Record(text="second")])
    group = opened.groups.get("wards")
    assert group.version == 2
    assert opened.groups.records(group)[-1].text == "first"
    assert set(store_of(home).digests()) == owned(home)


def test_a_base_that_was_exchanged_is_not_trained_on(opened, new, llama, tmp_path):
    copy = Path(shutil.copytree(llama, tmp_path / "base"))
    opened.add(new(base=str(copy)))
    settings = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-5}))
    with pytest.raises(InputError, match="another model now"):
        opened.update("wards", add=[Record(text="more")])


def compose(home, lifecycle, *names):
    """A composition of groups' adapters, registered with its lineage."""
    with open_database(home.database_url) as database:
        registry = AdapterRegistry(database, store_of(home))
        parts = [registry.load(name) for name in names]
        first = parts[0]
        joined = Adapter(
            base=first.base,
            task=first.task,
            modules={
                name: replace(one, b=sum(part.modules[name].b for part in parts) / 2)
                for name, one in first.modules.items()
            },
        )
        version = registry.prepare(joined, name="joined", labels=["x"])
        digests = [lifecycle.groups.get(name).adapter_digest for name in names]
        registered = registry.register(version, parents=digests)
        blob = store_of(home).put(b"a cached composition")
        with database.begin() as connection:
            record_artefact(connection, blob, "aggregate")
            link(connection, blob, {registered.digest: "aggregated"})
    return registered.digest, blob


def test_what_was_made_of_a_version_leaves_with_it(opened, new, home, records, owned):
    opened.add(new())
    opened.add(new("others", records=records[:4]))
    joined, blob = compose(home, opened, "wards", "others")
    assert joined not in owned(home) and store_of(home).has(blob)
    change = opened.update("wards", remove=records[:1])
    assert change.invalidated == tuple(sorted([joined, blob]))
    with open_database(home.database_url) as database:
        assert {row.name for row in AdapterRegistry(database, store_of(home)).list()} == {
            "wards",
            "others",
        }
        assert Lineage(database).artefact(joined) is None
    assert not store_of(home).has(blob)
    assert set(store_of(home).digests()) == owned(home)


def test_a_removed_group_leaves_nothing(opened, new, home, holds, owned):
    group = opened.add(new("secret-ward", labels=["unheard-of"], records=[Record(text=CANARY)] * 3))
    joined, blob = compose(home, opened, "secret-ward")
    change = opened.remove("secret-ward")
    assert change.removed == 3 and set(change.invalidated) == {joined, blob}
    assert opened.groups.list() == () and epoch_of(home) == 1
    assert list(store_of(home).digests()) == [] and owned(home) == set()
    digests = (group.adapter_digest, group.records_digest, group.descriptor_digest, joined)
    for needle in (CANARY, "secret-ward", "unheard-of", *(digest[7:] for digest in digests)):
        assert holds(home, needle.encode()) == [], needle
    with pytest.raises(InputError, match="secret-ward; see"):
        opened.remove("secret-ward")
    again = opened.add(new("secret-ward", labels=["unheard-of"], records=[Record(text=CANARY)] * 3))
    assert again.adapter_digest == group.adapter_digest and again.version == 1


def test_an_error_in_the_middle_leaves_nothing_of_it(opened, new, home, owned, monkeypatch):
    before = opened.add(new())
    monkeypatch.setattr("intarsia_platform.groups.publishing.insert_group", _fails)
    with pytest.raises(ValueError, match="in the middle"):
        opened.update("wards", add=[Record(text="more")])
    with pytest.raises(ValueError, match="in the middle"):
        opened.add(new("others", settings={"seed": 1}))
    assert opened.groups.list() == (before,)
    assert opened.groups.admitted(before.adapter_digest, opened.key)
    assert set(store_of(home).digests()) == owned(home)
    assert list((home.path / "groups").iterdir()) == []


def _fails(*_):
    raise ValueError("in the middle")


def test_a_classifiers_classes_are_those_of_its_records(opened, new, bert):
    texts = {"animal": "fox", "colour": "red", "number": "one"}
    records = [Record(text=f"{text} {n}", label=name) for name, text in texts.items() for n in "ab"]
    group = opened.add(new(base=bert, records=records))
    assert group.task == "sequence-classification"
    assert group.settings.classes == ("animal", "colour", "number")
    assert opened.groups.admitted(group.adapter_digest, opened.key)
    # A record without a label leaves whatever its class was, and the class with its last record.
    leave = [Record(text="one a"), Record(text="one b", label="number")]
    after = opened.update("wards", remove=leave).group
    assert after.settings.classes == ("animal", "colour")
    kept = opened.add(new("fixed", base=bert, records=records, settings={
        "classes": ("number", "colour", "animal", "shape"), "own_classes": False}))  # fmt: skip
    assert kept.settings.classes == ("number", "colour", "animal", "shape")


def test_records_are_equal_by_text_and_by_label_where_one_is_given():
    records = [Record(text="a", label="x"), Record(text="a", label="y"), Record(text="b")]
    assert without(records, [Record(text="a", label="y")]) == [records[0], records[2]]
    assert without(records, [Record(text="a")]) == records[2:]
    assert without(records, [Record(text="b", label="x")]) == records
