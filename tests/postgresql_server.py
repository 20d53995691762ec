"""A PostgreSQL server of the tests' own, where its programs and a driver are installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from intarsia_platform.registry.database import Database, open_database
from sqlalchemy import URL, create_engine, inspect, make_url, text

GIVEN = "INTARSIA_TEST_POSTGRESQL_URL"
# The server refuses to run as root.
_UNPRIVILEGED = ("postgres", "nobody")


def missing() -> str:
    """What keeps the tests from PostgreSQL; empty where nothing does."""
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if GIVEN in os.environ or (shutil.which("initdb") and shutil.which("pg_ctl")):
        return ""
    return f"neither {GIVEN} nor initdb and pg_ctl are there"


@contextlib.contextmanager
def server() -> Iterator[URL]:
    """A server, the given one or one that lives as long as the context.

    Yields:
        The URL of one of its databases.
    """
    if GIVEN in os.environ:
        yield make_url(os.environ[GIVEN])
        return
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = None
    if os.geteuid() == 0:
        user = next(name for name in _UNPRIVILEGED if _exists(name))
        shutil.chown(folder, user)
    data = folder / "data"
    # Durability is the server's own affair; what the tests look at are transactions.
    words = f"-k {folder} -c listen_addresses= -c fsync=off -c full_page_writes=off"

    def run(*command: str | Path) -> None:
        subprocess.run(command, check=True, user=user, cwd=folder, capture_output=True)

    try:
        run("initdb", "-D", data, "-U", "intarsia", "--auth=trust", "--no-sync", "-E", "UTF8")
        run("pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", words, "start")
        try:
            yield make_url(f"postgresql+psycopg://intarsia@/postgres?host={folder}")
        finally:
            run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class EmptyDatabase:
    """A database at the newest schema, migrated once and emptied after each use.

    Args:
        url: A database of the server that it is made on.
    """

    def __init__(self, url: URL) -> None:
        self._engine = create_engine(url, isolation_level="AUTOCOMMIT")
        self._name = f"intarsia_test_{uuid.uuid4().hex}"
        self._execute(f"CREATE DATABASE {self._name}")
        self._url = url.set(database=self._name).render_as_string(hide_password=False)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Database]:
        """The database, empty.

        Yields:
            It, open.
        """
        with open_database(self._url) as database:
            yield database
            with database.begin() as connection:
                tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
                connection.execute(text(f"TRUNCATE {', '.join(sorted(tables))} CASCADE"))

    def close(self) -> None:
        """Remove it."""
        self._execute(f"DROP DATABASE {self._name} WITH (FORCE)")
        self._engine.dispose()

    def _execute(self, statement: str) -> None:
        with self._engine.connect() as connection:
            connection.execute(text(statement))


def _exists(user: str) -> bool:
    with contextlib.suppress(KeyError):
        return bool(pwd.getpwnam(user))
    return False
