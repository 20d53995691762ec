"""The registry of adapters: PEFT adapters by digest and by name.

Bytes lie in the content-addressed store, rows in the database. An adapter leaves it as what PEFT
loads: ``adapter_config.json``, ``adapter_model.safetensors`` and Intarsia's ``intarsia.json``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest, canonical_json
from intarsia_client.peft_files import (
    EncodedAdapter,
    decode_adapter,
    encode_adapter,
    read_adapter,
    write_encoded,
)
from intarsia_client.wire import Adapter
from sqlalchemy import Connection, Select, delete, func, or_, select

from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.database import Database, insert_if_absent
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.lineage import link, record_artefact
from intarsia_platform.registry.manifest import (
    MANIFEST_FILE,
    described,
    manifest_of,
    read_manifest,
)
from intarsia_platform.registry.rows import AdapterVersion, ArtefactKind
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.registry.tables import AdapterTable, ArtefactTable, RoundTable, RunTable

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_DIGEST_PREFIX = re.compile(r"(sha256:)?([0-9a-f]{6,64})")


class AdapterRegistry:
    """Adapters by digest and by name.

    Args:
        database: The registry's database.
        store: Where the bytes lie.
    """

    def __init__(self, database: Database, store: ContentStore) -> None:
        """Keep both."""
        self._database = database
        self._store = store

    def prepare(
        self,
        adapter: Adapter,
        *,
        name: str,
        base_digest: str | None = None,
        run_id: str | None = None,
        round: int | None = None,  # noqa: A002 - the field's word
        labels: Iterable[str] = (),
    ) -> AdapterVersion:
        """Put an adapter's bytes into the store; no row is written yet.

        What it returns goes to :meth:`register`, or to ``RunJournal.publish`` whose transaction
        writes the row together with the end of the round.

        Args:
            adapter: The adapter.
            name: What people shall call it.
            base_digest: Digest of the base model's weights, where it is known.
            run_id: The run it came from.
            round: The round it came from.
            labels: Words that access policies speak of.

        Returns:
            The version.

        Raises:
            InputError: If the name is not one.
            StorageError: If the store cannot be written.
        """
        encoded = encode_adapter(adapter)
        version = described(
            adapter,
            encoded,
            name=_checked_name(name),
            base_digest=base_digest,
            run_id=run_id,
            round_number=round,
            labels=labels,
        )
        manifest = canonical_json(manifest_of(version))
        version = dataclasses.replace(version, manifest_digest=bytes_digest(manifest))
        for data in (encoded.configuration, encoded.tensors, manifest):
            self._store.put(data)
        return version

    def register(
        self,
        version: AdapterVersion,
        *,
        kind: ArtefactKind = "version",
        parents: Iterable[str] = (),
    ) -> AdapterVersion:
        """Write a prepared adapter's row, its artefact and what it was made of.

        Args:
            version: What :meth:`prepare` returned.
            kind: ``"version"``, or ``"imported"`` for one from elsewhere.
            parents: Digests of known artefacts that it was made of.

        Returns:
            The registered version: the earlier one where the same adapter was there already.

        Raises:
            InputError: If another adapter has its name.
            IntegrityError: If a parent is not known.
        """
        with self._database.begin() as connection:
            registered = insert_adapter(connection, version, kind=kind)
            link(connection, version.digest, dict.fromkeys(parents, "aggregated"), circular="skip")
            return registered

    def import_directory(
        self, path: Path, *, name: str | None = None, labels: Iterable[str] = ()
    ) -> AdapterVersion:
        """Take in a PEFT adapter directory, from Intarsia or from elsewhere.

        Args:
            path: The directory.
            name: What people shall call it; None takes the name in its manifest, or the folder's.
            labels: Added to those in its manifest.

        Returns:
            The registered version; the earlier one where the same adapter was there already.

        Raises:
            InputError: If it is not such a directory, or another adapter has that name.
            IntegrityError: If it is damaged, or its manifest speaks of another adapter.
            StorageError: If the home cannot be written.
        """
        adapter = read_adapter(path)
        manifest = read_manifest(path / MANIFEST_FILE)
        base_digest, described = manifest.get("base_digest"), manifest.get("digest")
        digest = encode_adapter(adapter).digest
        if described not in (None, digest):
            raise IntegrityError(
                str(path / MANIFEST_FILE),
                f"speaks of {described}, the files are {digest}",
                "export the adapter again, or remove the manifest to import the files as they are",
            )
        fallback = re.sub(r"[^A-Za-z0-9._-]+", "-", path.absolute().name).strip("-._") or "adapter"
        version = self.prepare(
            adapter,
            name=name or str(manifest.get("name") or fallback[:100]),
            base_digest=None if base_digest is None else str(base_digest),
            labels=[*labels, *(str(label) for label in manifest.get("labels") or ())],
        )
        return self.register(version, kind="imported")

    def list(self) -> tuple[AdapterVersion, ...]:
        """All adapters, the oldest first."""
        with self._database.read() as connection:
            return _versions(connection, select(AdapterTable))

    def get(self, reference: str) -> AdapterVersion:
        """One adapter.

        Args:
            reference: Its name, its digest, or the first 6 or more hexadecimal digits of it, with
                or without ``sha256:``. A name goes before a digest.

        Returns:
            The adapter.

        Raises:
            InputError: If there is none of that name or digest, or several digests begin so.
        """
        with self._database.read() as connection:
            return _find(connection, reference)

    def encoded(self, reference: str) -> EncodedAdapter:
        """An adapter's two files.

        Args:
            reference: As :meth:`get`.

        Returns:
            The verified bytes.

        Raises:
            InputError: As :meth:`get`.
            IntegrityError: If the store's bytes are missing or damaged.
        """
        version = self.get(reference)
        return EncodedAdapter(
            configuration=self._store.get(version.configuration_digest),
            tensors=self._store.get(version.tensors_digest),
        )

    def load(self, reference: str) -> Adapter:
        """An adapter, decoded; raises as :meth:`encoded`."""
        encoded = self.encoded(reference)
        return decode_adapter(encoded.configuration, encoded.tensors)

    def export(self, reference: str, directory: Path) -> AdapterVersion:
        """Write an adapter as a directory that PEFT loads, whole or not at all.

        Args:
            reference: As :meth:`get`.
            directory: The folder to make; it must not exist, or be empty.

        Returns:
            The adapter that was written.

        Raises:
            InputError: As :meth:`get`, or if the folder holds something.
            IntegrityError: If the store's bytes are missing or damaged.
            StorageError: If the folder cannot be written.
        """
        version = self.get(reference)
        manifest = json.loads(self._store.get(version.manifest_digest))
        write_encoded(directory, self.encoded(version.digest), manifest=manifest)
        return version

    def remove(self, reference: str) -> AdapterVersion:
        """Take an adapter out of the registry and its bytes out of the store.

        Its lineage stays: that it was there, and what was made of it. Bytes that another adapter
        or artefact shares stay too. The epoch rises, so that answers that use it end.

        Args:
            reference: As :meth:`get`.

        Returns:
            What was removed.

        Raises:
            InputError: As :meth:`get`, or if an unfinished run goes on from it or it is a group's.
            StorageError: If it cannot be removed.
        """
        with self._database.begin() as connection:
            version = _find(connection, reference)
            _refuse_in_use(connection, version)
            _refuse_of_group(connection, version)
            rights = AdapterRightsTable.digest == version.digest
            connection.execute(delete(AdapterRightsTable).where(rights))
            bump(connection)
            connection.execute(delete(AdapterTable).where(AdapterTable.digest == version.digest))
        # The row goes first: a crash in between leaves bytes without a name, never the reverse.
        with self._database.read() as connection:
            unused = [digest for digest in _blobs(version) if not _is_used(connection, digest)]
        for digest in unused:
            self._store.delete(digest)
        return version


def insert_adapter(
    connection: Connection, version: AdapterVersion, *, kind: ArtefactKind = "version"
) -> AdapterVersion:
    """Write an adapter's row and artefact in the caller's transaction.

    Args:
        connection: An open transaction.
        version: The adapter, its bytes in the store already.
        kind: The artefact's kind, where it is new.

    Returns:
        The registered version: the earlier one where the same adapter was there already.

    Raises:
        InputError: If another adapter has its name.
    """
    details = {"run": version.run_id, "round": version.round, "name": version.name}
    record_artefact(
        connection,
        version.digest,
        kind,
        size=version.size,
        details={key: value for key, value in details.items() if value is not None},
    )
    same = or_(AdapterTable.digest == version.digest, AdapterTable.name == version.name)
    for other in _versions(connection, select(AdapterTable).where(same)):
        if other.digest == version.digest:
            return other
    if not insert_if_absent(connection, AdapterTable, dataclasses.asdict(version)):
        raise InputError(
            "adapter name",
            f"{version.name} is taken by another adapter",
            "choose another name, or remove that adapter first",
        )
    return version


def _find(connection: Connection, reference: str) -> AdapterVersion:
    named = _versions(connection, select(AdapterTable).where(AdapterTable.name == reference))
    if named:
        return named[0]
    match = _DIGEST_PREFIX.fullmatch(reference)
    found: tuple[AdapterVersion, ...] = ()
    if match:
        beginning = AdapterTable.digest.startswith(f"sha256:{match[2]}")
        found = _versions(connection, select(AdapterTable).where(beginning))
    if not found:
        raise InputError("adapter", reference, "see `intarsia adapters list`")
    if len(found) > 1:
        several = ", ".join(sorted(f"{version.name} ({version.digest[:19]})" for version in found))
        raise InputError("adapter", f"{reference} may be {several}", "write more of its digest")
    return found[0]


def _versions(
    connection: Connection, statement: Select[AdapterTable]
) -> tuple[AdapterVersion, ...]:
    rows = [row._asdict() for row in connection.execute(statement)]
    found = [AdapterVersion(**{**row, "labels": tuple(row["labels"])}) for row in rows]
    return tuple(sorted(found, key=lambda version: (version.created_at, version.name)))


def _refuse_in_use(connection: Connection, version: AdapterVersion) -> None:
    newest = (
        select(RoundTable.run_id, func.max(RoundTable.number).label("number"))
        .join(RunTable, RunTable.id == RoundTable.run_id)
        .where(RunTable.status != "finished")
        .group_by(RoundTable.run_id)
        .subquery()
    )
    statement = (
        select(RoundTable.run_id)
        .join(
            newest,
            (newest.c.run_id == RoundTable.run_id) & (newest.c.number == RoundTable.number),
        )
        .where(
            or_(
                RoundTable.start_digest == version.digest,
                RoundTable.result_digest == version.digest,
            )
        )
    )
    run_id = connection.execute(statement).scalars().first()
    if run_id is not None:
        raise InputError(
            "adapter", f"{version.name} is where {run_id} goes on from", "finish that run first"
        )


def _refuse_of_group(connection: Connection, version: AdapterVersion) -> None:
    statement = select(GroupTable.name).where(GroupTable.adapter_digest == version.digest)
    group = connection.execute(statement).scalars().first()
    if group is not None:
        raise InputError(
            "adapter",
            f"{version.name} is the adapter of group {group}",
            f"use `intarsia groups remove {group}`",
        )


def _blobs(version: AdapterVersion) -> tuple[str, str, str]:
    return version.tensors_digest, version.configuration_digest, version.manifest_digest


def _is_used(connection: Connection, digest: str) -> bool:
    columns = (
        AdapterTable.tensors_digest,
        AdapterTable.configuration_digest,
        AdapterTable.manifest_digest,
    )
    adapters = select(AdapterTable.digest).where(or_(*(column == digest for column in columns)))
    artefacts = select(ArtefactTable.digest).where(ArtefactTable.digest == digest)
    return any(connection.execute(query).first() is not None for query in (adapters, artefacts))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.startswith("sha256"):
        raise InputError(
            "adapter name",
            repr(name),
            "use up to 100 letters, digits, dots, hyphens, underscores and slashes",
        )
    return name
