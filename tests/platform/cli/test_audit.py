"""``intarsia audit``."""

import json
import sqlite3

import pytest

HOME = ("--home", "home")


@pytest.fixture
def entries(intarsia):
    """Three entries, made by commands."""
    for name in ("ann", "bob"):
        assert intarsia(*HOME, "keys", "create", name).code == 0
    key_id = json.loads(intarsia(*HOME, "keys", "list", "--json", "-").out)["keys"][0]["id"]
    assert intarsia(*HOME, "keys", "revoke", key_id).code == 0
    return json.loads(intarsia(*HOME, "audit", "list", "--json", "-").out)["entries"]


def alter(statement: str) -> None:
    with sqlite3.connect("home/intarsia.db") as connection:
        assert connection.execute(statement).rowcount > 0


def test_what_was_done_is_listed(intarsia, entries):
    assert [one["sequence"] for one in entries] == [1, 2, 3]
    assert [one["event"]["action"] for one in entries] == ["key-create"] * 2 + ["key-revoke"]
    shown = intarsia(*HOME, "audit", "list", "--last", "2").out
    assert "principal bob" in shown and "principal ann" not in shown and "key-revoke" in shown


def test_the_chain_is_verified(intarsia, entries):
    ended = intarsia(*HOME, "audit", "verify", "--json", "-")
    assert ended.code == 0
    assert json.loads(ended.out) == {"entries": 3, "head": entries[-1]["digest"]}
    assert entries[-1]["digest"] in intarsia(*HOME, "audit", "verify").out
    assert intarsia(*HOME, "audit", "verify", "--head", entries[1]["digest"]).code == 0


def test_an_altered_entry_is_named(intarsia, entries):
    alter("UPDATE audit_entries SET event = replace(event, 'bob', 'eve') WHERE sequence = 2")
    ended = intarsia(*HOME, "audit", "verify")
    assert (ended.code, ended.out) == (6, "") and "audit log, entry 2:" in ended.line


def test_an_end_that_was_cut_off_is_found_by_a_noted_head(intarsia, entries):
    alter("DELETE FROM audit_entries WHERE sequence = 3")
    assert intarsia(*HOME, "audit", "verify").code == 0
    ended = intarsia(*HOME, "audit", "verify", "--head", entries[-1]["digest"])
    assert ended.code == 6 and "its end was cut off" in ended.line
