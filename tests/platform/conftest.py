"""Databases of each kind that the platform runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgresql_server
import pytest
from intarsia_platform.registry.database import Database, open_database


@pytest.fixture(scope="session")
def postgresql_database() -> Iterator[postgresql_server.EmptyDatabase]:
    """A database on a PostgreSQL server that lives as long as the session."""
    with postgresql_server.server() as url:
        database = postgresql_server.EmptyDatabase(url)
        yield database
        database.close()


@pytest.fixture(params=["sqlite", *([] if postgresql_server.missing() else ["postgresql"])])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database at the newest schema: of SQLite, and of PostgreSQL where there is one."""
    if request.param == "sqlite":
        with open_database(f"sqlite:///{tmp_path}/intarsia.db") as opened:
            yield opened
        return
    database: postgresql_server.EmptyDatabase = request.getfixturevalue("postgresql_database")
    with database.opened() as opened:
        yield opened
