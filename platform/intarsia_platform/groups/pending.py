"""Blobs and rows change together, whenever the process dies.

A change notes in a file which blobs it may leave without an owner: those that it is about to put
and those that it is about to let go. Then come the blobs, then the rows in one transaction, then
every noted blob that no row names is deleted. Whoever comes next does the same for the notes of a
process that was killed. All of it happens inside the database's writing transactions, of which
there is one at a time, so that nobody deletes what another process is about to name.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from intarsia_client.errors import StorageError
from intarsia_client.files import canonical_json, write_bytes
from sqlalchemy import Connection, select

from intarsia_platform.registry.access_tables import AdapterRightsTable, GroupTable
from intarsia_platform.registry.database import Database, serialise
from intarsia_platform.registry.store import ContentStore, is_digest
from intarsia_platform.registry.tables import AdapterTable, ArtefactTable

_NOTE, _WORK = "note-", "work-"
_AT_ONCE = 500
# Artefacts that are blobs of their own; a shard's digest may be that of records at a client's.
_KEPT_KINDS = ("update", "aggregate")


class PendingBlobs:
    """Changes of blobs and rows that leave nothing behind.

    Formal guarantee: after :meth:`changing` ended, or after a kill once :meth:`sweep` ran, the
    store holds no noted blob that no row names, and every blob that a committed row names.

    Args:
        folder: The home's folder for notes and for files that are being signed.
        database: The registry's database.
        store: Where the bytes lie.
    """

    def __init__(self, folder: Path, database: Database, store: ContentStore) -> None:
        """Keep all three."""
        self._folder = folder
        self._database = database
        self._store = store

    @contextlib.contextmanager
    def changing(self) -> Iterator[tuple[Connection, Change]]:
        """Open the one transaction of a change; what it leaves without an owner is deleted.

        Yields:
            The transaction, committed when the block ends and rolled back when it raises; and the
            change.

        Raises:
            StorageError: If the home or the database cannot be written.
        """
        try:
            with self._writing() as connection:
                yield connection, Change(self._folder, self._store)
        finally:
            self.sweep()

    def sweep(self) -> bool:
        """Delete what changes that have ended, or were killed, left without an owner.

        Returns:
            Whether there was anything to look at.

        Raises:
            StorageError: If something cannot be deleted; the next sweep tries again.
        """
        if not self._left():
            return False
        with self._writing() as connection:
            # Only the holder of the transaction has notes, so all that are there are left over.
            for path in self._left():
                if path.name.startswith(_NOTE):
                    self._settle(connection, path)
                _remove(path)
        scrub(self._database)
        return True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._database.begin() as connection:
            if connection.dialect.name == "sqlite":
                # What a deleted row held is overwritten, not only given free.
                connection.exec_driver_sql("PRAGMA secure_delete=ON")
            serialise(connection, "groups")
            yield connection

    def _left(self) -> list[Path]:
        # A note that was being written has a dot before its name.
        names = (f"{mark}{kind}*" for kind in (_NOTE, _WORK) for mark in ("", "."))
        return sorted(path for name in names for path in self._folder.glob(name))

    def _settle(self, connection: Connection, note: Path) -> None:
        noted = json.loads(note.read_bytes())
        digests = [one for one in noted if isinstance(one, str) and is_digest(one)]
        for digest in sorted(set(digests) - used_blobs(connection, digests)):
            self._store.delete(digest)


class Change:
    """What one change does to blobs; made by :meth:`PendingBlobs.changing`.

    Args:
        folder: The home's folder for notes.
        store: Where the bytes lie.
    """

    def __init__(self, folder: Path, store: ContentStore) -> None:
        """Begin without a note."""
        self._folder = folder
        self._store = store

    def work(self) -> Path:
        """An empty folder that is gone when the change has ended.

        Raises:
            StorageError: If it cannot be made.
        """
        path = self._folder / f"{_WORK}{secrets.token_hex(8)}"
        try:
            path.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise StorageError(f"writing {path}", error.strerror, "free space") from None
        return path

    def note(self, digests: Iterable[str]) -> None:
        """Note blobs that may have no owner when the change ends, before they are touched.

        Args:
            digests: Their digests.

        Raises:
            StorageError: If the note cannot be written.
        """
        noted = sorted(set(digests))
        if noted:
            write_bytes(self._folder / f"{_NOTE}{secrets.token_hex(8)}.json", canonical_json(noted))

    def put(self, *blobs: bytes) -> None:
        """Put blobs into the store, which were noted.

        Args:
            blobs: Their bytes.

        Raises:
            StorageError: If the store cannot be written.
        """
        for blob in blobs:
            self._store.put(blob)


def used_blobs(connection: Connection, digests: Collection[str]) -> set[str]:
    """Which blobs some row still names.

    Args:
        connection: An open transaction.
        digests: The blobs.

    Returns:
        Those of them that an adapter, a group, a signature or an artefact has.
    """
    columns = (
        AdapterTable.tensors_digest,
        AdapterTable.configuration_digest,
        AdapterTable.manifest_digest,
        AdapterRightsTable.signature_digest,
        GroupTable.records_digest,
        GroupTable.descriptor_digest,
    )
    wanted = sorted(set(digests))
    found: set[str] = set()
    for begin in range(0, len(wanted), _AT_ONCE):
        some = wanted[begin : begin + _AT_ONCE]
        for column in columns:
            rows = connection.execute(select(column).where(column.in_(some)).distinct())
            found.update(str(digest) for digest in rows.scalars())
        artefacts = select(ArtefactTable.digest).where(
            ArtefactTable.digest.in_(some), ArtefactTable.kind.in_(_KEPT_KINDS)
        )
        found.update(connection.execute(artefacts).scalars())
    return found


def scrub(database: Database) -> None:
    """Let nothing of deleted rows stay in SQLite's log, as far as nobody reads it just now.

    Another process that reads keeps the log; the last connection that closes empties it.

    Args:
        database: The database.
    """
    if database.engine.dialect.name != "sqlite":
        return
    connection = database.engine.raw_connection()
    try:
        connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.close()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
