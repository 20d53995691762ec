"""Opening, migrating, transactions, and the one line for whatever goes wrong."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_platform.registry import access_tables  # noqa: F401 - completes the schema
from intarsia_platform.registry import database as database_room
from intarsia_platform.registry.database import Database, insert_if_absent, open_database
from intarsia_platform.registry.tables import HEAD_REVISION, PrivacySpendTable, RunTable, Table
from postgresql_server import missing
from sqlalchemy import create_engine, func, insert, inspect, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

MIGRATIONS = Path(database_room.__file__).parent / "migrations"

SPEND = {
    "scope": "s",
    "client": "c",
    "round": 1,
    "unit": "example",
    "noise_multiplier": 1.0,
    "sample_rate": 0.1,
    "steps": 10,
    "delta": 1e-5,
    "max_grad_norm": 1.0,
}


def spends(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(PrivacySpendTable)).scalar_one()


def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/intarsia.db"


def test_migrations_lead_to_the_schema(database: Database) -> None:
    with database.begin() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Table.metadata) == []


def test_the_contract_also_runs_on_postgresql(request: pytest.FixtureRequest) -> None:
    if absent := missing():
        pytest.skip(f"{absent}: the contract ran on SQLite only")
    collected = {item.name for item in request.session.items}
    assert any("[postgresql]" in name for name in collected)


def test_migrations_make_the_same_tables_as_the_schema(tmp_path: Path) -> None:
    # compare_metadata passes over check constraints; the text of the tables does not.
    plain = create_engine("sqlite://")
    Table.metadata.create_all(plain)
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND tbl_name != :version"
    texts = []
    with open_database(sqlite_url(tmp_path)) as database, database.read() as migrated:
        for connection in (migrated, plain.connect()):
            rows = connection.exec_driver_sql(query, {"version": "alembic_version"})
            # A table that SQLite made anew has its name in quotes.
            plainly = {name: sql.replace(",", "").replace('"', "") for name, sql in rows}
            texts.append({name: sorted(sql.split()) for name, sql in plainly.items()})
    assert len(texts[0]) >= 10
    assert texts[0] == texts[1]


def test_a_database_of_the_first_schema_keeps_its_rows(tmp_path: Path) -> None:
    """The second migration makes the artefacts' table anew, and lineage points at it."""
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    older = create_engine(sqlite_url(tmp_path))
    with older.begin() as connection:
        settings.attributes["connection"] = connection
        command.upgrade(settings, "0001")
        connection.exec_driver_sql(
            "INSERT INTO artefacts (digest, kind, created_at, details) VALUES "
            "('sha256:1', 'shard', '2026-01-01', '{}'), ('sha256:2', 'version', '2026-01-01', '{}')"
        )
        connection.exec_driver_sql(
            "INSERT INTO lineage (child, parent, relation) VALUES ('sha256:2', 'sha256:1', 'of')"
        )
    older.dispose()
    with open_database(sqlite_url(tmp_path)) as database:
        with database.read() as connection:
            lineage = connection.exec_driver_sql("SELECT child, parent FROM lineage").fetchall()
            assert lineage == [("sha256:2", "sha256:1")]
            enforced = connection.exec_driver_sql("PRAGMA foreign_keys").scalar()
        assert enforced == 1
        with pytest.raises(IntegrityError), database.begin() as connection:
            connection.exec_driver_sql("DELETE FROM artefacts WHERE digest = 'sha256:1'")


def test_migrations_lead_back_and_forth(tmp_path: Path) -> None:
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    engine = create_engine(sqlite_url(tmp_path))
    names = []
    for step, revision in (
        (command.upgrade, "0001"),
        (command.upgrade, "0002"),
        (command.downgrade, "0001"),
        (command.upgrade, "0002"),
        (command.downgrade, "base"),
    ):
        with engine.begin() as connection:
            settings.attributes["connection"] = connection
            step(settings, revision)
            names.append(set(inspect(connection).get_table_names()))
    engine.dispose()
    assert names[0] == names[2] and names[1] == names[3] and names[4] == {"alembic_version"}
    assert names[1] - names[0] == {
        "access_state", "adapter_rights", "api_keys", "audit_entries", "groups", "policies"
    }  # fmt: skip


def test_the_named_head_is_the_newest_migration() -> None:
    settings = Config()
    settings.set_main_option("script_location", str(MIGRATIONS))
    settings.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(settings).get_heads() == [HEAD_REVISION]


def test_the_schema_compiles_for_postgresql() -> None:
    for table in Table.metadata.sorted_tables:
        assert str(CreateTable(table).compile(dialect=postgresql.dialect()))


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path)) as database, database.begin() as connection:
        connection.execute(insert(PrivacySpendTable).values(SPEND))
    with open_database(sqlite_url(tmp_path)) as database:
        assert spends(database) == 1


def test_opening_a_current_database_is_quick_and_loads_no_migration_code(tmp_path: Path) -> None:
    open_database(sqlite_url(tmp_path)).close()
    code = (
        "import sys, time\n"
        "from intarsia_platform.registry.database import open_database\n"
        "seconds = []\n"
        "for _ in range(5):\n"
        "    begin = time.perf_counter()\n"
        "    open_database(sys.argv[1]).close()\n"
        "    seconds.append(time.perf_counter() - begin)\n"
        "print(min(seconds), 'alembic' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sqlite_url(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=child_environment(),
    )
    seconds, loaded = done.stdout.split()
    assert float(seconds) < 0.05
    assert loaded == "False"


def test_opening_a_fresh_database_is_quick(tmp_path: Path) -> None:
    seconds = []
    for number in range(5):
        begin = time.perf_counter()
        open_database(f"sqlite:///{tmp_path}/{number}.db").close()
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.5


def test_sqlite_is_set_up_for_durability(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path)) as database, database.begin() as connection:
        read = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert read == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    with pytest.raises(KeyboardInterrupt), database.begin() as connection:
        connection.execute(insert(PrivacySpendTable).values(SPEND))
        raise KeyboardInterrupt
    assert spends(database) == 0


def test_insert_if_absent_keeps_the_first(database: Database) -> None:
    with database.begin() as connection:
        assert insert_if_absent(connection, PrivacySpendTable, SPEND)
        assert not insert_if_absent(connection, PrivacySpendTable, {**SPEND, "steps": 11})
        assert connection.execute(select(PrivacySpendTable.steps)).scalar_one() == 10


def test_a_contradicting_row_is_one_line(database: Database) -> None:
    with pytest.raises(IntegrityError) as caught, database.begin() as connection:
        connection.execute(insert(PrivacySpendTable).values(SPEND))
        connection.execute(insert(PrivacySpendTable).values(SPEND))
    assert "\n" not in str(caught.value)
    assert spends(database) == 0


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path), busy_seconds=0.05) as database:
        with database.begin() as writer:
            writer.execute(insert(PrivacySpendTable).values(SPEND))
            assert spends(database) == 0
        assert spends(database) == 1


def test_a_locked_database_is_one_line(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path), busy_seconds=0.05) as database:
        holder = sqlite3.connect(tmp_path / "intarsia.db", isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        try:
            words = r"intarsia\.db: database is locked; wait"
            with pytest.raises(StorageError, match=words), database.begin():
                pass
        finally:
            holder.close()
        with database.begin() as connection:
            connection.execute(insert(PrivacySpendTable).values(SPEND))


def test_a_full_disk_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    with open_database(sqlite_url(tmp_path)) as database:
        with pytest.raises(StorageError, match="full; free space"), database.begin() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            for number in range(1000):
                row = {**SPEND, "round": number, "client": "c" * 200}
                connection.execute(insert(PrivacySpendTable).values(row))
        assert spends(database) == 0


def test_a_read_only_database_is_one_line(tmp_path: Path) -> None:
    open_database(sqlite_url(tmp_path)).close()
    url = f"sqlite:///file:{tmp_path}/intarsia.db?mode=ro&uri=true"
    words = "readonly database; make it writable"
    with (
        open_database(url) as database,
        pytest.raises(StorageError, match=words),
        database.begin() as connection,
    ):
        connection.execute(insert(PrivacySpendTable).values(SPEND))


@pytest.mark.parametrize("damage", [b"garbage" * 1000, b"SQLite format 3\x00" + b"\xff" * 8000])
def test_a_damaged_database_is_one_line(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "intarsia.db").write_bytes(damage)
    with pytest.raises(StorageError) as caught:
        open_database(sqlite_url(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="unable to open database file; check that its folder"):
        open_database(f"sqlite:///{tmp_path}/none/intarsia.db")


def test_a_newer_schema_is_one_line(tmp_path: Path) -> None:
    open_database(sqlite_url(tmp_path)).close()
    with sqlite3.connect(tmp_path / "intarsia.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StorageError, match=r"9999.*use the newest Intarsia"):
        open_database(sqlite_url(tmp_path))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense with secret", "database URL: not a URL"),
        ("mysql://user:secret@host/name", "of kind mysql"),
        ("postgresql+nosuchdriver://user:secret@host/name", "database driver"),
    ],
)
def test_other_urls_are_bad_input_and_are_not_repeated(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        open_database(url)
    assert "secret" not in str(caught.value)


def test_processes_that_open_a_fresh_database_together(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from intarsia_platform.registry.database import open_database\n"
        "time.sleep(max(0.0, float(sys.argv[2]) - time.time()))\n"
        "open_database(sys.argv[1]).close()\n"
    )
    command = [sys.executable, "-c", code, sqlite_url(tmp_path), str(time.time() + 1.0)]
    children = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=child_environment())
        for _ in range(3)
    ]
    errors = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0] * 3, errors


def test_a_process_killed_while_migrating_leaves_a_database_that_opens(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from sqlalchemy import Engine, event\n"
        "from intarsia_platform.registry.database import open_database\n"
        "@event.listens_for(Engine, 'after_cursor_execute')\n"
        "def kill(connection, cursor, statement, *rest):\n"
        "    if 'CREATE TABLE lineage' in statement:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "open_database(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sqlite_url(tmp_path)], env=child_environment(), check=False
    )
    assert done.returncode == -signal.SIGKILL
    with open_database(sqlite_url(tmp_path)) as database, database.read() as connection:
        assert RunTable.__tablename__ in inspect(connection).get_table_names()


def child_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
