"""An adapter that may be let in, and what it has from those that it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from intarsia_client.peft_files import EncodedAdapter, write_encoded

from intarsia_platform.groups.rows import Rights
from intarsia_platform.groups.signing import SigningKey, sign
from intarsia_platform.registry.lineage import Relation
from intarsia_platform.registry.rows import AdapterVersion


@dataclass(frozen=True, kw_only=True)
class Inheritance:
    """What an adapter has from those that it was made of.

    Args:
        labels: The union of their labels.
        level: The highest of their levels.
        expires_at: The earliest of their expiries, None where none has one.
        tenants: Whose they are.
    """

    labels: frozenset[str] = frozenset()
    level: int = 0
    expires_at: datetime | None = None
    tenants: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Admission:
    """An adapter that may be let in; its blobs go into the store, then its rows are written.

    Args:
        version: Its row in the registry.
        rights: What policies may ask of it.
        parents: What it was made of, and how.
        encoded: Its two files.
        manifest: ``intarsia.json`` as the store keeps it.
    """

    version: AdapterVersion
    rights: Rights
    parents: Mapping[str, Relation]
    encoded: EncodedAdapter
    manifest: bytes

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """What the store has to keep of it, beside its signature."""
        return self.encoded.configuration, self.encoded.tensors, self.manifest

    def signed(self, key: SigningKey, work: Path) -> bytes:
        """Sign the folder that an export of it is.

        Args:
            key: The home's key.
            work: An empty folder for the files to sign.

        Returns:
            The signature; see :func:`intarsia_platform.groups.signing.sign`.

        Raises:
            StorageError: If the key cannot be read or ``work`` not be written.
        """
        folder = work / "adapter"
        write_encoded(folder, self.encoded, manifest=json.loads(self.manifest))
        return sign(folder, key)
