"""One database: SQLite in the home by default, PostgreSQL by URL, migrated when it is opened.

Formal guarantee: what :meth:`Database.begin` wrote is either all there or not there at all, and
once its block has ended it survives the death of the process and, with SQLite's
``synchronous=FULL`` and PostgreSQL's default settings, a power cut.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia_client.errors import InputError, IntegrityError, StorageError
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
    StatementError,
)
from sqlalchemy.exc import IntegrityError as ConstraintError

from intarsia_platform.registry.tables import HEAD_REVISION, Table

Row = Mapping[str, Any]

_MIGRATIONS = Path(__file__).parent / "migrations"
# A gateway's threads ask at once; what is opened beyond these is closed after each use.
_KEPT_CONNECTIONS = 16
_REMEDIES = (
    ("locked", "wait for the other process that uses it, or stop that process"),
    ("busy", "wait for the other process that uses it, or stop that process"),
    ("full", "free space on its disk"),
    ("readonly", "make it writable or choose another home"),
    ("read-only", "make it writable or choose another home"),
    ("malformed", "restore it from a backup"),
    ("not a database", "restore it from a backup, or choose another home"),
    ("unable to open", "check that its folder exists and is writable"),
)


class Database:
    """An open database at the newest schema; made by :func:`open_database`.

    Safe to share between threads. Not to be carried over a fork: open it again there.

    Args:
        engine: The engine, its connections already set up.
    """

    def __init__(self, engine: Engine) -> None:
        """Keep the engine."""
        self._engine = engine

    @property
    def name(self) -> str:
        """What a person knows it by: the file, or the URL with its password hidden."""
        url = self._engine.url
        is_file = url.get_backend_name() == "sqlite" and url.database
        return str(url.database) if is_file else url.render_as_string(hide_password=True)

    @property
    def engine(self) -> Engine:
        """The SQLAlchemy engine underneath."""
        return self._engine

    @contextlib.contextmanager
    def begin(self) -> Iterator[Connection]:
        """Open a transaction that may write; on SQLite it is the only one at its time.

        Yields:
            The connection; committed when the block ends, rolled back when it raises.

        Raises:
            StorageError: If the database is locked, full, read-only, damaged or out of reach.
            IntegrityError: If a row contradicts another one.
        """
        with _translated(self.name), self._engine.begin() as connection:
            yield connection

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads; it waits for no writer.

        Yields:
            The connection.

        Raises:
            StorageError: As :meth:`begin`.
        """
        with _translated(self.name), self._engine.connect() as connection:
            reading = connection.execution_options(intarsia_reading=True)
            with reading.begin():
                yield reading

    def close(self) -> None:
        """Close every pooled connection."""
        self._engine.dispose()

    def __enter__(self) -> Database:
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close it."""
        self.close()


def open_database(url: str, *, busy_seconds: float = 30.0) -> Database:
    """Open a database and bring its schema to the newest revision.

    Args:
        url: An SQLAlchemy URL of SQLite or PostgreSQL.
        busy_seconds: How long to wait for another process's transaction.

    Returns:
        The database.

    Raises:
        InputError: If the URL is of another kind, or its driver is not installed.
        StorageError: If it cannot be opened, or was written by a newer Intarsia.
    """
    engine = _engine(url, busy_seconds)
    database = Database(engine)
    try:
        with database.read() as connection:
            revision = _revision(connection)
        if revision != HEAD_REVISION:
            _migrate(database)
    except BaseException:
        engine.dispose()
        raise
    return database


def insert_if_absent(connection: Connection, table: type[Table], row: Row) -> bool:
    """Insert one row unless one with its key is there.

    Args:
        connection: An open transaction.
        table: The table.
        row: From column name to value.

    Returns:
        Whether it was inserted.
    """
    # PostgreSQL's driver counts no rows of a statement that may return some; what comes back tells.
    statement = _insert(connection)(table).values(row).on_conflict_do_nothing()
    returned = connection.execute(statement.returning(*inspect(table).primary_key))
    return returned.first() is not None


def insert_all_if_absent(connection: Connection, table: type[Table], rows: Sequence[Row]) -> None:
    """Insert each row unless one with its key is there.

    Args:
        connection: An open transaction.
        table: The table.
        rows: Rows with the same columns; may be empty.
    """
    if rows:
        statement = _insert(connection)(table).on_conflict_do_nothing()
        connection.execute(statement, [dict(row) for row in rows])


def insert_or_replace(
    connection: Connection, table: type[Table], rows: Sequence[Row], *, value: str
) -> None:
    """Insert each row, or set its ``value`` column where its key is there.

    Args:
        connection: An open transaction.
        table: The table.
        rows: Rows with the same columns; may be empty.
        value: The column to replace.
    """
    if rows:
        insert = _insert(connection)(table)
        statement = insert.on_conflict_do_update(
            index_elements=list(inspect(table).primary_key),
            set_={value: insert.excluded[value]},
        )
        connection.execute(statement, [dict(row) for row in rows])


def serialise(connection: Connection, purpose: str) -> None:
    """Let no other transaction pass the same point until this one ends.

    SQLite has only one writer anyway; PostgreSQL is asked for an advisory lock.

    Args:
        connection: An open transaction of :meth:`Database.begin`.
        purpose: What is serialised.
    """
    if connection.dialect.name == "postgresql":
        key = zlib.crc32(purpose.encode())
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def _insert(connection: Connection) -> Any:
    return postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert


def _engine(url: str, busy_seconds: float) -> Engine:
    try:
        parsed = make_url(url)
        kind = parsed.get_backend_name()
        if kind == "sqlite":
            return _sqlite_engine(parsed, busy_seconds)
        if kind == "postgresql":
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            return create_engine(parsed, pool_pre_ping=True, pool_size=_KEPT_CONNECTIONS)
    except (ModuleNotFoundError, NoSuchModuleError) as error:
        raise InputError("database driver", error, "install it beside Intarsia") from None
    except ArgumentError:
        # The text may hold a password; it is not repeated.
        raise InputError(
            "database URL", "not a URL", "write it as sqlite:///path or postgresql://host/name"
        ) from None
    raise InputError("database URL", f"of kind {kind}", "use SQLite or PostgreSQL")


def _sqlite_engine(url: URL, busy_seconds: float) -> Engine:
    # isolation_level None leaves every BEGIN to the listener below; sqlite3's own would begin
    # late, after the first read, and commit before each change of the schema.
    engine = create_engine(
        url,
        connect_args={"timeout": busy_seconds, "isolation_level": None},
        pool_size=_KEPT_CONNECTIONS,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")
        _use_write_ahead_log(connection, busy_seconds)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get("intarsia_migrating", False):
            # A table can only be made anew while nothing checks what points at it.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        reading = connection.get_execution_options().get("intarsia_reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection, busy_seconds: float) -> None:
    """Switch the file to its write-ahead log, once in its life.

    SQLite's busy timeout does not cover this switch: where two processes open a fresh file
    together, one is told at once that it is locked and has to look again.
    """
    deadline = time.monotonic() + busy_seconds
    while connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _migrate(database: Database) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    settings = Config()
    settings.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    with _migrating(database) as connection:
        serialise(connection, "migrations")
        settings.attributes["connection"] = connection
        try:
            command.upgrade(settings, "head")
        except CommandError as error:
            raise StorageError(
                f"database {database.name}",
                f"its schema is not known here ({error})",
                "use the newest Intarsia that has opened it",
            ) from None


@contextlib.contextmanager
def _migrating(database: Database) -> Iterator[Connection]:
    """One transaction in which SQLite checks foreign keys at the end, not in between."""
    with _translated(database.name), database.engine.connect() as plain:
        connection = plain.execution_options(intarsia_migrating=True)
        try:
            with connection.begin():
                yield connection
                if connection.dialect.name == "sqlite":
                    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchone()
                    if broken is not None:
                        raise IntegrityError(
                            f"database {database.name}",
                            f"a row of {broken[0]} points at nothing in {broken[2]}",
                            "restore it from a backup",
                        )
        finally:
            # The pool would hand out a connection that checks nothing.
            connection.invalidate()


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turn what the driver raises into one line for a person."""
    try:
        yield
    except ConstraintError as error:
        raise IntegrityError(
            f"database {name}",
            _first_line(error.orig),
            "run the command again; report it if it stays",
        ) from error
    except (SQLAlchemyError, sqlite3.Error) as error:
        if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
            raise  # A value that no column takes: a mistake of ours, not of the storage.
        words = _first_line(getattr(error, "orig", None) or error)
        remedies = (remedy for word, remedy in _REMEDIES if word in words.lower())
        remedy = next(remedies, "check that it is reachable and writable")
        raise StorageError(f"database {name}", words, remedy) from error


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]
