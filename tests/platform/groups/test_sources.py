from __future__ import annotations

import json

import pytest
from intarsia_client.errors import IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_client.records import Record, records_digest
from intarsia_platform.groups.sources import (
    ClientShard,
    FederatedSources,
    decode_records,
    sources_of,
)

CLIENTS = (
    ClientShard(client="north", records=4, shard="sha256:" + "1" * 64, described=True),
    ClientShard(client="south", records=6, shard="sha256:" + "2" * 64),
    ClientShard(client="west", records=9, shard="sha256:" + "3" * 64, contributed=False),
)
FEDERATED = FederatedSources(
    key="sha256:" + "9" * 64, clients=CLIENTS, configuration={"lora": {"ranks": [1]}}
)


def test_records_that_lie_here_are_kept_as_they_are():
    records = (Record(text="a", label="x"), Record(text="b", client="north"))
    found = sources_of(records, "wards")
    assert decode_records(found.data) == records
    assert found.digest == records_digest(records) == bytes_digest(found.data)
    assert (found.records, found.size) == (2, len(found.data))
    assert found.shards == {found.digest: "wards"}


def test_of_clients_a_list_is_kept_of_those_that_entered():
    found = FEDERATED.as_sources()
    assert FederatedSources.from_bytes(found.data) == FEDERATED
    assert found.records == 10 and found.size is None
    assert found.shards == {one.shard: one.client for one in CLIENTS[:2]}


@pytest.mark.parametrize(
    "change",
    [{"format": "other"}, {"clients": [{"moon": 1}]}, {"clients": None}, {"configuration": 3}],
)
def test_a_damaged_list_is_noticed(change):
    value = {**json.loads(FEDERATED.as_sources().data), **change}
    with pytest.raises(IntegrityError, match="federate the group again"):
        FederatedSources.from_bytes(json.dumps(value).encode())
    for data in (b"", b"[]", b"\xff", b"[" * 100_000):
        with pytest.raises(IntegrityError):
            FederatedSources.from_bytes(data)
