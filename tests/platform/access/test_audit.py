"""A chain in which no entry can be changed unseen, and what two writers make of it."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError, IntegrityError, StorageError
from intarsia_platform.access import audit
from intarsia_platform.access.audit import BEGINNING, AuditLog, append_entry
from intarsia_platform.registry.access_tables import AuditTable
from intarsia_platform.registry.database import open_database
from sqlalchemy import delete, event, insert, select, text, update

COUNT = 7

PROGRAM = """
import sys
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.registry.database import open_database
with open_database(sys.argv[1]) as database:
    log = AuditLog(database)
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(12):
        log.append({"action": "ask", "actor": sys.argv[2], "number": number})
"""


@pytest.fixture
def database(any_database):
    return any_database


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A log of seven entries; whoever alters it puts it back. It need not survive a power cut."""
    with open_database(f"sqlite:///{tmp_path_factory.mktemp('audit')}/a.db") as database:
        database.engine.dispose()
        event.listen(
            database.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF")
        )
        log = AuditLog(database)
        for number in range(COUNT):
            log.append({"action": "ask", "principal": f"p{number}", "weight": number / 7})
        yield database


def rows_of(database):
    with database.read() as connection:
        return [row._asdict() for row in connection.execute(select(AuditTable))]


def put(database, rows):
    with database.begin() as connection:
        connection.execute(delete(AuditTable))
        for row in rows:
            connection.execute(insert(AuditTable).values(**row))


def first_bad(database, head=None) -> str:
    with pytest.raises(IntegrityError) as caught:
        AuditLog(database).verify(head)
    return str(caught.value)


def test_an_empty_log_holds(database):
    log = AuditLog(database)
    assert log.verify() == log.verify(BEGINNING) == 0 and log.entries() == ()
    assert log.verified_head() == (0, BEGINNING)


def test_entries_are_chained(database):
    log = AuditLog(database)
    first = log.append({"action": "ask", "used": [{"adapter": "sha256:a", "weight": 0.5}]})
    second = log.append({"action": "ask", "principal": "ann", "errors": [], "cache": None})
    assert log.entries() == (first, second) and log.entries(last=1) == (second,)
    assert (first.sequence, first.previous, second.previous) == (1, BEGINNING, first.digest)
    assert log.verified_head(first.digest) == (2, second.digest)
    with pytest.raises(InputError):
        log.entries(last=-1)


def test_an_entry_is_written_with_the_deed_or_not_at_all(database):
    with pytest.raises(ZeroDivisionError), database.begin() as connection:
        append_entry(connection, {"action": "key-create"})
        raise ZeroDivisionError
    assert AuditLog(database).verify() == 0


@pytest.mark.parametrize(
    "told",
    [
        {"prompt": "what is my salary"},
        {"used": [{"text": "x"}]},
        {"action": "x" * 301},
        {"action": "a\nb"},
        {"action": "\ud800"},
        {"seconds": float("nan")},
        {"action": b"bytes"},
        {"labels": ["x" * 300] * 300},
    ],
    ids=lambda told: next(iter(told)),
)
def test_an_event_holds_no_text(database, told):
    with pytest.raises(InputError, match="audit event"):
        AuditLog(database).append(told)
    assert AuditLog(database).verify() == 0


@given(
    st.integers(1, COUNT),
    st.sampled_from(["event", "created_at", "previous", "digest", "sequence"]),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_a_change_of_any_entry_is_found_and_named(written, number, column, data):
    rows = rows_of(written)
    old = rows[number - 1]
    digits = st.text("0123456789abcdef", min_size=64, max_size=64).map("sha256:{}".format)
    kinds = {
        "event": st.dictionaries(st.sampled_from(["action", "principal"]), st.text(max_size=3)),
        "created_at": st.just(old["created_at"].replace(year=1999)),
        "previous": digits,
        "digest": digits,
        "sequence": st.sampled_from([-1, 0, COUNT + 1, COUNT + 5]),
    }
    value = data.draw(kinds[column].filter(lambda one: one != old[column]))
    try:
        put(written, [{**row, column: value} if row is old else row for row in rows])
        expected = 1 if column == "sequence" and value < 1 else number
        moved_up = column == "sequence" and number == COUNT and value == COUNT + 1
        assert f"entry {COUNT if moved_up else expected}:" in first_bad(written)
    finally:
        put(written, rows)
    assert AuditLog(written).verify() == COUNT


@given(st.sets(st.integers(1, COUNT), min_size=1, max_size=COUNT - 1), st.booleans())
@settings(deadline=None, max_examples=40)
def test_entries_taken_out_are_found_unless_they_were_the_last_ones(written, taken, renumbered):
    rows = rows_of(written)
    left = [row for row in rows if row["sequence"] not in taken]
    if renumbered:
        left = [{**row, "sequence": number} for number, row in enumerate(left, start=1)]
    was_the_end = (
        max(left, key=lambda row: row["sequence"])["digest"] == rows[len(left) - 1]["digest"]
    )
    try:
        put(written, left)
        if was_the_end:
            # Nothing in the chain tells; a head that was noted elsewhere does.
            assert AuditLog(written).verify() == len(left)
            assert AuditLog(written).verify(rows[len(left) - 1]["digest"]) == len(left)
        else:
            assert f"entry {min(taken)}:" in first_bad(written)
        if COUNT in taken:
            assert first_bad(written, rows[-1]["digest"])
    finally:
        put(written, rows)


def test_a_chain_made_anew_is_found_by_a_head_from_before(database):
    log = AuditLog(database)
    head = [log.append({"action": "ask", "principal": name}) for name in ("ann", "bob")][-1].digest
    with database.begin() as connection:
        connection.execute(delete(AuditTable))
        for name in ("ann", "eve"):
            append_entry(connection, {"action": "ask", "principal": name})
    assert log.verify() == 2
    assert f"has no entry {head}" in first_bad(database, head)


@pytest.mark.parametrize(
    ("column", "value"),
    [("event", "{"), ("event", b"\xff"), ("created_at", "yesterday"), ("sequence", "second")],
)
def test_what_cannot_be_read_is_found_too(database, column, value):
    log = AuditLog(database)
    for _ in range(3):
        log.append({"action": "ask"})
    statement = text(f"UPDATE audit_entries SET {column} = :value WHERE sequence = 2")  # noqa: S608
    if (column, database.engine.dialect.name) == ("sequence", "postgresql"):
        # Its columns take nothing of another type.
        with pytest.raises(StorageError), database.begin() as connection:
            connection.execute(statement, {"value": value})
        return
    with database.begin() as connection:
        connection.execute(statement, {"value": value})
    assert "entry 2:" in first_bad(database)


def test_the_exact_text_is_covered(database):
    log = AuditLog(database)
    log.append({"action": "ask", "number": 1})
    with database.begin() as connection:
        spaced = json.dumps({"action": "ask", "number": 1})
        connection.execute(text("UPDATE audit_entries SET event = :value"), {"value": spaced})
    assert "entry 1:" in first_bad(database)


def test_a_long_log_is_read_in_pages(database, monkeypatch):
    monkeypatch.setattr(audit, "_PAGE", 3)
    log = AuditLog(database)
    with database.begin() as connection:
        for number in range(9):
            append_entry(connection, {"action": "ask", "number": number})
    assert log.verify() == 9
    with database.begin() as connection:
        connection.execute(update(AuditTable).where(AuditTable.sequence == 7).values(previous="x"))
    assert "entry 7:" in first_bad(database)


def test_two_processes_write_one_chain(database):
    url = database.engine.url.render_as_string(hide_password=False)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    for process in started:
        assert process.stdout.readline() == "ready\n"
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    assert [process.wait(timeout=60) for process in started] == [0, 0]
    log = AuditLog(database)
    assert log.verify() == 24
    for name in ("one", "two"):
        own = [one.event["number"] for one in log.entries() if one.event["actor"] == name]
        assert own == list(range(12))
