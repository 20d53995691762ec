"""The schema's second part: data groups, what adapters may be used for, and by whom."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from intarsia_platform.registry.tables import DIGEST_LENGTH, JsonText, Table, UtcTime


class AdapterRightsTable(Table):
    """What policies may ask of an adapter beside its name and labels."""

    __tablename__ = "adapter_rights"

    digest: Mapped[str] = mapped_column(ForeignKey("adapters.digest"), primary_key=True)
    owner: Mapped[str] = mapped_column(Text)
    tenant: Mapped[str] = mapped_column(Text)
    level: Mapped[int] = mapped_column(BigInteger)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    signature_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))


class GroupTable(Table):
    """Data groups: each has one adapter, its records and its descriptor."""

    __tablename__ = "groups"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    base: Mapped[str] = mapped_column(Text)
    base_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    task: Mapped[str] = mapped_column(String(64))
    settings: Mapped[dict[str, Any]] = mapped_column(JsonText)
    labels: Mapped[list[str]] = mapped_column(JsonText)
    version: Mapped[int]
    records: Mapped[int] = mapped_column(BigInteger)
    records_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    adapter_digest: Mapped[str] = mapped_column(ForeignKey("adapters.digest"))
    descriptor_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class PolicyTable(Table):
    """Every policy set there was; the one with the highest number is in force."""

    __tablename__ = "policies"

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    policies: Mapped[str] = mapped_column(Text)
    entities: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class ApiKeyTable(Table):
    """API keys; of the secret only a hash."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    principal: Mapped[str] = mapped_column(Text)
    secret_hash: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcTime)


class AuditTable(Table):
    """The audit log; each entry's digest covers the one before it."""

    __tablename__ = "audit_entries"

    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    event: Mapped[dict[str, Any]] = mapped_column(JsonText)
    previous: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))


class AccessStateTable(Table):
    """One row: the epoch, raised by whatever may take a right away."""

    __tablename__ = "access_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int] = mapped_column(BigInteger)
