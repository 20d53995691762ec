"""``intarsia keys``."""

import json
import re
from pathlib import Path

import pytest
from intarsia_client.errors import AccessError
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.registry.database import open_database

HOME = ("--home", "home", "keys")


@pytest.fixture
def made(intarsia):
    ended = intarsia(*HOME, "create", "ann", "--days", "1.5", "--json", "-")
    assert (ended.code, ended.err) == (0, "")
    return json.loads(ended.out)


def verified(key: str) -> str:
    with open_database(f"sqlite:///{Path('home/intarsia.db').absolute()}") as database:
        return ApiKeys(database).verify(key)


def test_a_key_is_shown_once_and_works(intarsia, made):
    assert re.fullmatch(rf"ik-{made['id']}-[0-9a-f]{{64}}", made["key"])
    assert made["principal"] == verified(made["key"]) == "ann"
    shown = intarsia(*HOME, "create", "bob").out
    assert "keep the key now" in shown and verified(shown.split()[5]) == "bob"
    listed = intarsia(*HOME, "list").out
    assert made["id"] in listed and made["key"][-64:] not in listed


def test_the_list_says_how_they_stand(intarsia, made):
    other = json.loads(intarsia(*HOME, "create", "bob", "--json", "-").out)
    revoked = json.loads(intarsia(*HOME, "revoke", other["id"], "--json", "-").out)
    assert revoked["state"] == "revoked"
    keys = json.loads(intarsia(*HOME, "list", "--json", "-").out)["keys"]
    assert {key["id"]: key["state"] for key in keys} == {
        made["id"]: "holds",
        other["id"]: "revoked",
    }
    assert [key["expires_at"] is None for key in keys] == [False, True]
    with pytest.raises(AccessError):
        verified(other["key"])


def test_what_cannot_be_is_said(intarsia, made):
    ended = intarsia(*HOME, "revoke", "none")
    assert ended.code == 2 and ended.line.endswith("key: none; see `intarsia keys list`")
    for days in ("0", "-1", "nan", "1e12", "1e300"):
        ended = intarsia(*HOME, "create", "ann", f"--days={days}")
        assert ended.code == 2 and ended.out == "", days
    assert intarsia(*HOME, "create", "").code == 2
    assert intarsia("--home", "nowhere", "keys", "list").code == 2
