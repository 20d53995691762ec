"""Updates and adapters in the content-addressed store, under one digest each."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from intarsia_client.errors import IntegrityError
from intarsia_client.files import canonical_json
from intarsia_client.opened import open_files
from intarsia_client.peft_configuration import CONFIGURATION_FILE
from intarsia_client.peft_files import TENSORS_FILE, EncodedAdapter, encode_adapter
from intarsia_client.wire import Adapter, UpdateManifest

from intarsia_platform.federation.admission import ValidatedUpdate
from intarsia_platform.federation.open_round import OpenRound
from intarsia_platform.federation.stored_updates import stored_update
from intarsia_platform.registry.rows import AdapterVersion
from intarsia_platform.registry.store import ContentStore

_MANIFEST_FILE = "manifest.json"


def put_update(store: ContentStore, update: ValidatedUpdate, encoded: EncodedAdapter) -> str:
    """Keep an update's bytes, before it counts as accepted.

    Args:
        store: The store.
        update: The update.
        encoded: The bytes that it was decoded from.

    Returns:
        The digest of an index that names the manifest and both adapter files.

    Raises:
        StorageError: If the store cannot be written.
    """
    index = {
        _MANIFEST_FILE: store.put(update.manifest.to_json()),
        CONFIGURATION_FILE: store.put(encoded.configuration),
        TENSORS_FILE: store.put(encoded.tensors),
    }
    return store.put(canonical_json(index))


def open_update(
    store: ContentStore, digest: str | None, open_round: OpenRound, folder: Path
) -> ValidatedUpdate:
    """Open an accepted update; its factors are read as they are asked for.

    Args:
        store: The store.
        digest: What :func:`put_update` returned.
        open_round: The round that accepted it.
        folder: Where its files are put if the store is no folder of this machine; they must stay
            while the update is used.

    Returns:
        The update as it was admitted.

    Raises:
        IntegrityError: If it is missing or damaged.
    """
    index = json.loads(store.get(digest or ""))
    manifest = UpdateManifest.from_json(store.get(index[_MANIFEST_FILE]))
    assignments = [a for a in open_round.assignments.values() if a.client == manifest.client]
    if not assignments:
        raise IntegrityError(
            f"update {digest}", manifest.client, "it is of no client of this round"
        )
    (assignment,) = assignments
    return ValidatedUpdate(
        assignment=assignment,
        manifest=manifest,
        adapter=stored_update(
            store.get(index[CONFIGURATION_FILE]),
            store.as_file(index[TENSORS_FILE], folder),
            open_round.start(assignment),
            assignment.sent_factors,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class KeptExact:
    """Where an exact adapter lies.

    Args:
        digest: Of the index that names its two files; None where nothing is kept beside the
            published adapter.
        size: Bytes of both files, None likewise.
    """

    digest: str | None = None
    size: int | None = None


def put_exact(store: ContentStore, exact: Adapter | None, *, beside: AdapterVersion) -> KeptExact:
    """Keep the exact adapter, before the round that made it counts as published.

    Args:
        store: The store.
        exact: The adapter; None where the published one is all there is.
        beside: The published adapter; where the exact one is equal, it is not kept twice.

    Returns:
        Where it lies.

    Raises:
        StorageError: If the store cannot be written.
    """
    if exact is None:
        return KeptExact()
    encoded = encode_adapter(exact)
    index = {
        CONFIGURATION_FILE: store.put(encoded.configuration),
        TENSORS_FILE: store.put(encoded.tensors),
    }
    if index[TENSORS_FILE] == beside.tensors_digest:
        return KeptExact()
    return KeptExact(digest=store.put(canonical_json(index)), size=encoded.size)


def open_exact(store: ContentStore, digest: str, folder: Path) -> Adapter:
    """Open an exact adapter; its factors are read as they are asked for.

    Args:
        store: The store.
        digest: What :func:`put_exact` named.
        folder: As in :func:`open_update`.

    Returns:
        The adapter.

    Raises:
        IntegrityError: If it is missing or damaged.
    """
    index = json.loads(store.get(digest))
    tensors = store.as_file(index[TENSORS_FILE], folder)
    return open_files(store.get(index[CONFIGURATION_FILE]), tensors)
