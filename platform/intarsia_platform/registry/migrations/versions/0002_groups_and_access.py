"""Data groups, adapters' rights, policies, keys, the audit log and the epoch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_KINDS_BEFORE = ("shard", "update", "aggregate", "version", "base", "imported")
_KINDS = (*_KINDS_BEFORE, "descriptor")


def upgrade() -> None:
    """Create the new tables and let artefacts be descriptors."""
    _allow_kinds(_KINDS)
    op.create_table(
        "adapter_rights",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("tenant", sa.Text(), nullable=False),
        sa.Column("level", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("signature_digest", sa.String(length=71), nullable=True),
        sa.ForeignKeyConstraint(
            ["digest"], ["adapters.digest"], name=op.f("fk_adapter_rights_digest")
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_adapter_rights")),
    )
    _create_groups()
    _create_access()


def downgrade() -> None:
    """Drop the tables; artefacts of the new kinds must be gone."""
    for table in (
        "access_state",
        "audit_entries",
        "api_keys",
        "policies",
        "groups",
        "adapter_rights",
    ):
        op.drop_table(table)
    _allow_kinds(_KINDS_BEFORE)


def _allow_kinds(kinds: tuple[str, ...]) -> None:
    words = ", ".join(f"'{kind}'" for kind in kinds)
    with op.batch_alter_table("artefacts") as table:
        table.drop_constraint(op.f("ck_artefacts_kind"), type_="check")
        table.create_check_constraint(op.f("ck_artefacts_kind"), f"kind IN ({words})")


def _create_groups() -> None:
    op.create_table(
        "groups",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.String(length=71), nullable=False),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("settings", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("records_digest", sa.String(length=71), nullable=False),
        sa.Column("adapter_digest", sa.String(length=71), nullable=False),
        sa.Column("descriptor_digest", sa.String(length=71), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["adapter_digest"], ["adapters.digest"], name=op.f("fk_groups_adapter_digest")
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_groups")),
    )


def _create_access() -> None:
    op.create_table(
        "policies",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("version", sa.String(length=71), nullable=False),
        sa.Column("policies", sa.Text(), nullable=False),
        sa.Column("entities", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_policies")),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("principal", sa.Text(), nullable=False),
        sa.Column("secret_hash", sa.String(length=71), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "audit_entries",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("previous", sa.String(length=71), nullable=False),
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_audit_entries")),
    )
    op.create_table(
        "access_state",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_access_state")),
    )
