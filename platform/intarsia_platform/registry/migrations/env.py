"""Alembic's entry: runs the migrations inside the transaction that ``open_database`` gave."""

from __future__ import annotations

from alembic import context

from intarsia_platform.registry import access_tables  # noqa: F401 - completes the schema
from intarsia_platform.registry.tables import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    render_as_batch=True,
)
context.run_migrations()
