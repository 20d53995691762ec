"""One client's records, wherever they lie: a part of a prepared file, or a site's own file.

A simulation prepares all clients' records once, in one file, and gives each virtual client a small
reference to its bytes. A production client reads its own file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_client.files import atomic_file, bytes_digest
from intarsia_client.records import Record, encode_record, read_records, records_digest

_OWN_FILE_KEYS = {"train": "data", "test": "test-data"}


@dataclass(frozen=True, kw_only=True)
class DataShard:
    """The records of one client.

    Args:
        client: The client's name.
        records: Its records, in order.
        digest: Their digest; see :func:`intarsia_client.records.records_digest`.
    """

    client: str
    records: Sequence[Record]
    digest: str


@dataclass(frozen=True, kw_only=True)
class ShardReference:
    """Where one client's records lie in a prepared file.

    Args:
        path: The file's absolute path.
        offset: Where its first record begins, in bytes.
        length: How long its records are together, in bytes.
        count: How many they are.
        digest: Digest of those bytes, which is that of the records.
    """

    path: str
    offset: int
    length: int
    count: int
    digest: str

    def as_node_config(self, prefix: str) -> dict[str, str | int]:
        """The reference as flat values for Flower's ``node_config``.

        Args:
            prefix: What the keys begin with, such as ``"train"`` for ``"train-path"``.

        Returns:
            Five values.
        """
        return {
            f"{prefix}-path": self.path,
            f"{prefix}-offset": self.offset,
            f"{prefix}-length": self.length,
            f"{prefix}-count": self.count,
            f"{prefix}-digest": self.digest,
        }

    @classmethod
    def from_node_config(cls, config: Mapping[str, object], prefix: str) -> ShardReference:
        """Read what :meth:`as_node_config` wrote, beside whatever else ``config`` holds.

        Args:
            config: Flower's ``node_config``.
            prefix: The same prefix.

        Returns:
            The reference.

        Raises:
            InputError: If a value is missing or of the wrong type; names the key.
        """
        return cls(
            path=_text(config, f"{prefix}-path"),
            offset=_count(config, f"{prefix}-offset"),
            length=_count(config, f"{prefix}-length"),
            count=_count(config, f"{prefix}-count"),
            digest=_text(config, f"{prefix}-digest"),
        )


def write_shards(path: Path, shards: Mapping[str, Sequence[Record]]) -> dict[str, ShardReference]:
    """Write all clients' records to one file of JSON lines, whole or not at all.

    Args:
        path: The file to write; an existing one is replaced.
        shards: From each client to its records.

    Returns:
        From each client to where its records lie, in the order of ``shards``.

    Raises:
        StorageError: If the file cannot be written.
    """
    references = {}
    offset = 0
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for client, records in shards.items():
            data = b"".join(map(encode_record, records))
            stream.write(data)
            references[client] = ShardReference(
                path=str(path.absolute()),
                offset=offset,
                length=len(data),
                count=len(records),
                digest=bytes_digest(data),
            )
            offset += len(data)
    return references


def load_shard(client: str, reference: ShardReference) -> DataShard:
    """Read one client's records from a prepared file; only its own bytes are read.

    Args:
        client: The client's name.
        reference: Where its records lie.

    Returns:
        The shard.

    Raises:
        StorageError: If the file cannot be read.
        IntegrityError: If the bytes are not those that were prepared.
    """
    thing = f"prepared records of {client}"
    try:
        with Path(reference.path).open("rb") as stream:
            stream.seek(reference.offset)
            data = stream.read(reference.length)
    except OSError as error:
        raise StorageError(
            thing, f"{reference.path} ({error.strerror})", "prepare the simulation again"
        ) from None
    lines = data.splitlines(keepends=False)
    if bytes_digest(data) != reference.digest or len(lines) != reference.count:
        raise IntegrityError(
            thing,
            f"{reference.path} is not what was prepared",
            "prepare the simulation again in a new home",
        )
    try:
        records = tuple(Record(**json.loads(line)) for line in lines)
    except (TypeError, ValueError) as error:
        raise IntegrityError(thing, error, "use the same version of Intarsia throughout") from None
    return DataShard(client=client, records=records, digest=reference.digest)


def shard_from_file(
    client: str, path: Path, *, text: str = "text", label: str | None = None
) -> DataShard:
    """Read a site's own file as one client's records.

    Args:
        client: The client's name.
        path: Any file that :func:`intarsia_client.records.read_records` reads.
        text: Name of the field with the text.
        label: Name of the field with the class, which every record must then have.

    Returns:
        The shard; its records name no client.

    Raises:
        InputError: As :func:`intarsia_client.records.read_records`.
    """
    records = tuple(
        read_records(
            path,
            text=text,
            label=label,
            client=None,
            require_label=label is not None,
            thing=f"data of {client}",
        )
    )
    return DataShard(client=client, records=records, digest=records_digest(records))


def shard_of(node_config: Mapping[str, object], which: str = "train") -> DataShard | None:
    """The records of the client that a node's configuration describes.

    A simulation's node has ``client`` and the values of :meth:`ShardReference.as_node_config`; a
    production node has ``client``, ``data`` (for the held-out part ``test-data``) and, where they
    differ from the defaults, ``text`` and ``label``.

    Args:
        node_config: Flower's ``node_config``.
        which: ``"train"`` or ``"test"``.

    Returns:
        The shard, or None where the node has no such records.

    Raises:
        InputError: If a value is missing or wrong, or the file is.
        StorageError: As :func:`load_shard`.
        IntegrityError: As :func:`load_shard`.
    """
    if f"{which}-path" in node_config:
        reference = ShardReference.from_node_config(node_config, which)
        return load_shard(_text(node_config, "client"), reference)
    key = _OWN_FILE_KEYS[which]
    if key not in node_config:
        return None
    return shard_from_file(
        _text(node_config, "client"),
        Path(_text(node_config, key)).expanduser(),
        text=_text(node_config, "text") if "text" in node_config else "text",
        label=_text(node_config, "label") if "label" in node_config else None,
    )


def _text(config: Mapping[str, object], key: str) -> str:
    value = config.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"node configuration {key}", repr(value), "set it to a string")
    return value


def _count(config: Mapping[str, object], key: str) -> int:
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"node configuration {key}", repr(value), "set it to a whole number")
    return value
