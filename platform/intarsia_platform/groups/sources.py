"""What a group was trained on: records that lie here, or shards that lie with clients.

Of the first the store keeps the records themselves, of the second only a list: who took part, how
many records each has and the digest of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from intarsia_client.errors import IntegrityError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.records import Record, encode_record

_FORMAT = "intarsia-federated-group-1"
_AGAIN = "federate the group again"


@dataclass(frozen=True, kw_only=True)
class GroupSources:
    """What a group was trained on.

    Args:
        data: The blob that the store keeps of it.
        records: How many records there are.
        shards: From each shard's digest to whose it is.
        size: Bytes of a shard that lies here; None where it never came.
    """

    data: bytes
    records: int
    shards: Mapping[str, str]
    size: int | None = None

    @property
    def digest(self) -> str:
        """Digest of the blob."""
        return bytes_digest(self.data)


@dataclass(frozen=True, kw_only=True)
class ClientShard:
    """One client's part in a federated group.

    Args:
        client: Its name.
        records: How many records it has.
        shard: Digest of them.
        contributed: Whether an update of it entered the adapter.
        described: Whether its texts entered the descriptor.
    """

    client: str
    records: int
    shard: str
    contributed: bool = True
    described: bool = False


@dataclass(frozen=True, kw_only=True)
class FederatedSources:
    """What a federated group was made of; the records themselves are not among it.

    Args:
        key: Digest of all that decided the result, by which equal work is known again.
        clients: Those that were named, by name.
        configuration: The federation's configuration.
    """

    key: str
    clients: tuple[ClientShard, ...]
    configuration: Mapping[str, Any]

    def as_sources(self) -> GroupSources:
        """As any group's, of those clients that entered the adapter or the descriptor."""
        entered = [one for one in self.clients if one.contributed or one.described]
        value = {
            "format": _FORMAT,
            "key": self.key,
            "clients": [vars(one) for one in self.clients],
            "configuration": dict(self.configuration),
        }
        return GroupSources(
            data=canonical_json(value),
            records=sum(one.records for one in entered),
            shards={one.shard: one.client for one in entered},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> FederatedSources:
        """Read the blob that :meth:`as_sources` made.

        Raises:
            IntegrityError: If it is not that.
        """
        try:
            value = json.loads(data)
            if value["format"] != _FORMAT:
                raise ValueError(f"not in the format {_FORMAT}")
            return cls(
                key=str(value["key"]),
                clients=tuple(ClientShard(**one) for one in value["clients"]),
                configuration=dict(value["configuration"]),
            )
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise IntegrityError("a group's list of shards", error, _AGAIN) from None


def sources_of(records: Sequence[Record], owner: str) -> GroupSources:
    """The sources of a group whose records lie here.

    Args:
        records: The records.
        owner: The group.

    Returns:
        The sources; their digest is the records'.
    """
    data = encode_records(records)
    digest = bytes_digest(data)
    return GroupSources(data=data, records=len(records), shards={digest: owner}, size=len(data))


def encode_records(records: Iterable[Record]) -> bytes:
    """Records as the store keeps them: JSON lines whose digest is the records' own."""
    return b"".join(map(encode_record, records))


def decode_records(data: bytes) -> tuple[Record, ...]:
    """Read what :func:`encode_records` wrote.

    Raises:
        IntegrityError: If it is not that.
    """
    try:
        return tuple(Record(**json.loads(line)) for line in data.split(b"\n")[:-1])
    except (TypeError, ValueError) as error:
        raise IntegrityError("a group's records", error, "add the group again") from None
