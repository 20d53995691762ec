"""Policy sets in force, one after another."""

import pytest
from intarsia_client.errors import InputError, IntegrityError
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.policy import PolicySet, PolicyStore
from intarsia_platform.registry.access_tables import PolicyTable
from intarsia_platform.registry.epoch import read_epoch
from sqlalchemy import update

OTHER = "forbid(principal, action, resource);"


@pytest.fixture
def database(any_database):
    return any_database


def epoch(database) -> int:
    with database.read() as connection:
        return read_epoch(connection)


def test_there_is_none_at_first(database):
    store = PolicyStore(database)
    assert store.current() is None and store.history() == () and epoch(database) == 0


def test_the_newest_is_in_force_for_everybody(database, policies_text, entities_text):
    one, two = PolicyStore(database), PolicyStore(database)
    first = one.set(policies_text, entities_text)
    assert two.current() == first == PolicySet(policies_text, entities_text)
    second = two.set(OTHER, entities_text)
    assert one.current() == second and epoch(database) == 2
    assert [(row.number, row.version) for row in one.history()] == [
        (1, first.version),
        (2, second.version),
    ]
    again = one.set(policies_text, entities_text)
    assert two.current() == again == first and epoch(database) == 3


def test_every_change_is_in_the_audit_log(database, policies_text, entities_text):
    version = PolicyStore(database).set(policies_text, entities_text).version
    (entry,) = AuditLog(database).entries()
    assert dict(entry.event) == {
        "action": "policy-set", "policy_version": version, "number": 1, "policies": 3, "users": 4,
        "epoch": 1,
    }  # fmt: skip


def test_what_is_not_valid_changes_nothing(database, policies_text, entities_text):
    store = PolicyStore(database)
    before = store.set(policies_text, entities_text)
    for texts in (("permit(", entities_text), (policies_text, "{}")):
        with pytest.raises(InputError):
            store.set(*texts)
    assert store.current() == before and epoch(database) == 1 and len(store.history()) == 1


def test_texts_that_were_altered_decide_nothing(database, policies_text, entities_text):
    PolicyStore(database).set(policies_text, entities_text)
    with database.begin() as connection:
        connection.execute(
            update(PolicyTable).values(policies="permit(principal,action,resource);")
        )
    with pytest.raises(IntegrityError, match="policy set 1: is not what was set"):
        PolicyStore(database).current()
