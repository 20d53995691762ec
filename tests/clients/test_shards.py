"""Prepared shards: one file for all clients, each reading its own bytes only."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.files import file_digest
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import (
    DataShard,
    ShardReference,
    load_shard,
    shard_from_file,
    shard_of,
    write_shards,
)

SHARDS = {
    "north": [
        Record(text="one", label="a", client="north"),
        Record(text="two\r\n\u2028", label="b"),
    ],
    "south": [Record(text="drei \u00fc", client="south")],
}

texts = st.text(st.characters(exclude_categories=["Cs"]))
shards_strategy = st.dictionaries(
    texts, st.lists(st.builds(Record, text=texts, label=st.none() | texts), max_size=4), max_size=4
)


@settings(deadline=None)
@given(shards_strategy)
def test_each_client_gets_its_records_back(
    tmp_path_factory: pytest.TempPathFactory, shards: dict[str, list[Record]]
) -> None:
    path = tmp_path_factory.mktemp("shards") / "train.jsonl"
    references = write_shards(path, shards)
    assert list(references) == list(shards)
    for client, records in shards.items():
        config = {"client": client, **references[client].as_node_config("train")}
        assert ShardReference.from_node_config(config, "train") == references[client]
        assert load_shard(client, references[client]) == DataShard(
            client=client, records=tuple(records), digest=records_digest(records)
        )


def test_the_file_is_plain_json_lines_grouped_by_client(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "train.jsonl"
    references = write_shards(path, SHARDS)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["text"] for line in lines] == ["one", "two\r\n\u2028", "drei \u00fc"]
    assert references["south"].offset == references["north"].length
    assert [entry.name for entry in path.parent.iterdir()] == ["train.jsonl"]


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    reference = write_shards(Path("train.jsonl"), SHARDS)["south"]
    monkeypatch.chdir("/")
    assert load_shard("south", reference).records == tuple(SHARDS["south"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "count"])
def test_damaged_bytes_are_noticed(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "train.jsonl"
    reference = write_shards(path, SHARDS)["south"]
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[reference.offset + 30] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-1])
    else:
        config = {**reference.as_node_config("train"), "train-count": 2}
        reference = ShardReference.from_node_config(config, "train")
    with pytest.raises(IntegrityError, match="prepared records of south"):
        load_shard("south", reference)


def test_a_shard_whose_lines_are_no_records_is_an_integrity_error(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"words": "a"}\n')
    good = write_shards(tmp_path / "other.jsonl", {"a": []})["a"]
    config = {
        **good.as_node_config("train"),
        "train-path": str(path),
        "train-length": path.stat().st_size,
        "train-count": 1,
        "train-digest": file_digest(path),
    }
    with pytest.raises(IntegrityError, match="same version of Intarsia"):
        load_shard("a", ShardReference.from_node_config(config, "train"))


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    reference = write_shards(tmp_path / "train.jsonl", SHARDS)["south"]
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(StorageError, match="prepared records of south"):
        load_shard("south", reference)


def test_only_the_clients_own_bytes_are_read(tmp_path: Path) -> None:
    """A client whose neighbour's bytes are damaged does not notice, since it never reads them."""
    path = tmp_path / "train.jsonl"
    references = write_shards(path, SHARDS)
    data = bytearray(path.read_bytes())
    data[: references["north"].length] = bytes(references["north"].length)
    path.write_bytes(data)
    assert load_shard("south", references["south"]).records == tuple(SHARDS["south"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train-path", 5),
        ("train-path", ""),
        ("train-offset", -1),
        ("train-offset", True),
        ("train-length", "12"),
        ("train-count", None),
        ("train-digest", None),
    ],
)
def test_a_wrong_node_configuration_names_the_key(tmp_path: Path, key: str, value: object) -> None:
    reference = write_shards(tmp_path / "train.jsonl", SHARDS)["south"]
    config: dict[str, object] = {**reference.as_node_config("train"), key: value}
    with pytest.raises(InputError, match=f"node configuration {key}: "):
        ShardReference.from_node_config(config, "train")


def test_a_simulated_node_reads_its_references(tmp_path: Path) -> None:
    train = write_shards(tmp_path / "train.jsonl", SHARDS)["south"]
    config: dict[str, object] = {"client": "south", **train.as_node_config("train")}
    shard = shard_of(config)
    assert shard is not None and shard.client == "south"
    assert shard.records == tuple(SHARDS["south"])
    assert shard_of(config, "test") is None


def test_a_production_node_reads_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("note,code,client\nhello,x,someone\n")
    (tmp_path / "held.jsonl").write_text('{"note": "held out", "code": 7}\n')
    config: dict[str, object] = {
        "client": "clinic",
        "data": str(tmp_path / "own.csv"),
        "test-data": str(tmp_path / "held.jsonl"),
        "text": "note",
        "label": "code",
    }
    shard = shard_of(config)
    assert shard == shard_from_file("clinic", tmp_path / "own.csv", text="note", label="code")
    assert shard is not None and shard.records == (Record(text="hello", label="x"),)
    held = shard_of(config, "test")
    assert held is not None and held.records == (Record(text="held out", label="7"),)
    assert shard_of({"client": "clinic"}) is None


def test_a_production_nodes_errors_name_the_client(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("text\nhello\n")
    config: dict[str, object] = {"client": "clinic", "data": str(tmp_path / "own.csv")}
    with pytest.raises(InputError, match=r"data of clinic: .*no field 'label'"):
        shard_of({**config, "label": "label"})
    with pytest.raises(InputError, match="node configuration client"):
        shard_of({"data": config["data"]})


def test_ten_thousand_clients_are_prepared_and_read_quickly(tmp_path: Path) -> None:
    shards = {
        f"client-{number:05}": [Record(text=f"{number} " + "word " * 40)] * 3
        for number in range(10_000)
    }
    begin = time.perf_counter()
    references = write_shards(tmp_path / "train.jsonl", shards)
    last = load_shard("client-09999", references["client-09999"])
    assert time.perf_counter() - begin < 10
    assert last.records[0].text.startswith("9999 ")
    one = len(json.dumps(references["client-05000"].as_node_config("train")))
    assert one < 1000


def test_one_clients_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    shards = {f"client-{n}": [Record(text="x" * 1_000_000)] for n in range(16)}
    shards["last"] = [Record(text="small")]
    reference = write_shards(tmp_path / "train.jsonl", shards)["last"]
    tracemalloc.start()
    load_shard("last", reference)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
