"""The schema. Migrations lead to it; a test compares the two, so that neither drifts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from intarsia_client.files import canonical_json
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from intarsia_platform.registry.rows import (
    ARTEFACT_KINDS,
    PARTICIPATION_STATUSES,
    ROUND_STATES,
    RUN_STATUSES,
)

HEAD_REVISION = "0002"
"""The newest migration, named here so that opening a current database loads no migration code."""

DIGEST_LENGTH = 71
"""Length of ``"sha256:"`` and 64 hexadecimal digits."""


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite keeps no zone, so it is put back when read."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Turn an aware moment into UTC."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Read a moment as UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class JsonText(TypeDecorator[Any]):
    """A JSON value as canonical text, the same on every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any | None, dialect: Dialect) -> str | None:
        """Encode canonically."""
        return None if value is None else canonical_json(value).decode()

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:
        """Decode."""
        return None if value is None else json.loads(value)


class NodeId(TypeDecorator[int]):
    """A Flower node identifier: 64 bits without a sign, which no SQL integer holds."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        """Write as decimal text."""
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> int | None:
        """Read as an integer."""
        return None if value is None else int(value)


def _one_of(column: str, values: tuple[str, ...]) -> CheckConstraint:
    words = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({words})", name=column)


class Table(DeclarativeBase):
    """Base of all tables; constraints have the same names on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class RunTable(Table):
    """Federations; see :class:`~intarsia_platform.registry.rows.RunRow`."""

    __tablename__ = "runs"
    __table_args__ = (_one_of("status", RUN_STATUSES),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(String(16))
    config: Mapped[dict[str, Any]] = mapped_column(JsonText)
    config_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), index=True)
    seed: Mapped[int] = mapped_column(BigInteger)
    rounds: Mapped[int]
    base_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    mlflow_run_id: Mapped[str | None] = mapped_column(String(64))


class RoundTable(Table):
    """Rounds; see :class:`~intarsia_platform.registry.rows.RoundRow`."""

    __tablename__ = "rounds"
    __table_args__ = (_one_of("state", ROUND_STATES),)

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[str] = mapped_column(String(16))
    start_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    aggregate_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))
    result_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))
    metrics: Mapped[dict[str, Any]] = mapped_column(JsonText)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    updated_at: Mapped[datetime] = mapped_column(UtcTime)


class ParticipationTable(Table):
    """Who took part; see :class:`~intarsia_platform.registry.rows.ParticipationRow`."""

    __tablename__ = "participations"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round"], ["rounds.run_id", "rounds.number"]),
        _one_of("status", PARTICIPATION_STATUSES),
    )

    run_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    client: Mapped[str] = mapped_column(String(255), primary_key=True)
    node_id: Mapped[int] = mapped_column(NodeId)
    assignment: Mapped[dict[str, Any]] = mapped_column(JsonText)
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(Text)
    detail: Mapped[str | None] = mapped_column(Text)
    update_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))
    number_of_examples: Mapped[int] = mapped_column(BigInteger)
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    bytes_down: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[dict[str, Any]] = mapped_column(JsonText)


class NonceTable(Table):
    """Nonces of accepted updates; the primary key is what makes a replay impossible."""

    __tablename__ = "nonces"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    nonce: Mapped[str] = mapped_column(String(255), primary_key=True)
    round: Mapped[int]
    client: Mapped[str] = mapped_column(String(255))


class RefusalTable(Table):
    """Messages turned away; see :class:`~intarsia_platform.registry.rows.RefusalRow`."""

    __tablename__ = "refusals"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round"], ["rounds.run_id", "rounds.number"]),
        Index(None, "run_id", "round"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(String(64))
    round: Mapped[int]
    client: Mapped[str] = mapped_column(String(255))
    reason: Mapped[str] = mapped_column(Text)
    detail: Mapped[str] = mapped_column(Text)
    bytes_up: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcTime)


class ArtefactTable(Table):
    """Things made of data; see :class:`~intarsia_platform.registry.rows.ArtefactRow`."""

    __tablename__ = "artefacts"
    __table_args__ = (_one_of("kind", ARTEFACT_KINDS),)

    digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    size: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    details: Mapped[dict[str, Any]] = mapped_column(JsonText)


class LineageTable(Table):
    """Which artefact was made of which; without cycles."""

    __tablename__ = "lineage"

    child: Mapped[str] = mapped_column(ForeignKey("artefacts.digest"), primary_key=True)
    parent: Mapped[str] = mapped_column(
        ForeignKey("artefacts.digest"), primary_key=True, index=True
    )
    relation: Mapped[str] = mapped_column(String(32), primary_key=True)


class AdapterTable(Table):
    """Registered adapters; see :class:`~intarsia_platform.registry.rows.AdapterVersion`."""

    __tablename__ = "adapters"
    __table_args__ = (
        ForeignKeyConstraint(["run_id", "round"], ["rounds.run_id", "rounds.number"]),
    )

    digest: Mapped[str] = mapped_column(ForeignKey("artefacts.digest"), primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    base: Mapped[str] = mapped_column(Text)
    base_digest: Mapped[str | None] = mapped_column(String(DIGEST_LENGTH))
    task: Mapped[str] = mapped_column(String(64))
    rank: Mapped[int]
    size: Mapped[int] = mapped_column(BigInteger)
    tensors_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    configuration_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    manifest_digest: Mapped[str] = mapped_column(String(DIGEST_LENGTH))
    run_id: Mapped[str | None] = mapped_column(String(64))
    round: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(UtcTime)
    labels: Mapped[list[str]] = mapped_column(JsonText)


class PrivacySpendTable(Table):
    """Privacy spent; see :class:`~intarsia_platform.registry.rows.PrivacySpendRow`."""

    __tablename__ = "privacy_spends"

    scope: Mapped[str] = mapped_column(String(255), primary_key=True)
    client: Mapped[str] = mapped_column(String(255), primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    unit: Mapped[str] = mapped_column(String(16))
    noise_multiplier: Mapped[float] = mapped_column(Double)
    sample_rate: Mapped[float] = mapped_column(Double)
    steps: Mapped[int] = mapped_column(BigInteger)
    delta: Mapped[float] = mapped_column(Double)
    max_grad_norm: Mapped[float] = mapped_column(Double)


class ClientStateTable(Table):
    """State of virtual clients between rounds, as opaque bytes."""

    __tablename__ = "client_states"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    node_id: Mapped[int] = mapped_column(NodeId, primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    state: Mapped[bytes] = mapped_column(LargeBinary)
