"""Admission of adapters that no group trained here: a federation's results, and imported ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from sqlalchemy import Connection, select, update

from intarsia_platform.groups.admission import Admission, AdmissionRules, admit_adapter
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.groups.rows import Rights
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.store import inherited_from, write_rights
from intarsia_platform.home import Home
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.lineage import Lineage, Relation, link
from intarsia_platform.registry.rows import AdapterVersion
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.registry.tables import AdapterTable


class AdmissionDesk:
    """Lets registered adapters in: checks, labels and signs them.

    Args:
        database: The registry's database.
        store: Where the bytes lie.
        home: The home, for its keys and its notes of unfinished changes.
    """

    def __init__(self, database: Database, store: ContentStore, home: Home) -> None:
        """Keep the parts."""
        self._database = database
        self._registry = AdapterRegistry(database, store)
        self._pending = PendingBlobs(home.path / "groups", database, store)
        self._keys = home.path / "keys"

    def admit(
        self,
        reference: str,
        *,
        labels: Iterable[str] = (),
        sources: Sequence[str] = (),
        rights: Rights | None = None,
        rules: AdmissionRules | None = None,
        classes: Sequence[str] = (),
    ) -> AdapterVersion:
        """Admit an adapter, or admit it again with more labels and narrower rights.

        It inherits the labels of all that it was made of, the highest level and the earliest
        expiry. Running streams ask again what they may use.

        Args:
            reference: As :meth:`intarsia_platform.registry.adapters.AdapterRegistry.get`.
            labels: Labels beside those that it has and inherits.
            sources: Digests of known artefacts that it was made of, for one without a lineage.
            rights: Its owner and the like.
            rules: What is let in.
            classes: Class names in order, for a classifier.

        Returns:
            The admitted version, with all of its labels.

        Raises:
            InputError: If there is none, it is a group's, or it is refused.
            IntegrityError: If its bytes are damaged, or a source is not known.
            StorageError: If the home cannot be written.
        """
        version = self._registry.get(reference)
        parents: dict[str, Relation] = dict.fromkeys(sources, "aggregated")
        known = [row.digest for row in Lineage(self._database).parents(version.digest)]
        admission = admit_adapter(
            self._registry.encoded(version.digest),
            name=version.name,
            base=load_base(version.base, task=version.task, labels=classes),
            labels=labels,
            parents={**dict.fromkeys(known, "aggregated"), **parents},
            rights=rights,
            inherited=inherited_from(self._database, [*known, *parents]),
            rules=rules,
            version=version,
        )
        key = SigningKey.open(self._keys)
        with self._pending.changing() as (connection, change):
            _refuse_changed(connection, version)
            bundle = admission.signed(key, change.work())
            before = _earlier_blobs(connection, version)
            link(connection, version.digest, parents)
            _write(connection, admission, bytes_digest(bundle))
            bump(connection)
            blobs = (*admission.blobs, bundle)
            change.note([*map(bytes_digest, blobs), *before])
            change.put(*blobs)
        return admission.version


def _refuse_changed(connection: Connection, version: AdapterVersion) -> None:
    statement = select(AdapterTable.manifest_digest).where(AdapterTable.digest == version.digest)
    if connection.execute(statement).scalar() != version.manifest_digest:
        raise InputError(f"adapter {version.name}", "not what it was", "run the command again")
    group = select(GroupTable.name).where(GroupTable.adapter_digest == version.digest)
    if connection.execute(group).first() is not None:
        raise InputError(
            f"adapter {version.name}", "a group's own", "it was admitted with the group"
        )


def _earlier_blobs(connection: Connection, version: AdapterVersion) -> list[str]:
    """What an earlier admission, or the registration, has left to be replaced."""
    statement = select(AdapterRightsTable.signature_digest).where(
        AdapterRightsTable.digest == version.digest
    )
    signatures = connection.execute(statement).scalars()
    return [version.manifest_digest, *(one for one in signatures if one is not None)]


def _write(connection: Connection, admission: Admission, signature: str) -> None:
    version = admission.version
    connection.execute(
        update(AdapterTable)
        .where(AdapterTable.digest == version.digest)
        .values(
            labels=list(version.labels),
            manifest_digest=version.manifest_digest,
            base_digest=version.base_digest,
        )
    )
    write_rights(connection, version.digest, admission.rights, signature)
