"""Whether a ticket stands is said as by judging always; tickets end when credentials do."""

from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.ticket import TicketMint
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.registry.database import open_database


class Judging(Authorizer):
    """Never sees a ticket's own epoch, so that it judges every time."""

    def epoch(self):
        return -1


class World:
    """One home's access control, with a clock of its own."""

    def __init__(self, database):
        self.now, self.database = 1_800_000_000.0, database
        self.mint = TicketMint(b"s" * 32)
        self.authorizer = Authorizer(database, self.mint, clock=lambda: self.now)
        self.judging = Judging(database, self.mint, clock=lambda: self.now)

    def agree(self, ticket, *, also=()):
        """What both say of every set of up to three adapters; they must say the same."""
        digests = [*ticket.digests, *also]
        sets = [one for n in range(4) for one in itertools.combinations(digests, n)]
        said = [self.authorizer.standing(ticket, one) for one in sets]
        assert said == [self.judging.standing(ticket, one) for one in sets]
        return said


@pytest.fixture
def world(home):
    with open_database(home.database_url) as database:
        yield World(database)


def test_both_agree_while_nothing_changed(world):
    for principal in ("ann", "bob", "all", "nobody"):
        ticket = world.authorizer.authorize(principal)
        said = world.agree(ticket, also=["sha256:" + "0" * 64])
        assert said[0] and not all(said)
    apart = world.authorizer.authorize("bob")
    assert apart.apart and world.agree(apart) == [True, True, True, False]


def test_both_agree_on_three_that_only_together_may_not_be_used(world):
    rule = """
        permit(principal, action, resource);
        forbid(principal, action, resource)
        when { context.labels.containsAll(["sea", "farm", "vault"]) };
    """
    users = [{"uid": {"type": "User", "id": "all"}, "attrs": {}, "parents": []}]
    PolicyStore(world.database).set(rule, json.dumps(users))
    ticket = world.authorizer.authorize("all")
    assert not ticket.apart
    said = world.agree(ticket)
    assert said.count(False) == 1


def test_both_agree_on_forged_and_expired_tickets(world):
    ticket = world.authorizer.authorize("ann")
    more = world.authorizer.authorize("all").adapters
    for forged in (
        dataclasses.replace(ticket, adapters=more),
        dataclasses.replace(ticket, expires_at=ticket.expires_at + 1e6),
        dataclasses.replace(ticket, epoch=ticket.epoch + 1),
        dataclasses.replace(ticket, mac="x"),
    ):
        assert not any(world.agree(forged))
    world.now = ticket.expires_at
    assert not any(world.agree(ticket))


def test_both_agree_when_a_right_goes_a_key_is_revoked_or_an_adapter_removed(world, home):
    keys = ApiKeys(world.database)
    key, _ = keys.create("ann")
    tickets = [world.authorizer.authorize("ann"), world.authorizer.authorize("ann", credential=key)]
    both = [world.agree(ticket) for ticket in tickets]
    assert all(map(all, both))
    keys.revoke(key)
    assert [any(world.agree(ticket)) for ticket in tickets] == [True, False]
    with open_groups(home) as groups:
        groups.remove("sea")
    said = world.agree(tickets[0])
    assert any(said) and not all(said)
    users = [{"uid": {"type": "User", "id": "bob"}, "attrs": {}, "parents": []}]
    PolicyStore(world.database).set("permit(principal, action, resource);", json.dumps(users))
    assert not any(world.agree(tickets[0]))


def test_a_ticket_ends_when_the_credential_does_and_not_later_than_otherwise(world):
    plain = world.authorizer.authorize("ann")
    assert plain.expires_at == world.now + 300
    for until, ends in ((None, 300), (1e9, 300), (300.0, 300), (20.0, 20), (0.0, 0)):
        given = None if until is None else world.now + until
        ticket = world.authorizer.authorize("ann", "audit", until=given)
        assert ticket.expires_at == world.now + ends
        assert (ticket.principal, ticket.purpose, ticket.adapters) == (
            "ann", "audit", plain.adapters,
        )  # fmt: skip
        assert world.mint.accepts(ticket, world.now) == (ends > 0)
    short = world.authorizer.authorize("ann", until=world.now + 20)
    world.now += 19.9
    world.authorizer.admit(short)
    assert world.authorizer.standing(short, ())
    world.now += 0.1
    assert not world.authorizer.standing(short, ())
    with pytest.raises(InputError):
        world.authorizer.authorize("ann", until=float("-inf"))
    with pytest.raises(AccessError):
        world.authorizer.admit(short)
