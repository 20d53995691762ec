"""What travels in Flower messages, there and back, through Flower's own encoding."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import InputError
from intarsia_client.messages import (
    ADAPTER,
    ASSIGNMENT,
    BROADCAST,
    MANIFEST,
    adapter_of,
    adapter_record,
    broadcast_of,
    broadcast_record,
    read_train_content,
    read_update_content,
    train_content,
)
from intarsia_client.peft_files import EncodedAdapter

ENCODED = EncodedAdapter(configuration=b'{"r": 4}', tensors=b"\0\xff\x01")


def assigned() -> TrainAssignment:
    values: dict[str, Any] = {
        "run": "r", "round": 1, "rounds": 3, "client": "c", "nonce": "n", "seed": 5, "base": "b",
        "base_digest": "", "start_digest": "", "task": "causal-lm", "rank": 4, "lora_alpha": 8.0,
        "target_modules": ("q",), "start": "prefix", "upload": "int8",
        "broadcast_digest": "sha256:b",
    }  # fmt: skip
    return TrainAssignment(**values)


def sent(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


@pytest.mark.parametrize("data", [b"", b"\0", b"broadcast" * 1000])
def test_a_task_and_one_byte_array_come_as_they_went(data: bytes) -> None:
    record = broadcast_record(data)
    content = train_content(assigned(), record)
    assert content[BROADCAST] is record
    assert read_train_content(sent(content)) == (assigned(), data)


def test_an_update_comes_as_it_went() -> None:
    record = adapter_record(ENCODED)
    assert adapter_of(record) == ENCODED
    manifest = ConfigRecord({"json": "{}"})
    content = sent(RecordDict({MANIFEST: manifest, ADAPTER: record}))
    received = read_update_content(cast(Message, SimpleNamespace(content=content)))
    assert (received.manifest, received.adapter) == (b"{}", ENCODED)


@pytest.mark.parametrize("missing", [ASSIGNMENT, BROADCAST])
def test_a_message_that_lacks_a_part_is_refused(missing: str) -> None:
    content = train_content(assigned(), broadcast_record(b"data"))
    del content[missing]
    with pytest.raises(InputError, match="send an assignment and a broadcast"):
        read_train_content(content)


@pytest.mark.parametrize(
    "record",
    [
        ArrayRecord({}),
        adapter_record(ENCODED),
        ArrayRecord({BROADCAST: Array("uint8", (3,), "numpy.ndarray", b"abc")}),
        ArrayRecord({BROADCAST: Array("uint8", (4,), "intarsia.bytes", b"abc")}),
        ArrayRecord({BROADCAST: Array("int8", (3,), "intarsia.bytes", b"abc")}),
    ],
)
def test_a_record_of_something_else_is_refused(record: ArrayRecord) -> None:
    with pytest.raises(InputError, match=r"broadcast record.*; send"):
        broadcast_of(record)
