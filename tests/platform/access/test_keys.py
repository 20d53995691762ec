"""API keys: what is stored, what is told, when they hold."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intarsia_client.errors import AccessError, InputError
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.registry.access_tables import ApiKeyTable
from intarsia_platform.registry.epoch import read_epoch
from sqlalchemy import select

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
names = st.text(min_size=1, max_size=30).filter(str.isprintable)


@pytest.fixture
def database(any_database):
    return any_database


class Clock:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(database, clock):
    return ApiKeys(database, clock=clock)


@given(names, st.integers(0, 89), st.sampled_from("0123456789abcdefgG-"))
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_key_round_trips_and_none_beside_it_does(keys, principal, place, sign):
    key_id, text = keys.create(principal)
    assert keys.verify(text) == principal
    assert keys.identify(text).credential == key_id
    place %= len(text)
    other = text[:place] + sign + text[place + 1 :]
    if other != text:
        with pytest.raises(AccessError, match="credential: is not valid here"):
            keys.verify(other)


def test_no_secret_is_stored_or_logged(database, keys):
    key_id, text = keys.create("ann")
    secret = text.removeprefix(f"ik-{key_id}-")
    assert len(secret) == 64 and keys.create("ann")[1] != text
    with database.read() as connection:
        stored = str(connection.execute(select(ApiKeyTable)).all())
    assert secret not in stored and secret not in str(AuditLog(database).entries())
    assert secret not in repr(keys.list())


@pytest.mark.parametrize("text", ["", "ik-", "ik-00-00", "x" * 10_000, "ik-\u0660" * 3, "\ud800"])
def test_whatever_is_wrong_the_words_are_the_same(keys, clock, text):
    revoked, expired = keys.create("ann"), keys.create("ann", DAY)
    keys.revoke(revoked[0])
    clock.now = NOW + DAY
    said = set()
    for one in (revoked[1], expired[1], f"ik-{'0' * 16}-{'0' * 64}", f"{expired[1]}\n", text):
        with pytest.raises(AccessError) as caught:
            keys.verify(one)
        said.add(str(caught.value))
    assert len(said) == 1


def test_a_key_ends_with_its_lifetime(keys, clock):
    key_id, text = keys.create("ann", DAY)
    clock.now = NOW + DAY - timedelta(microseconds=1)
    assert keys.verify(text) == "ann"
    assert keys.standing(key_id, "ann", clock.now).expires_at == NOW + DAY
    assert keys.standing(key_id, "bob", clock.now) is None
    assert keys.standing(key_id, "ann", NOW + DAY) is None
    for lifetime in (timedelta(0), -DAY, timedelta.max):
        with pytest.raises(InputError, match="key lifetime"):
            keys.create("ann", lifetime)


def test_a_revoked_key_ends_at_once_and_raises_the_epoch(database, keys, clock):
    first, second = keys.create("ann"), keys.create("bob")
    clock.now = NOW + DAY
    assert keys.revoke(first[0]).revoked_at == NOW + DAY
    clock.now = NOW + 2 * DAY
    assert keys.revoke(first[0]).revoked_at == NOW + DAY
    with database.read() as connection:
        assert read_epoch(connection) == 1
    with pytest.raises(AccessError):
        keys.verify(first[1])
    assert keys.verify(second[1]) == "bob"
    assert [(key.id, key.revoked_at is None) for key in keys.list()] == [
        (key_id, key_id == second[0]) for key_id, _ in sorted((first, second))
    ]
    with pytest.raises(InputError, match="intarsia keys list"):
        keys.revoke("none")
    actions = [entry.event["action"] for entry in AuditLog(database).entries()]
    assert actions == ["key-create", "key-create", "key-revoke"]


@pytest.mark.parametrize("principal", ["", "a\nb", "x" * 256, "\ud800"])
def test_a_principal_is_a_word(keys, principal):
    with pytest.raises(InputError, match="principal"):
        keys.create(principal)
