"""``intarsia.json``: what Intarsia says of an adapter, beside PEFT's two files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.wire import Adapter

from intarsia_platform.registry.rows import AdapterVersion

MANIFEST_FILE = "intarsia.json"
MAX_MANIFEST_BYTES = 1 << 20


def described(
    adapter: Adapter,
    encoded: EncodedAdapter,
    *,
    name: str,
    base_digest: str | None = None,
    run_id: str | None = None,
    round_number: int | None = None,
    labels: Iterable[str] = (),
) -> AdapterVersion:
    """An adapter's version before its manifest is written.

    Args:
        adapter: The adapter.
        encoded: Its two files.
        name: What people shall call it.
        base_digest: Digest of the base model's weights, where it is known.
        run_id: The run it came from.
        round_number: The round it came from.
        labels: Words that access policies speak of.

    Returns:
        The version, its manifest's digest empty.
    """
    return AdapterVersion(
        digest=encoded.digest,
        name=name,
        base=adapter.base,
        base_digest=base_digest,
        task=adapter.task,
        rank=adapter.rank,
        size=encoded.size,
        tensors_digest=bytes_digest(encoded.tensors),
        configuration_digest=bytes_digest(encoded.configuration),
        manifest_digest="",
        run_id=run_id,
        round=round_number,
        created_at=datetime.now(UTC),
        labels=tuple(sorted(set(labels))),
    )


def manifest_of(version: AdapterVersion) -> dict[str, Any]:
    """What Intarsia says of an adapter beside PEFT's files; equal for equal adapters.

    Args:
        version: The adapter.

    Returns:
        JSON values.
    """
    unstable = ("created_at", "manifest_digest", "labels")
    values = {k: v for k, v in dataclasses.asdict(version).items() if k not in unstable}
    return {"format_version": 1, **values, "labels": [*version.labels]}


def read_manifest(path: Path) -> Mapping[str, Any]:
    """Read a manifest that may come from anyone.

    Args:
        path: The file.

    Returns:
        Its JSON object, ``labels`` a list where there are any; empty where there is no file.

    Raises:
        InputError: If it is not a manifest.
    """
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
        manifest = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), error, "export the adapter again or remove the file") from None
    labels = manifest.get("labels") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or not isinstance(labels, list | None):
        raise InputError(str(path), "not a manifest", "export the adapter again or remove the file")
    return manifest
