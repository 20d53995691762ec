"""Databases of each kind that the platform runs on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import postgresql_server
import pytest
from intarsia_platform.registry.database import Database, open_database


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[postgresql_server.Databases]:
    """Databases on a PostgreSQL server that lives as long as the session."""
    with postgresql_server.server() as url:
        databases = postgresql_server.Databases(url)
        yield databases
        databases.close()


@pytest.fixture(params=["sqlite", *([] if postgresql_server.missing() else ["postgresql"])])
def any_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """An empty database at the newest schema: of SQLite, and of PostgreSQL where there is one."""
    if request.param == "sqlite":
        with open_database(f"sqlite:///{tmp_path}/intarsia.db") as opened:
            yield opened
        return
    databases: postgresql_server.Databases = request.getfixturevalue("postgresql_databases")
    with databases.empty() as url, open_database(url) as opened:
        yield opened
