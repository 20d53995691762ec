"""Updates and adapters in the content-addressed store, under one digest each."""

from __future__ import annotations

import json

from intarsia_client.errors import IntegrityError
from intarsia_client.files import canonical_json
from intarsia_client.peft_configuration import CONFIGURATION_FILE
from intarsia_client.peft_files import TENSORS_FILE, EncodedAdapter, decode_adapter
from intarsia_client.wire import UpdateManifest

from intarsia_platform.federation.admission import ValidatedUpdate
from intarsia_platform.federation.strategy import OpenRound
from intarsia_platform.registry.store import ContentStore

_MANIFEST_FILE = "manifest.json"


def put_update(store: ContentStore, update: ValidatedUpdate) -> str:
    """Keep an update's bytes, before it counts as accepted.

    Args:
        store: The store.
        update: The update.

    Returns:
        The digest of an index that names the manifest and both adapter files.

    Raises:
        StorageError: If the store cannot be written.
    """
    index = {
        _MANIFEST_FILE: store.put(update.manifest.to_json()),
        CONFIGURATION_FILE: store.put(update.encoded.configuration),
        TENSORS_FILE: store.put(update.encoded.tensors),
    }
    return store.put(canonical_json(index))


def get_update(store: ContentStore, digest: str, open_round: OpenRound) -> ValidatedUpdate:
    """Read an accepted update back.

    Args:
        store: The store.
        digest: What :func:`put_update` returned.
        open_round: The round that accepted it.

    Returns:
        The update as it was admitted.

    Raises:
        IntegrityError: If it is missing or damaged.
    """
    index = json.loads(store.get(digest))
    manifest = UpdateManifest.from_json(store.get(index[_MANIFEST_FILE]))
    encoded = EncodedAdapter(
        configuration=store.get(index[CONFIGURATION_FILE]), tensors=store.get(index[TENSORS_FILE])
    )
    for assignment in open_round.assignments.values():
        if assignment.client == manifest.client:
            return ValidatedUpdate(
                assignment=assignment,
                manifest=manifest,
                adapter=decode_adapter(encoded.configuration, encoded.tensors),
                encoded=encoded,
            )
    raise IntegrityError(f"update {digest}", manifest.client, "it is of no client of this round")


def put_adapter(store: ContentStore, encoded: EncodedAdapter) -> tuple[str, str]:
    """Keep an adapter's two files.

    Args:
        store: The store.
        encoded: The bytes.

    Returns:
        The digests of the configuration and of the tensors.
    """
    return store.put(encoded.configuration), store.put(encoded.tensors)
