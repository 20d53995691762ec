"""What a training gave becomes what callers use, in one transaction."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from intarsia_continual.descriptors.base import Descriptor
from sqlalchemy import Connection, select

from intarsia_platform.groups.admitted import Admission
from intarsia_platform.groups.deletion import Closure, delete_rows
from intarsia_platform.groups.pending import Change
from intarsia_platform.groups.rows import Group, GroupSettings
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.sources import GroupSources
from intarsia_platform.groups.store import insert_admission, insert_group, new_group
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.lineage import Relation, link, record_artefact
from intarsia_platform.registry.tables import AdapterTable


@dataclass(frozen=True, kw_only=True)
class TrainedGroup:
    """A trained group that nobody sees yet.

    Args:
        settings: How it was trained; nothing in it is left to be chosen.
        sources: What it was trained on.
        admission: Its adapter, checked.
        descriptor: What its texts are like.
    """

    settings: GroupSettings
    sources: GroupSources
    admission: Admission
    descriptor: Descriptor


def refuse_taken(connection: Connection, name: str) -> None:
    """Refuse the name of an adapter that is there, be it a group's or not.

    Args:
        connection: An open transaction.
        name: The name of a group to be.

    Raises:
        InputError: If it is taken.
    """
    taken = select(AdapterTable.digest).where(AdapterTable.name == name)
    if connection.execute(taken).first() is not None:
        raise InputError(
            "group name", f"{name} is taken", "choose another, or update or remove that one"
        )


def publish(
    connection: Connection,
    change: Change,
    trained: TrainedGroup,
    *,
    key: SigningKey,
    before: Closure | None,
) -> Group:
    """Sign a trained group, put its blobs and write its rows in the place of the old ones.

    The lineage it writes: the adapter was trained on the records, or on each client's, and
    continues the base; the descriptor was fitted on them too, and is published from the adapter,
    with which it leaves.

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
    admission, sources = trained.admission, trained.sources
    version, bundle = admission.version, admission.signed(key, change.work())
    descriptor = trained.descriptor.to_bytes()
    group = new_group(
        version,
        settings=trained.settings,
        sources=sources,
        descriptor_digest=bytes_digest(descriptor),
        before=before.group if before else None,
    )
    blobs = (*admission.blobs, bundle, sources.data, descriptor)
    # Rows that contradict others are refused before anything else is written.
    if before is not None:
        delete_rows(connection, before)
        bump(connection)
    record_artefact(connection, group.base_digest, "base")
    for shard, owner in sources.shards.items():
        record_artefact(connection, shard, "shard", size=sources.size, details={"client": owner})
    insert_admission(connection, admission, bytes_digest(bundle))
    record_artefact(
        connection,
        group.descriptor_digest,
        "descriptor",
        size=len(descriptor),
        details={"name": group.name},
    )
    fitted_on: dict[str, Relation] = dict.fromkeys(sources.shards, "trained-on")
    link(
        connection,
        group.descriptor_digest,
        {**fitted_on, group.adapter_digest: "published-from"},
    )
    insert_group(connection, group)
    change.note([*map(bytes_digest, blobs), *(before.blobs if before else ())])
    change.put(*blobs)
    return group
