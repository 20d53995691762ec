"""What has to go with a group's version: all that was made of it, in rows and in blobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from intarsia_client.errors import InputError
from sqlalchemy import Connection, delete, or_, select

from intarsia_platform.groups.rows import Group
from intarsia_platform.groups.store import find_group, find_groups
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.lineage import Lineage
from intarsia_platform.registry.tables import AdapterTable, ArtefactTable, LineageTable


@dataclass(frozen=True, kw_only=True)
class Closure:
    """A group's version and all that depends on it.

    Args:
        group: The group.
        artefacts: Digests of its adapter and of everything that was made of it, the group's own
            descriptor included.
        blobs: What the store may hold of them and of the group's records.
    """

    group: Group
    artefacts: frozenset[str]
    blobs: frozenset[str]

    @property
    def descendants(self) -> tuple[str, ...]:
        """What was made of the group's adapter beside its descriptor, sorted."""
        own = {self.group.adapter_digest, self.group.descriptor_digest}
        return tuple(sorted(self.artefacts - own))


def closure_of(database: Database, connection: Connection, group: Group) -> Closure:
    """Find all that a deletion of a group's version has to reach.

    Formal guarantee: every recorded artefact that depends on the group's adapter is in it, but for
    a descriptor that another group of the very same records has too.

    Args:
        database: The registry's database.
        connection: The transaction of the deletion; it has changed nothing of the lineage yet.
        group: The group.

    Returns:
        The closure.

    Raises:
        InputError: If another group's adapter was made of this one.
    """
    others = [one for one in find_groups(connection) if one.name != group.name]
    below = {row.digest for row in Lineage(database).descendants(group.adapter_digest)}
    artefacts = {group.adapter_digest, group.descriptor_digest} | below
    for other in others:
        if other.adapter_digest in artefacts:
            raise InputError(
                "group", f"{other.name} was made of {group.name}", "remove that one first"
            )
    artefacts -= {other.descriptor_digest for other in others}
    blobs = {*artefacts, group.records_digest, group.descriptor_digest}
    columns = (
        AdapterTable.tensors_digest,
        AdapterTable.configuration_digest,
        AdapterTable.manifest_digest,
    )
    for row in connection.execute(select(*columns).where(AdapterTable.digest.in_(artefacts))):
        blobs.update(row)
    signatures = select(AdapterRightsTable.signature_digest).where(
        AdapterRightsTable.digest.in_(artefacts)
    )
    blobs.update(one for one in connection.execute(signatures).scalars() if one is not None)
    return Closure(group=group, artefacts=frozenset(artefacts), blobs=frozenset(blobs))


def current_closure(database: Database, connection: Connection, group: Group) -> Closure:
    """A group's closure, unless the group is not what it was when it was looked at.

    Args:
        database: The registry's database.
        connection: As :func:`closure_of`.
        group: The group as it was.

    Returns:
        The closure.

    Raises:
        InputError: If somebody else changed the group, or as :func:`closure_of`.
    """
    if find_group(connection, group.name) != group:
        raise InputError(
            f"group {group.name}",
            "not what it was",
            "somebody else changed it meanwhile; run the command again",
        )
    return closure_of(database, connection, group)


def delete_rows(connection: Connection, closure: Closure) -> None:
    """Delete every row of a closure: group, rights, adapters, lineage and artefacts.

    The group's records, or those of its clients, leave the lineage where nothing else was made of
    them.

    Args:
        connection: An open transaction.
        closure: The closure.
    """
    gone, group = sorted(closure.artefacts), closure.group
    shards = _shards_of(connection, group)
    connection.execute(delete(GroupTable).where(GroupTable.name == group.name))
    connection.execute(delete(AdapterRightsTable).where(AdapterRightsTable.digest.in_(gone)))
    connection.execute(delete(AdapterTable).where(AdapterTable.digest.in_(gone)))
    steps = or_(LineageTable.child.in_(gone), LineageTable.parent.in_(gone))
    connection.execute(delete(LineageTable).where(steps))
    _delete_unused(connection, [*gone, *shards])


def _shards_of(connection: Connection, group: Group) -> list[str]:
    """What a group's adapter was trained on."""
    statement = (
        select(LineageTable.parent)
        .join(ArtefactTable, ArtefactTable.digest == LineageTable.parent)
        .where(LineageTable.child == group.adapter_digest, ArtefactTable.kind == "shard")
    )
    return sorted({group.records_digest, *connection.execute(statement).scalars()})


def _delete_unused(connection: Connection, digests: Iterable[str]) -> None:
    """Delete artefacts that no step of the lineage and no group names."""
    for digest in digests:
        touching = select(LineageTable.child).where(
            or_(LineageTable.parent == digest, LineageTable.child == digest)
        )
        named = select(GroupTable.name).where(
            or_(GroupTable.records_digest == digest, GroupTable.descriptor_digest == digest)
        )
        if all(connection.execute(query).first() is None for query in (touching, named)):
            connection.execute(delete(ArtefactTable).where(ArtefactTable.digest == digest))
