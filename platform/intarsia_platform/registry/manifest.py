"""``intarsia.json``: what Intarsia says of an adapter, beside PEFT's two files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError

from intarsia_platform.registry.rows import AdapterVersion

MANIFEST_FILE = "intarsia.json"
MAX_MANIFEST_BYTES = 1 << 20


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
