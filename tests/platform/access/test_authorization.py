"""From rights to tickets and back: what ends a right ends what runs under it."""

import dataclasses
import threading
from datetime import UTC, datetime, timedelta

import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.ticket import TicketMint
from intarsia_platform.registry.access_tables import AdapterRightsTable
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.tables import AdapterTable
from sqlalchemy import delete, event

NOW = datetime(2030, 1, 1, tzinfo=UTC)
MINT = TicketMint(b"s" * 32)


class Clock:
    now = NOW.timestamp()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authorizer(database, clock):
    return Authorizer(database, MINT, clock=clock)


@pytest.fixture
def adapters(database, add_adapter, policies_text, entities_text):
    """Finance, legal and sales, with policies for four principals."""
    PolicyStore(database).set(policies_text, entities_text)
    return {name: add_adapter(name, name) for name in ("finance", "legal", "sales")}


def set_policies(database, policies, entities):
    PolicyStore(database).set(policies, entities)


def remove(database, digest):
    with database.begin() as connection:
        rights = AdapterRightsTable.digest == digest
        connection.execute(delete(AdapterRightsTable).where(rights))
        connection.execute(delete(AdapterTable).where(AdapterTable.digest == digest))
        bump(connection)


def test_a_ticket_grants_what_the_policies_allow(authorizer, adapters):
    ticket = authorizer.authorize("ann")
    assert {one.name for one in ticket.adapters} == {"finance", "legal"}
    assert ticket.apart == {tuple(sorted((adapters["finance"], adapters["legal"])))}
    assert ticket.named("finance").labels == ("finance",)
    assert (ticket.epoch, ticket.issued_at) == (1, NOW.timestamp())
    assert ticket.expires_at == NOW.timestamp() + 300
    assert authorizer.authorize("bob").digests == (adapters["sales"],)
    assert authorizer.authorize("auditor").adapters == ()
    assert len(authorizer.authorize("auditor", "audit").adapters) == 3


def test_unknown_and_forbidden_have_the_same_words(authorizer, adapters):
    with pytest.raises(AccessError) as unknown:
        authorizer.authorize("zoe")
    assert str(unknown.value) == str(unknown.value).replace("zoe", "zoe")
    ticket = authorizer.authorize("bob")
    lines = []
    for name in ("finance", "nothing"):
        with pytest.raises(AccessError) as caught:
            ticket.named(name)
        lines.append(str(caught.value).replace(name, "NAME"))
    assert lines[0] == lines[1] == str(unknown.value).replace("principal zoe", "adapter NAME")


def test_without_policies_only_the_base_is_left(authorizer, add_adapter):
    add_adapter("finance", "finance")
    ticket = authorizer.authorize("anybody")
    assert ticket.adapters == () and ticket.policy_version == ""
    authorizer.admit(ticket)
    assert authorizer.standing(ticket, [])


def test_hiding_adding_or_removing_what_is_not_granted_changes_no_ticket(
    database, authorizer, adapters, add_adapter
):
    def seen():
        return dataclasses.replace(authorizer.authorize("bob"), id="", mac="", epoch=0)

    before = seen()
    secret = add_adapter("secret", "finance", "board")
    assert seen() == before
    remove(database, secret)
    remove(database, adapters["legal"])
    assert seen() == before


def test_a_ticket_ends_with_the_first_of_its_adapters(database, authorizer, adapters, add_adapter):
    add_adapter("soon", "sales", expires_at=NOW + timedelta(seconds=20))
    add_adapter("gone", "sales", expires_at=NOW)
    add_adapter("theirs", "finance", expires_at=NOW + timedelta(seconds=5))
    ticket = authorizer.authorize("bob")
    assert {one.name for one in ticket.adapters} == {"sales", "soon"}
    assert ticket.expires_at == NOW.timestamp() + 20


def test_admission_is_once(database, authorizer, adapters, clock):
    ticket = authorizer.authorize("bob")
    authorizer.admit(ticket)
    with pytest.raises(AccessError) as replayed:
        authorizer.admit(ticket)
    with pytest.raises(AccessError) as forged:
        authorizer.admit(dataclasses.replace(authorizer.authorize("bob"), principal="ann"))
    with pytest.raises(AccessError) as elsewhere:
        Authorizer(database, MINT, clock=clock).admit(authorizer.authorize("bob"))
    late = authorizer.authorize("bob")
    clock.now += 300
    with pytest.raises(AccessError) as expired:
        authorizer.admit(late)
    assert len({str(one.value) for one in (replayed, forged, elsewhere, expired)}) == 1


def test_what_was_let_in_is_forgotten_with_its_time(authorizer, adapters, clock):
    for _ in range(5):
        authorizer.admit(authorizer.authorize("bob"))
    clock.now += 301
    authorizer.admit(authorizer.authorize("bob"))
    assert len(authorizer._admitted) == len(authorizer._leaving) == 1


def test_threads_get_a_ticket_in_once(authorizer, adapters):
    ticket, ended = authorizer.authorize("bob"), []
    gate = threading.Barrier(8)

    def enter():
        gate.wait()
        try:
            authorizer.admit(ticket)
        except AccessError:
            return
        ended.append(True)

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended == [True]


def test_a_ticket_from_before_a_revocation_is_not_let_in(
    database, authorizer, adapters, policies_text, entities_text
):
    ann, bob = authorizer.authorize("ann"), authorizer.authorize("bob")
    set_policies(database, policies_text, entities_text.replace('"legal"', '"nothing"'))
    authorizer.admit(bob)
    with pytest.raises(AccessError):
        authorizer.admit(ann)


def test_a_ticket_from_before_a_rule_against_mixing_is_not_let_in(
    database, authorizer, adapters, policies_text, entities_text
):
    set_policies(database, policies_text.partition('@id("never-mix")')[0], entities_text)
    ann = authorizer.authorize("ann")
    assert ann.apart == frozenset()
    set_policies(database, policies_text, entities_text)
    with pytest.raises(AccessError):
        authorizer.admit(ann)


def test_standing_follows_the_policies(
    database, authorizer, adapters, policies_text, entities_text
):
    ticket = authorizer.authorize("ann")
    finance, legal = adapters["finance"], adapters["legal"]
    assert authorizer.standing(ticket, [finance]) and authorizer.standing(ticket, [])
    assert not authorizer.standing(ticket, [finance, legal])
    assert not authorizer.standing(ticket, [adapters["sales"]])
    assert not authorizer.standing(ticket, ["sha256:none"])
    before = authorizer.epoch()
    set_policies(database, policies_text, entities_text.replace('"finance", "legal"', '"legal"'))
    assert authorizer.epoch() == before + 1
    assert not authorizer.standing(ticket, [finance])
    assert authorizer.standing(ticket, [legal]) and authorizer.standing(ticket, [])
    set_policies(database, policies_text, "[]")
    assert not authorizer.standing(ticket, [legal]) and not authorizer.standing(ticket, [])


def test_a_rule_on_three_labels_is_seen_where_pairs_are_not(
    database, authorizer, adapters, entities_text
):
    three = '["finance", "legal", "sales"]'
    policies = (
        "permit(principal, action, resource);"
        f"forbid(principal, action, resource) when {{ context.labels.containsAll({three}) }};"
    )
    set_policies(database, policies, entities_text)
    ticket = authorizer.authorize("ann")
    digests = sorted(adapters.values())
    assert ticket.apart == frozenset() and len(ticket.adapters) == 3
    assert authorizer.standing(ticket, digests[:2]) and not authorizer.standing(ticket, digests)


def test_a_removed_adapter_stands_no_more(database, authorizer, adapters):
    ticket = authorizer.authorize("bob")
    assert authorizer.standing(ticket, ticket.digests)
    remove(database, adapters["sales"])
    assert not authorizer.standing(ticket, ticket.digests) and authorizer.standing(ticket, [])
    with pytest.raises(AccessError):
        authorizer.admit(ticket)


def test_standing_ends_with_the_ticket(authorizer, adapters, clock):
    ticket = authorizer.authorize("bob")
    forged = dataclasses.replace(ticket, expires_at=ticket.expires_at + 1)
    assert authorizer.standing(ticket, []) and not authorizer.standing(forged, [])
    clock.now += 300
    assert not authorizer.standing(ticket, [])


def test_a_revoked_key_ends_what_came_with_it(database, authorizer, adapters, clock):
    keys = ApiKeys(database, clock=lambda: datetime.fromtimestamp(clock.now, UTC))
    (first, _), (second, _) = keys.create("bob"), keys.create("bob", timedelta(seconds=9))
    one = authorizer.authorize("bob", credential=first)
    other = authorizer.authorize("bob", credential=second)
    plain = authorizer.authorize("bob")
    assert other.expires_at == clock.now + 9
    keys.revoke(first)
    assert not authorizer.standing(one, [])
    assert authorizer.standing(other, []) and authorizer.standing(plain, [])
    with pytest.raises(AccessError):
        authorizer.admit(one)
    for principal, key_id in (("bob", first), ("ann", second), ("bob", "none")):
        with pytest.raises(AccessError, match=f"principal {principal}: is not one"):
            authorizer.authorize(principal, credential=key_id)


def test_the_epoch_is_one_query(database, authorizer, adapters):
    asked = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(connection, cursor, statement, *rest):
        asked.append(statement)

    assert authorizer.epoch() == 1
    assert [one for one in asked if not one.startswith("BEGIN")] == asked[-1:]
    assert len(asked) <= 2


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_lifetime_is_positive(database, seconds):
    with pytest.raises(InputError, match="lifetime"):
        Authorizer(database, MINT, lifetime_seconds=seconds)
