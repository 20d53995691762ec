"""Admission of adapters that no group trained here: a federation's results, and sites' own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_configuration import CONFIGURATION_FILE
from intarsia_client.peft_files import (
    TENSORS_FILE,
    EncodedAdapter,
    decode_adapter,
    encode_adapter,
    read_encoded,
)
from sqlalchemy import Connection, select, update

from intarsia_platform.groups.admission import AdmissionRules, admit_adapter
from intarsia_platform.groups.admitted import Admission
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.groups.publishing import refuse_taken
from intarsia_platform.groups.rows import Rights, checked_name
from intarsia_platform.groups.signing import (
    MAX_BUNDLE_BYTES,
    SigningKey,
    folder_digests,
    verify,
)
from intarsia_platform.groups.store import inherited_from, insert_admission, write_rights
from intarsia_platform.home import Home
from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.lineage import Lineage, Relation, link, record_artefact
from intarsia_platform.registry.manifest import MANIFEST_FILE, described, read_manifest
from intarsia_platform.registry.rows import AdapterVersion
from intarsia_platform.registry.store import ContentStore, is_digest
from intarsia_platform.registry.tables import AdapterTable


@dataclass(frozen=True, kw_only=True)
class SignedFolder:
    """A PEFT folder that a site trained and signed.

    Args:
        path: The folder.
        signature: The file of its signature, outside of the folder; as
            :func:`intarsia_platform.groups.signing.sign` or ``model_signing sign`` writes it.
        public_key: The file of the site's public key.
        site: What the site is called.
        shards: Digests of the records that it was trained on, as the site says them.
    """

    path: Path
    signature: Path
    public_key: Path
    site: str = ""
    shards: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class _Received:
    """A signed folder's bytes, and what its own manifest says of it."""

    encoded: EncodedAdapter
    name: str
    digest: str | None
    base_digest: str | None
    labels: tuple[str, ...]


class AdmissionDesk:
    """Lets adapters in, registered ones and signed folders: checks, labels and signs them.

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
        expiry, and keeps its own. Running streams ask again what they may use.

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
            inherited=inherited_from(self._database, [version.digest, *known, *parents]),
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

    def admit_folder(
        self,
        folder: SignedFolder,
        *,
        name: str | None = None,
        base: str | None = None,
        labels: Iterable[str] = (),
        sources: Sequence[str] = (),
        rights: Rights | None = None,
        rules: AdmissionRules | None = None,
        classes: Sequence[str] = (),
    ) -> AdapterVersion:
        """Admit an adapter that a site trained and signed; nothing is kept of one that is refused.

        Args:
            folder: The folder, its signature and the site's key.
            name: What to call it; None takes the name in its manifest, or the folder's.
            base: Where its base lies here; None takes what the adapter says.
            labels: Labels beside those in its manifest and those that it inherits.
            sources: Digests of known artefacts that it was made of, beside the site's shards.
            rights: Its owner and the like.
            rules: What is let in.
            classes: Class names in order, for a classifier.

        Returns:
            The admitted version, with all of its labels.

        Raises:
            InputError: If it is refused, its name is taken, or it is here already.
            IntegrityError: If it is not what the site signed, or a source is not known.
            StorageError: If the home cannot be written.
        """
        received = _received(folder)
        adapter = decode_adapter(received.encoded.configuration, received.encoded.tensors)
        model = load_base(base or adapter.base, task=adapter.task, labels=classes)
        # As every adapter is written here, whoever wrote it and wherever its base lay.
        adapter = dataclasses.replace(adapter, base=model.base)
        encoded = encode_adapter(adapter)
        if received.digest not in (None, encoded.digest):
            raise IntegrityError(
                str(folder.path / MANIFEST_FILE),
                f"speaks of {received.digest}, the files are {encoded.digest}",
                "have the site export and sign it again",
            )
        name = checked_name(name or received.name)
        for source in sources:
            if Lineage(self._database).artefact(source) is None:
                raise InputError("source", source, "name an adapter or an artefact of this home")
        parents: dict[str, Relation] = dict.fromkeys(sources, "aggregated")
        parents |= dict.fromkeys(_checked_shards(folder), "trained-on")
        admission = admit_adapter(
            encoded,
            name=name,
            base=model,
            labels={*labels, *received.labels},
            parents=parents,
            rights=rights,
            inherited=inherited_from(self._database, parents),
            rules=rules,
            data={"signed_by": bytes_digest(folder.public_key.read_bytes())},
            version=described(adapter, encoded, name=name, base_digest=received.base_digest),
        )
        lineage: dict[str, Relation] = {**parents, model.digest: "continued"}
        self._publish(dataclasses.replace(admission, parents=lineage), folder)
        return admission.version

    def _publish(self, admission: Admission, folder: SignedFolder) -> None:
        key, version = SigningKey.open(self._keys), admission.version
        with self._pending.changing() as (connection, change):
            _refuse_known(connection, version)
            bundle = admission.signed(key, change.work())
            for shard in folder.shards:
                record_artefact(connection, shard, "shard", details={"client": folder.site})
            record_artefact(connection, version.base_digest or "", "base")
            record_artefact(
                connection,
                version.digest,
                "imported",
                size=version.size,
                details={"name": version.name},
            )
            insert_admission(connection, admission, bytes_digest(bundle))
            blobs = (*admission.blobs, bundle)
            change.note(map(bytes_digest, blobs))
            change.put(*blobs)


def _received(folder: SignedFolder) -> _Received:
    """Read a signed folder: the very bytes whose signature was checked."""
    if not folder.path.is_dir():
        raise InputError("adapter folder", folder.path, "name a folder that PEFT saved")
    bundle = _file(folder.signature, "--signature", MAX_BUNDLE_BYTES)
    _file(folder.public_key, "--public-key", MAX_BUNDLE_BYTES)
    digests = folder_digests(folder.path)
    verify(folder.path, bundle, folder.public_key)
    encoded = read_encoded(folder.path)
    manifest = read_manifest(folder.path / MANIFEST_FILE)
    read = {CONFIGURATION_FILE: encoded.configuration, TENSORS_FILE: encoded.tensors}
    for file, data in read.items():
        if digests.get(file) != bytes_digest(data):
            raise IntegrityError(
                f"signed adapter: {folder.path / file}", "changed meanwhile", "run it again"
            )
    fallback = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.path.absolute().name).strip("-._")
    digest, base = manifest.get("digest"), manifest.get("base_digest")
    return _Received(
        encoded=encoded,
        name=str(manifest.get("name") or fallback[:100] or "adapter"),
        digest=None if digest is None else str(digest),
        base_digest=None if base is None else str(base),
        labels=tuple(str(label) for label in manifest.get("labels") or ()),
    )


def _file(path: Path, thing: str, limit: int) -> bytes:
    """A small file's bytes, one more than the limit where there are more."""
    try:
        with path.open("rb") as stream:
            return stream.read(limit + 1)
    except OSError as error:
        raise InputError(
            thing, f"{path} ({error.strerror})", "name a file that can be read"
        ) from None


def _checked_shards(folder: SignedFolder) -> Sequence[str]:
    for shard in folder.shards:
        if not is_digest(shard):
            raise InputError("--shard", shard[:80], "write it as sha256: and 64 digits")
    return folder.shards


def _refuse_known(connection: Connection, version: AdapterVersion) -> None:
    statement = select(AdapterTable.name).where(AdapterTable.digest == version.digest)
    name = connection.execute(statement).scalar()
    if name is not None:
        raise InputError(
            f"adapter {version.name}",
            f"is here already, as {name}",
            f"run `intarsia groups admit {name}` to give it more labels",
        )
    refuse_taken(connection, version.name)


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
