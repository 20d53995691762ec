"""The first schema: runs and their rounds, artefacts and their lineage, privacy, client state."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    _create_runs()
    _create_participations()
    _create_artefacts()
    _create_client_tables()


def downgrade() -> None:
    """Drop every table, those that point at others first."""
    for table in (
        "client_states",
        "privacy_spends",
        "adapters",
        "lineage",
        "artefacts",
        "refusals",
        "nonces",
        "participations",
        "rounds",
        "runs",
    ):
        op.drop_table(table)


def _create_runs() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("config_digest", sa.String(length=71), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("rounds", sa.Integer(), nullable=False),
        sa.Column("base_digest", sa.String(length=71), nullable=False),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.CheckConstraint(
            "status IN ('running', 'finished', 'interrupted', 'failed')",
            name=op.f("ck_runs_status"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
        sa.UniqueConstraint("number", name=op.f("uq_runs_number")),
    )
    op.create_index(op.f("ix_runs_config_digest"), "runs", ["config_digest"])
    op.create_table(
        "rounds",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("start_digest", sa.String(length=71), nullable=False),
        sa.Column("aggregate_digest", sa.String(length=71), nullable=True),
        sa.Column("result_digest", sa.String(length=71), nullable=True),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "state IN ('planned', 'sent', 'collecting', 'aggregating', 'published')",
            name=op.f("ck_rounds_state"),
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_rounds_run_id")),
        sa.PrimaryKeyConstraint("run_id", "number", name=op.f("pk_rounds")),
    )


def _create_participations() -> None:
    op.create_table(
        "participations",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("client", sa.String(length=255), nullable=False),
        sa.Column("node_id", sa.String(length=20), nullable=False),
        sa.Column("assignment", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("update_digest", sa.String(length=71), nullable=True),
        sa.Column("number_of_examples", sa.BigInteger(), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("bytes_down", sa.BigInteger(), nullable=False),
        sa.Column("metrics", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "status IN ('planned', 'accepted', 'refused', 'sat-out', 'failed', 'late')",
            name=op.f("ck_participations_status"),
        ),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["rounds.run_id", "rounds.number"],
            name=op.f("fk_participations_run_id_round"),
        ),
        sa.PrimaryKeyConstraint("run_id", "round", "client", name=op.f("pk_participations")),
    )
    op.create_table(
        "nonces",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("nonce", sa.String(length=255), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("client", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_nonces_run_id")),
        sa.PrimaryKeyConstraint("run_id", "nonce", name=op.f("pk_nonces")),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("client", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("bytes_up", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["rounds.run_id", "rounds.number"],
            name=op.f("fk_refusals_run_id_round"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refusals")),
    )
    op.create_index(op.f("ix_refusals_run_id_round"), "refusals", ["run_id", "round"])


def _create_artefacts() -> None:
    op.create_table(
        "artefacts",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('shard', 'update', 'aggregate', 'version', 'base', 'imported')",
            name=op.f("ck_artefacts_kind"),
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_artefacts")),
    )
    op.create_table(
        "lineage",
        sa.Column("child", sa.String(length=71), nullable=False),
        sa.Column("parent", sa.String(length=71), nullable=False),
        sa.Column("relation", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["child"], ["artefacts.digest"], name=op.f("fk_lineage_child")),
        sa.ForeignKeyConstraint(["parent"], ["artefacts.digest"], name=op.f("fk_lineage_parent")),
        sa.PrimaryKeyConstraint("child", "parent", "relation", name=op.f("pk_lineage")),
    )
    op.create_index(op.f("ix_lineage_parent"), "lineage", ["parent"])
    op.create_table(
        "adapters",
        sa.Column("digest", sa.String(length=71), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("base", sa.Text(), nullable=False),
        sa.Column("base_digest", sa.String(length=71), nullable=True),
        sa.Column("task", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("tensors_digest", sa.String(length=71), nullable=False),
        sa.Column("configuration_digest", sa.String(length=71), nullable=False),
        sa.Column("manifest_digest", sa.String(length=71), nullable=False),
        sa.Column("run_id", sa.String(length=64), nullable=True),
        sa.Column("round", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["artefacts.digest"], name=op.f("fk_adapters_digest")),
        sa.ForeignKeyConstraint(
            ["run_id", "round"],
            ["rounds.run_id", "rounds.number"],
            name=op.f("fk_adapters_run_id_round"),
        ),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", name=op.f("uq_adapters_name")),
    )


def _create_client_tables() -> None:
    op.create_table(
        "privacy_spends",
        sa.Column("scope", sa.String(length=255), nullable=False),
        sa.Column("client", sa.String(length=255), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("unit", sa.String(length=16), nullable=False),
        sa.Column("noise_multiplier", sa.Double(), nullable=False),
        sa.Column("sample_rate", sa.Double(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("max_grad_norm", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "client", "round", name=op.f("pk_privacy_spends")),
    )
    op.create_table(
        "client_states",
        sa.Column("run_id", sa.String(length=64), nullable=False),
        sa.Column("node_id", sa.String(length=20), nullable=False),
        sa.Column("round", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_client_states_run_id")),
        sa.PrimaryKeyConstraint("run_id", "node_id", "round", name=op.f("pk_client_states")),
    )
