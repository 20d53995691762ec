"""Users as a file brings them."""

import json

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.access.entities import User, read_users


def entity(name="ann", kind="User", **more):
    return {"uid": {"type": kind, "id": name}, "attrs": {}, "parents": [], **more}


def test_users_are_read_in_order_of_their_names():
    attributes = {"groups": ["b", "a", "b"], "clearance": -3, "tenant": "acme"}
    escaped = {"uid": {"__entity": {"type": "User", "id": "ann lee"}}}
    users = read_users(json.dumps([entity("zoe", attrs=attributes), escaped]))
    assert users == (
        User(name="ann lee"),
        User(name="zoe", groups=frozenset("ab"), clearance=-3, tenant="acme"),
    )


def test_what_is_left_out_is_the_least_there_is():
    (user,) = read_users(json.dumps([entity()]))
    assert (user.groups, user.clearance, user.tenant) == (frozenset(), 0, "")


@pytest.mark.parametrize(
    ("entities", "words"),
    [
        ({}, "entities: not a list"),
        (["ann"], "number 1: is no entity"),
        ([{"uid": 'User::"ann"'}], "number 1: has no uid"),
        ([entity(""), entity()], "number 1: has no uid"),
        ([entity("a\nb")], "number 1: has no uid"),
        ([entity("\ud800")], "number 1: has no uid"),
        ([entity("x" * 256)], "number 1: has no uid"),
        ([entity(), entity("f", "Adapter")], "number 2: is of type Adapter"),
        ([entity(), entity()], 'User::"ann": is there twice'),
        ([entity(parents=[{"type": "Group", "id": "g"}])], 'User::"ann": has parents'),
        ([entity(tags={})], 'User::"ann": has the field tags'),
        ([entity(attrs=[])], 'User::"ann": attrs are no object'),
        ([entity(attrs={"mail": "x"})], 'User::"ann": has the attribute mail'),
        ([entity(attrs={"groups": "finance"})], "attribute groups is no list"),
        ([entity(attrs={"groups": [1]})], "attribute groups is no list"),
        ([entity(attrs={"groups": ["g"] * 1001})], "is in 1001 groups"),
        ([entity(attrs={"clearance": "3"})], "attribute clearance is no whole"),
        ([entity(attrs={"clearance": True})], "attribute clearance is no whole"),
        ([entity(attrs={"clearance": 2**63})], "attribute clearance is no whole"),
        ([entity(attrs={"clearance": 1.0})], "attribute clearance is no whole"),
        ([entity(attrs={"tenant": None})], "attribute tenant is no word"),
    ],
)
def test_a_fault_is_named(entities, words):
    with pytest.raises(InputError) as caught:
        read_users(json.dumps(entities))
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "nan"])
def test_what_is_not_json_is_refused(text):
    with pytest.raises(InputError, match=r"not JSON|not a list"):
        read_users(text)
