"""Databases for the registry's tests: SQLite always, PostgreSQL where a URL is given."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from intarsia_platform.registry.database import Database, open_database
from sqlalchemy import create_engine, make_url, text

POSTGRESQL = "INTARSIA_TEST_POSTGRESQL_URL"


@pytest.fixture(params=["sqlite", *(["postgresql"] if POSTGRESQL in os.environ else [])])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database at the newest schema, one of each kind."""
    if request.param == "sqlite":
        with open_database(f"sqlite:///{tmp_path}/intarsia.db") as opened:
            yield opened
        return
    url, schema = make_url(os.environ[POSTGRESQL]), f"intarsia_test_{uuid.uuid4().hex}"
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    inside = url.update_query_dict({"options": f"-csearch_path={schema}"})
    try:
        with open_database(inside.render_as_string(hide_password=False)) as opened:
            yield opened
    finally:
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
        engine.dispose()
