"""What travels in Flower messages, and nothing else.

To a client: a :class:`TrainAssignment` as JSON and the broadcast file, or its beginning, as one
byte array (:mod:`intarsia_client.transport`). Back: an :class:`UpdateManifest` as JSON and the
update's two files as byte arrays. So transport, cache and store see the same bytes and the same
digests, and nothing that arrives is decoded before its size was looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import InputError
from intarsia_client.peft_configuration import CONFIGURATION_FILE
from intarsia_client.peft_files import TENSORS_FILE, EncodedAdapter
from intarsia_client.wire import UpdateManifest

ADAPTER = "adapter"
BROADCAST = "broadcast"
ASSIGNMENT = "assignment"
MANIFEST = "manifest"
METRICS = "metrics"
ABSTENTION = "abstention"

_BYTES = "intarsia.bytes"


@dataclass(frozen=True, kw_only=True)
class ReceivedUpdate:
    """A client's reply before anyone believed it: raw bytes and their size.

    Args:
        manifest: Bytes said to be an update manifest.
        adapter: Bytes said to be the two adapter files.
    """

    manifest: bytes
    adapter: EncodedAdapter

    @property
    def size(self) -> int:
        """Bytes of the manifest and both files."""
        return len(self.manifest) + self.adapter.size


def adapter_record(adapter: EncodedAdapter) -> ArrayRecord:
    """Pack an encoded update as a Flower record of two byte arrays.

    Args:
        adapter: The bytes of the two files.

    Returns:
        The record.
    """
    return ArrayRecord(
        {
            CONFIGURATION_FILE: _byte_array(adapter.configuration),
            TENSORS_FILE: _byte_array(adapter.tensors),
        }
    )


def adapter_of(record: ArrayRecord) -> EncodedAdapter:
    """Unpack what :func:`adapter_record` packed.

    Raises:
        InputError: If the record holds something else.
    """
    if set(record) != {CONFIGURATION_FILE, TENSORS_FILE}:
        raise InputError(
            "adapter record", sorted(record), f"send {CONFIGURATION_FILE} and {TENSORS_FILE}"
        )
    for name, array in record.items():
        _check_bytes(f"adapter record {name}", array)
    return EncodedAdapter(
        configuration=record[CONFIGURATION_FILE].data, tensors=record[TENSORS_FILE].data
    )


def broadcast_record(data: bytes) -> ArrayRecord:
    """Pack a broadcast file, or its beginning, as a Flower record of one byte array.

    Args:
        data: The bytes.

    Returns:
        The record; every message that carries these bytes may share it.
    """
    return ArrayRecord({BROADCAST: _byte_array(data)})


def broadcast_of(record: ArrayRecord) -> bytes:
    """Unpack what :func:`broadcast_record` packed.

    Raises:
        InputError: If the record holds something else.
    """
    if set(record) != {BROADCAST}:
        raise InputError("broadcast record", sorted(record), f"send {BROADCAST} alone")
    _check_bytes(f"broadcast record {BROADCAST}", record[BROADCAST])
    return record[BROADCAST].data


def train_content(assignment: TrainAssignment, broadcast: ArrayRecord) -> RecordDict:
    """The content of a train or evaluate message.

    Args:
        assignment: The client's task; it names the digest of the record's bytes.
        broadcast: What :func:`broadcast_record` packed, shared between messages.

    Returns:
        The records.
    """
    return RecordDict(
        {
            ASSIGNMENT: ConfigRecord({"json": assignment.to_json().decode()}),
            BROADCAST: broadcast,
        }
    )


def read_train_content(content: RecordDict) -> tuple[TrainAssignment, bytes]:
    """Read what :func:`train_content` made.

    Args:
        content: A message's content.

    Returns:
        The assignment and the broadcast's bytes, neither decoded nor compared with its digest.

    Raises:
        InputError: If a part is missing or of another version.
    """
    assignment = content.config_records.get(ASSIGNMENT)
    broadcast = content.array_records.get(BROADCAST)
    if assignment is None or broadcast is None:
        raise InputError("message", sorted(content), "send an assignment and a broadcast")
    return TrainAssignment.from_json(str(assignment.get("json", ""))), broadcast_of(broadcast)


def update_content(
    manifest: UpdateManifest, adapter: EncodedAdapter, metrics: dict[str, float]
) -> RecordDict:
    """The content of a client's reply to a train message.

    Args:
        manifest: What the update says of itself.
        adapter: The trained adapter's bytes.
        metrics: Numbers for people that are not part of the update, such as seconds.

    Returns:
        The records.
    """
    return RecordDict(
        {
            MANIFEST: ConfigRecord({"json": manifest.to_json().decode()}),
            ADAPTER: adapter_record(adapter),
            METRICS: MetricRecord(dict(metrics)),
        }
    )


def abstention_content(reason: str) -> RecordDict:
    """The content of the reply of a client that sits a round out.

    Args:
        reason: Why, in one line.

    Returns:
        The records.
    """
    return RecordDict({ABSTENTION: ConfigRecord({"reason": reason})})


def abstention_reason(content: RecordDict) -> str | None:
    """Why a client sat the round out, or None where it did not."""
    record = content.config_records.get(ABSTENTION)
    return None if record is None else str(record.get("reason", ""))[:1000]


def read_update_content(reply: Message) -> ReceivedUpdate:
    """Take the raw bytes of an update from a reply.

    Args:
        reply: A reply to a train message, without error.

    Returns:
        The undecoded bytes.

    Raises:
        InputError: If the reply holds no update.
    """
    manifest = reply.content.config_records.get(MANIFEST)
    adapter = reply.content.array_records.get(ADAPTER)
    if manifest is None or adapter is None:
        raise InputError("reply", sorted(reply.content), "send a manifest and an adapter")
    return ReceivedUpdate(
        manifest=str(manifest.get("json", "")).encode(), adapter=adapter_of(adapter)
    )


def _check_bytes(thing: str, array: Array) -> None:
    if array.stype != _BYTES or array.dtype != "uint8" or array.shape != (len(array.data),):
        raise InputError(thing, array.stype, "send the file's bytes")


def _byte_array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype=_BYTES, data=data)
