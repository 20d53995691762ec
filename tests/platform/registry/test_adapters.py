"""The registry of adapters: in from PEFT directories, found by name or digest, out again, gone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import adapter_digest, read_adapter, write_adapter
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import read_epoch
from intarsia_platform.registry.journal import create_run
from intarsia_platform.registry.lineage import Lineage
from intarsia_platform.registry.rows import AdapterVersion
from intarsia_platform.registry.store import ContentStore
from sqlalchemy import insert, select

BASE = bytes_digest(b"base")


def adapter(seed: int = 0, ranks: tuple[int, ...] = (2, 3), base: str = "tiny") -> Adapter:
    generator = np.random.default_rng(seed)
    modules = {
        f"layers.{index}.proj": LowRankFactors(
            a=generator.standard_normal((rank, 5)).astype(np.float32),
            b=generator.standard_normal((4, rank)).astype(np.float32),
            scaling=2.0,
        )
        for index, rank in enumerate(ranks)
    }
    return Adapter(base=base, task="causal-lm", modules=modules)


@pytest.fixture
def store(tmp_path: Path) -> ContentStore:
    return ContentStore(str(tmp_path / "store"))


@pytest.fixture
def registry(database: Database, store: ContentStore) -> AdapterRegistry:
    return AdapterRegistry(database, store)


def imported(
    registry: AdapterRegistry, tmp_path: Path, seed: int = 0, name: str | None = None
) -> AdapterVersion:
    directory = tmp_path / f"adapter-{seed}"
    if not directory.exists():
        write_adapter(directory, adapter(seed))
    return registry.import_directory(directory, name=name)


def test_an_imported_adapter_is_described(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    assert version.digest == adapter_digest(adapter())
    assert (version.name, version.base, version.task, version.rank) == (
        "adapter-0",
        "tiny",
        "causal-lm",
        3,
    )
    assert (version.base_digest, version.run_id, version.round) == (None, None, None)
    assert registry.get(version.name) == version
    assert registry.list() == (version,)


def test_it_is_an_artefact_without_parents(
    registry: AdapterRegistry, database: Database, tmp_path: Path
) -> None:
    version = imported(registry, tmp_path)
    found = Lineage(database).artefact(version.digest)
    assert found is not None
    assert (found.kind, found.size) == ("imported", version.size)
    assert Lineage(database).parents(version.digest) == []


def test_importing_again_finds_the_first(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    assert imported(registry, tmp_path) == version
    assert imported(registry, tmp_path, name="other") == version
    write_adapter(tmp_path / "elsewhere", adapter(base="/another/place"))
    assert registry.import_directory(tmp_path / "elsewhere") == version
    assert registry.list() == (version,)


def test_a_name_belongs_to_one_adapter(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path, name="taken")
    with pytest.raises(InputError, match="taken is taken by another adapter"):
        imported(registry, tmp_path, seed=1, name="taken")
    assert registry.list() == (version,)


@pytest.mark.parametrize("name", ["", "a b", "-a", "a,b", "a=1", "sha256:abc", "x" * 101, "é"])
def test_a_name_is_a_word(registry: AdapterRegistry, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="adapter name"):
        registry.prepare(adapter(), name=name)


def test_a_folder_of_any_name_gives_a_name(registry: AdapterRegistry, tmp_path: Path) -> None:
    write_adapter(tmp_path / " mein Adapter, v2! ", adapter())
    assert registry.import_directory(tmp_path / " mein Adapter, v2! ").name == "mein-Adapter-v2"


def test_references(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path, name="dialogue")
    plain = version.digest.removeprefix("sha256:")
    for reference in ("dialogue", version.digest, plain, plain[:6], f"sha256:{plain[:6]}"):
        assert registry.get(reference) == version


@pytest.mark.parametrize("reference", ["", "nobody", "abc", "sha256:", "sha256:abc", "%", "_" * 6])
def test_unknown_references_name_the_remedy(
    registry: AdapterRegistry, tmp_path: Path, reference: str
) -> None:
    imported(registry, tmp_path)
    with pytest.raises(InputError, match="intarsia adapters list") as caught:
        registry.get(reference)
    assert caught.value.exit_code == 2
    assert caught.value.value == reference


def test_five_digits_are_too_few(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    with pytest.raises(InputError):
        registry.get(version.digest[7:12])


def test_an_ambiguous_digest_lists_them(registry: AdapterRegistry, database: Database) -> None:
    for tail in ("1", "2"):
        prepared = registry.prepare(adapter(), name=f"twin-{tail}")
        twin = {**vars(prepared), "digest": f"sha256:abcdef{tail * 58}"}
        registry.register(AdapterVersion(**twin))
    with pytest.raises(InputError, match=r"twin-1 .*, twin-2 .*write more"):
        registry.get("abcdef")
    assert registry.get("abcdef1").name == "twin-1"


def test_a_name_goes_before_a_digest(registry: AdapterRegistry, tmp_path: Path) -> None:
    first = imported(registry, tmp_path)
    second = imported(registry, tmp_path, seed=1, name=first.digest[7:13])
    assert registry.get(first.digest[7:13]) == second


def test_out_and_in_again(registry: AdapterRegistry, database: Database, tmp_path: Path) -> None:
    prepared = registry.prepare(
        adapter(), name="group/a", base_digest=BASE, labels=["secret", "public", "secret"]
    )
    version = registry.register(prepared)
    assert version.labels == ("public", "secret")
    assert registry.export("group/a", tmp_path / "out") == version
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "intarsia.json",
    }
    assert adapter_digest(read_adapter(tmp_path / "out")) == version.digest
    manifest = json.loads((tmp_path / "out" / "intarsia.json").read_text())
    assert (manifest["digest"], manifest["base_digest"]) == (version.digest, BASE)
    registry.remove(version.digest)
    again = registry.import_directory(tmp_path / "out")
    assert (again.digest, again.name, again.base_digest, again.labels) == (
        version.digest,
        "group/a",
        BASE,
        ("public", "secret"),
    )


def test_loading_gives_the_same_numbers(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    loaded = registry.load(version.digest)
    for name, factors in adapter().modules.items():
        np.testing.assert_array_equal(loaded.modules[name].product(), factors.product())


def test_an_export_replaces_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(InputError, match="output folder"):
        registry.export(version.name, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]


def test_an_export_to_nowhere_is_a_storage_error(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = imported(registry, tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        registry.export(version.name, tmp_path / "file" / "out")


def test_damaged_bytes_are_never_exported(
    registry: AdapterRegistry, store: ContentStore, tmp_path: Path
) -> None:
    version = imported(registry, tmp_path)
    hexadecimal = version.tensors_digest.removeprefix("sha256:")
    blob = Path(store.url) / "sha256" / hexadecimal[:2] / hexadecimal
    blob.write_bytes(blob.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=version.tensors_digest):
        registry.export(version.name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_another_adapter_is_refused(
    registry: AdapterRegistry, tmp_path: Path
) -> None:
    write_adapter(tmp_path / "mixed", adapter(), manifest={"digest": adapter_digest(adapter(1))})
    with pytest.raises(IntegrityError, match=r"intarsia\.json: speaks of"):
        registry.import_directory(tmp_path / "mixed")
    assert registry.list() == ()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"labels": "x"}', "\xff", "[" * 10**5, " " * ((1 << 20) + 1)]
)
def test_a_broken_manifest_is_one_line(
    registry: AdapterRegistry, tmp_path: Path, text: str
) -> None:
    write_adapter(tmp_path / "broken", adapter())
    (tmp_path / "broken" / "intarsia.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"broken/intarsia\.json") as caught:
        registry.import_directory(tmp_path / "broken")
    assert "\n" not in str(caught.value)


def test_what_is_no_adapter_leaves_nothing(
    registry: AdapterRegistry, store: ContentStore, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="nowhere"):
        registry.import_directory(tmp_path / "nowhere")
    assert registry.list() == ()
    assert list(store.digests()) == []


def test_removing_takes_the_bytes_and_keeps_the_lineage(
    registry: AdapterRegistry, database: Database, store: ContentStore, tmp_path: Path
) -> None:
    version = imported(registry, tmp_path)
    other = imported(registry, tmp_path, seed=1)
    assert registry.remove(version.name) == version
    assert registry.list() == (other,)
    assert not store.has(version.tensors_digest)
    assert store.has(other.tensors_digest)
    # Both have the same shapes, so the same adapter_config.json, which the other still needs.
    assert version.configuration_digest == other.configuration_digest
    assert registry.load(other.name).rank == 3
    assert Lineage(database).artefact(version.digest) is not None
    with pytest.raises(InputError):
        registry.get(version.name)
    registry.remove(other.name)
    assert list(store.digests()) == []


def test_parents_are_linked(registry: AdapterRegistry, database: Database, tmp_path: Path) -> None:
    parents = [imported(registry, tmp_path, seed).digest for seed in (1, 2)]
    merged = registry.register(registry.prepare(adapter(3), name="merged"), parents=parents)
    rows = Lineage(database).parents(merged.digest)
    assert {row.digest for row in rows} == set(parents)
    with pytest.raises(IntegrityError, match="not a known artefact"):
        registry.register(registry.prepare(adapter(4), name="x"), parents=[BASE])
    with pytest.raises(InputError):
        registry.get("x")


class TestOfARun:
    def test_publishing_registers_it(self, registry: AdapterRegistry, database: Database) -> None:
        journal = create_run(database, name="r", config={}, seed=0, rounds=1, base_digest=BASE)
        prepared = registry.prepare(
            adapter(), name="r/1", base_digest=BASE, run_id=journal.run_id, round=1
        )
        assert registry.list() == ()
        journal.plan_round(1, BASE, [])
        journal.mark_sent(1, {})
        journal.mark_collecting(1)
        journal.mark_aggregating(1)
        journal.publish(1, result_digest=prepared.digest, metrics={}, adapter=prepared)
        version = registry.get("r/1")
        assert version == prepared
        assert registry.load("r/1").rank == 3

    def test_what_an_unfinished_run_needs_is_not_removed(
        self, registry: AdapterRegistry, database: Database
    ) -> None:
        journal = create_run(database, name="r", config={}, seed=0, rounds=3, base_digest=BASE)
        start = BASE
        for number in (1, 2):
            prepared = registry.prepare(
                adapter(number), name=f"r/{number}", run_id=journal.run_id, round=number
            )
            journal.plan_round(number, start, [])
            journal.mark_sent(number, {})
            journal.mark_collecting(number)
            journal.mark_aggregating(number)
            start = prepared.digest
            journal.publish(number, result_digest=start, metrics={}, adapter=prepared)
        for name in ("r/1", "r/2"):
            with pytest.raises(InputError, match=f"{name} is where {journal.run_id} goes on"):
                registry.remove(name)
        journal.set_status("finished")
        for name in ("r/1", "r/2"):
            registry.remove(name)
        assert registry.list() == ()


def test_an_adapter_with_rights_leaves_with_them_and_raises_the_epoch(
    registry: AdapterRegistry, database: Database
) -> None:
    version = registry.register(registry.prepare(adapter(), name="one"))
    rights = {"digest": version.digest, "owner": "", "tenant": "", "level": 0}
    with database.begin() as connection:
        connection.execute(insert(AdapterRightsTable).values(**rights))
        before = read_epoch(connection)
    registry.remove("one")
    with database.read() as connection:
        assert read_epoch(connection) == before + 1
        assert connection.execute(select(AdapterRightsTable.digest)).first() is None


def test_the_adapter_of_a_group_leaves_with_its_group_only(
    registry: AdapterRegistry, database: Database
) -> None:
    version = registry.register(registry.prepare(adapter(), name="one"))
    now = datetime.now(UTC)
    group = {
        "name": "payroll", "base": "base", "base_digest": "sha256:b", "task": "causal-lm",
        "settings": {}, "labels": ["hr"], "version": 1, "records": 1, "records_digest": "sha256:r",
        "adapter_digest": version.digest, "descriptor_digest": "sha256:d", "created_at": now,
        "updated_at": now,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(GroupTable).values(**group))
    with pytest.raises(InputError, match="one is the adapter of group payroll; use `intarsia gr"):
        registry.remove("one")
    assert registry.get("one") == version
