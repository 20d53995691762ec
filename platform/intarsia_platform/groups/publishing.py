"""What a training gave becomes what callers use, in one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia_client.files import bytes_digest
from intarsia_client.records import Record
from intarsia_continual.descriptors.base import Descriptor
from sqlalchemy import Connection

from intarsia_platform.groups.admission import Admission
from intarsia_platform.groups.deletion import Closure, delete_rows
from intarsia_platform.groups.pending import Change
from intarsia_platform.groups.rows import Group, GroupSettings
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.store import (
    encode_records,
    insert_admission,
    insert_group,
    new_group,
)
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.lineage import link, record_artefact


@dataclass(frozen=True, kw_only=True)
class TrainedGroup:
    """A trained group that nobody sees yet.

    Args:
        settings: How it was trained; nothing in it is left to be chosen.
        records: What it was trained on.
        admission: Its adapter, checked.
        descriptor: What its texts are like.
    """

    settings: GroupSettings
    records: Sequence[Record]
    admission: Admission
    descriptor: Descriptor


def publish(
    connection: Connection,
    change: Change,
    trained: TrainedGroup,
    *,
    key: SigningKey,
    before: Closure | None,
) -> Group:
    """Sign a trained group, put its blobs and write its rows in the place of the old ones.

    The lineage it writes: the adapter was trained on the records and continues the base; the
    descriptor was fitted on the records too, and is published from the adapter, with which it
    leaves.

    Args:
        connection: The transaction of the change.
        change: The change.
        trained: What the training gave.
        key: The home's key.
        before: The version that it replaces and all that depends on that; None for a new group.

    Returns:
        The group.

    Raises:
        InputError: If another adapter has its name or its very bytes.
        StorageError: If the home cannot be written.
    """
    admission, data = trained.admission, encode_records(trained.records)
    version, bundle = admission.version, admission.signed(key, change.work())
    descriptor = trained.descriptor.to_bytes()
    group = new_group(
        version,
        settings=trained.settings,
        records=trained.records,
        descriptor_digest=bytes_digest(descriptor),
        before=before.group if before else None,
    )
    blobs = (*admission.blobs, bundle, data, descriptor)
    # Rows that contradict others are refused before anything else is written.
    if before is not None:
        delete_rows(connection, before)
        bump(connection)
    record_artefact(connection, group.base_digest, "base")
    record_artefact(
        connection, group.records_digest, "shard", size=len(data), details={"client": group.name}
    )
    insert_admission(connection, admission, bytes_digest(bundle))
    record_artefact(
        connection,
        group.descriptor_digest,
        "descriptor",
        size=len(descriptor),
        details={"name": group.name},
    )
    link(
        connection,
        group.descriptor_digest,
        {group.records_digest: "trained-on", group.adapter_digest: "published-from"},
    )
    insert_group(connection, group)
    change.note([*map(bytes_digest, blobs), *(before.blobs if before else ())])
    change.put(*blobs)
    return group
