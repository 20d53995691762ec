"""Groups in the database and the store: what there is of them, and how their rows are written."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_configuration import CONFIGURATION_FILE
from intarsia_client.peft_files import TENSORS_FILE, EncodedAdapter
from intarsia_client.records import Record
from intarsia_continual.descriptors.base import Descriptor
from intarsia_continual.descriptors.catalog import read_descriptor
from sqlalchemy import Connection, delete, insert, select

from intarsia_platform.groups.admitted import Admission, Inheritance
from intarsia_platform.groups.rows import Group, GroupSettings, Rights
from intarsia_platform.groups.signing import SigningKey, verify_files
from intarsia_platform.groups.sources import FederatedSources, GroupSources, decode_records
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.adapters import insert_adapter
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.lineage import Lineage, link
from intarsia_platform.registry.manifest import MANIFEST_FILE
from intarsia_platform.registry.rows import AdapterVersion
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.registry.tables import AdapterTable, LineageTable


class Groups:
    """Reads groups; nothing in here changes one.

    Args:
        database: The registry's database.
        store: Where the bytes lie.
    """

    def __init__(self, database: Database, store: ContentStore) -> None:
        """Keep both."""
        self._database = database
        self._store = store

    def list(self) -> tuple[Group, ...]:
        """All groups, by name."""
        with self._database.read() as connection:
            return find_groups(connection)

    def get(self, name: str) -> Group:
        """One group.

        Args:
            name: Its name.

        Returns:
            The group.

        Raises:
            InputError: If there is none of that name.
        """
        with self._database.read() as connection:
            return find_group(connection, name)

    def rights(self, digest: str) -> Rights:
        """What policies may ask of an admitted adapter.

        Args:
            digest: The adapter.

        Returns:
            The rights.

        Raises:
            InputError: If no adapter of that digest was admitted.
        """
        with self._database.read() as connection:
            row = _rights_row(connection, digest)
        return Rights(
            owner=row["owner"],
            tenant=row["tenant"],
            level=row["level"],
            expires_at=row["expires_at"],
        )

    def records(self, group: Group) -> tuple[Record, ...]:
        """A group's records, in order.

        Args:
            group: The group.

        Returns:
            The records.

        Raises:
            InputError: If they lie with the clients of a federation.
            IntegrityError: If they are missing or damaged.
        """
        if group.settings.clients:
            raise federated(group.name)
        return decode_records(self._store.get(group.records_digest))

    def sources(self, group: Group) -> FederatedSources | None:
        """Who took part in a group's federation, and with what.

        Args:
            group: The group.

        Returns:
            The list of their shards; None for a group whose records lie here.

        Raises:
            IntegrityError: If it is missing or damaged.
        """
        if not group.settings.clients:
            return None
        return FederatedSources.from_bytes(self._store.get(group.records_digest))

    def descriptors(self, digests: Iterable[str]) -> dict[str, Descriptor]:
        """Descriptors of some adapters; those of others are not touched.

        Args:
            digests: The adapters that a caller may use.

        Returns:
            From each adapter that is a group's to its descriptor, by digest.

        Raises:
            IntegrityError: If one is missing or damaged.
        """
        wanted = set(digests)
        found: dict[str, Descriptor] = {}
        for group in self.list():
            if group.adapter_digest not in wanted:
                continue
            try:
                data = self._store.get(group.descriptor_digest)
            except IntegrityError:
                if group in self.list():
                    raise
                continue  # The group was changed between the two looks.
            found[group.adapter_digest] = read_descriptor(data)
        return dict(sorted(found.items()))

    def signature(self, digest: str) -> bytes:
        """An admitted adapter's signature, for whoever gets an export of it.

        Args:
            digest: The adapter.

        Returns:
            The Sigstore bundle, in JSON; not checked here.

        Raises:
            InputError: If no adapter of that digest was admitted.
            IntegrityError: If it is missing or damaged.
        """
        with self._database.read() as connection:
            place = _rights_row(connection, digest)["signature_digest"]
        if place is None:
            raise IntegrityError("signed adapter", digest, "admit it again; it has no signature")
        return self._store.get(place)

    def admitted(self, digest: str, key: SigningKey) -> EncodedAdapter:
        """An admitted adapter's two files, its signature checked; what an engine loads.

        Args:
            digest: The adapter.
            key: The home's key.

        Returns:
            The verified bytes.

        Raises:
            InputError: If no adapter of that digest was admitted.
            IntegrityError: If bytes are missing or altered, or the signature is not the home's.
        """
        try:
            return self._admitted(digest, key)
        except IntegrityError:
            # Where it was removed between the two looks, that is the reason.
            self.rights(digest)
            raise

    def _admitted(self, digest: str, key: SigningKey) -> EncodedAdapter:
        columns = (
            AdapterTable.configuration_digest,
            AdapterTable.tensors_digest,
            AdapterTable.manifest_digest,
        )
        bundle = self.signature(digest)
        with self._database.read() as connection:
            row = connection.execute(select(*columns).where(AdapterTable.digest == digest)).first()
        if row is None:
            raise _not_admitted(digest)
        configuration, tensors, manifest = row
        shown = json.dumps(json.loads(self._store.get(manifest)), indent=2, sort_keys=True)
        files = {
            CONFIGURATION_FILE: configuration,
            TENSORS_FILE: tensors,
            # As an exported folder shows it, since that is what is signed.
            MANIFEST_FILE: bytes_digest(shown.encode() + b"\n"),
        }
        verify_files(files, bundle, key.public)
        encoded = EncodedAdapter(
            configuration=self._store.get(configuration), tensors=self._store.get(tensors)
        )
        if encoded.digest != digest:
            raise IntegrityError("signed adapter", digest, f"its files are {encoded.digest}")
        return encoded


def find_groups(connection: Connection) -> tuple[Group, ...]:
    """All groups, by name, in the caller's transaction."""
    rows = connection.execute(select(GroupTable).order_by(GroupTable.name))
    return tuple(_group(row._asdict()) for row in rows)


def find_group(connection: Connection, name: str) -> Group:
    """One group, in the caller's transaction; raises as :meth:`Groups.get`."""
    row = connection.execute(select(GroupTable).where(GroupTable.name == name)).first()
    if row is None:
        raise InputError("group", name, "see `intarsia groups list`")
    return _group(row._asdict())


def insert_group(connection: Connection, group: Group) -> None:
    """Write a group's row; its adapter's row is there already.

    Args:
        connection: An open transaction.
        group: The group.
    """
    values = {**vars(group), "settings": group.settings.as_mapping(), "labels": list(group.labels)}
    connection.execute(insert(GroupTable).values(values))


def insert_admission(connection: Connection, admission: Admission, signature: str) -> None:
    """Write an admitted adapter's rows: itself, its lineage, its rights.

    Args:
        connection: An open transaction.
        admission: The admission; its blobs are in the store, its parents are known artefacts.
        signature: Digest of its signature, which is in the store too.

    Raises:
        InputError: If another adapter has its name, or these very files another name.
        IntegrityError: If a parent is not known.
    """
    version = admission.version
    registered = insert_adapter(connection, version)
    if registered is not version:
        raise InputError(
            "adapter",
            f"{version.name} comes out equal to {registered.name}, which is there already",
            "use that one, or train with another seed",
        )
    link(connection, version.digest, dict(admission.parents), circular="skip")
    write_rights(connection, version.digest, admission.rights, signature)


def write_rights(connection: Connection, digest: str, rights: Rights, signature: str) -> None:
    """Write what policies may ask of an adapter, in the place of what was written before.

    Args:
        connection: An open transaction.
        digest: The adapter.
        rights: Its rights.
        signature: Digest of its signature.
    """
    connection.execute(delete(AdapterRightsTable).where(AdapterRightsTable.digest == digest))
    row = {**dataclasses.asdict(rights), "digest": digest, "signature_digest": signature}
    connection.execute(insert(AdapterRightsTable).values(row))


def inherited_from(database: Database, parents: Iterable[str]) -> Inheritance:
    """What an adapter has from those it was made of, however far back.

    Args:
        database: The registry's database.
        parents: Digests of known artefacts.

    Returns:
        The inheritance: of adapters their own labels and rights, of records those of the groups'
        adapters that were trained on them.
    """
    lineage, parents = Lineage(database), list(parents)
    above = {row.digest for parent in parents for row in lineage.ancestors(parent)} | set(parents)
    with database.read() as connection:
        # Records hand down what the groups' adapters that were trained on them have.
        trained = select(LineageTable.child, LineageTable.parent).where(
            LineageTable.relation == "trained-on",
            LineageTable.child.in_(select(GroupTable.adapter_digest)),
        )
        above |= {child for child, parent in connection.execute(trained) if parent in above}
        labels = [
            row.labels
            for row in connection.execute(select(AdapterTable.digest, AdapterTable.labels))
            if row.digest in above
        ]
        rights = [
            row._asdict()
            for row in connection.execute(select(AdapterRightsTable))
            if row.digest in above
        ]
    moments = [row["expires_at"] for row in rights if row["expires_at"] is not None]
    return Inheritance(
        labels=frozenset(label for some in labels for label in some),
        level=max((row["level"] for row in rights), default=0),
        expires_at=min(moments, default=None),
        tenants=frozenset(row["tenant"] for row in rights if row["tenant"]),
    )


def new_group(
    version: AdapterVersion,
    *,
    settings: GroupSettings,
    sources: GroupSources,
    descriptor_digest: str,
    before: Group | None,
) -> Group:
    """A group's row after a training.

    Args:
        version: Its new adapter.
        settings: How it was trained.
        sources: What it was trained on.
        descriptor_digest: Its new descriptor.
        before: The group as it was, None for a new one.

    Returns:
        The row.
    """
    now = datetime.now(UTC)
    return Group(
        name=version.name,
        base=version.base,
        base_digest=version.base_digest or "",
        task=version.task,
        settings=settings,
        labels=version.labels,
        version=before.version + 1 if before else 1,
        records=sources.records,
        records_digest=sources.digest,
        adapter_digest=version.digest,
        descriptor_digest=descriptor_digest,
        created_at=before.created_at if before else now,
        updated_at=now,
    )


def federated(name: str) -> InputError:
    """The error of whoever asks for records that lie with clients."""
    return InputError(
        f"group {name}",
        "its records lie with its clients",
        f"change them there, then run `intarsia groups federate {name}` again",
    )


def _rights_row(connection: Connection, digest: str) -> Mapping[str, Any]:
    statement = select(AdapterRightsTable).where(AdapterRightsTable.digest == digest)
    row = connection.execute(statement).first()
    if row is None:
        raise _not_admitted(digest)
    return row._asdict()


def _not_admitted(digest: str) -> InputError:
    return InputError("admitted adapter", digest, "see `intarsia groups list`")


def _group(values: Mapping[str, Any]) -> Group:
    settings = GroupSettings.from_mapping(values["settings"])
    return Group(**{**values, "settings": settings, "labels": tuple(values["labels"])})
