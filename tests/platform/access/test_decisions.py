"""Default deny, forbid overrides, errors deny, and nobody's decision depends on other adapters."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_platform.access.decisions import apart, decide, decide_together
from intarsia_platform.access.facts import AdapterFacts
from intarsia_platform.access.policy_set import PolicySet

ALL = "permit(principal, action, resource);\n"
NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def policies(policies_text, entities_text):
    return PolicySet(policies_text, entities_text)


def one_user(policy: str) -> PolicySet:
    return PolicySet(policy, json.dumps([{"uid": {"type": "User", "id": "ann"}}]))


def test_nothing_is_permitted_without_a_policy(facts):
    for policies in (
        None,
        one_user(""),
        one_user('permit(principal == User::"b", action, resource);'),
    ):
        (decision,) = decide(policies, "ann", [facts("f", "finance")])
        assert not decision.allowed and decision.reasons == () and decision.errors == ()


def test_a_permission_is_named(policies, facts):
    finance, sales, high = (
        facts("f", "finance"),
        facts("s", "sales"),
        facts("h", "finance", level=6),
    )
    decisions = decide(policies, "ann", [sales, finance, high])
    assert [one.allowed for one in decisions] == [False, True, False]
    assert decisions[1].reasons == ("own-group (line 2)",)
    assert [one.allowed for one in decide(policies, "low", [finance])] == [True]


def test_a_purpose_can_be_asked_for(policies, facts):
    finance = facts("f", "finance")
    assert not decide(policies, "auditor", [finance])[0].allowed
    (decision,) = decide(policies, "auditor", [finance], "audit")
    assert decision.allowed and decision.reasons == ("policy 2 (line 8)",)
    for purpose in ("x" * 256, "a\nb", "\ud800"):
        with pytest.raises(InputError, match="purpose"):
            decide(policies, "auditor", [finance], purpose)


def test_forbid_overrides(facts):
    policies = one_user(ALL + '@id("no") forbid(principal, action, resource == Adapter::"f");')
    decisions = decide(policies, "ann", [facts("f"), facts("g")])
    assert [(one.allowed, one.reasons) for one in decisions] == [
        (False, ("no (line 2)",)),
        (True, ("policy 1 (line 1)",)),
    ]


@pytest.mark.parametrize("effect", ["permit", "forbid"])
def test_a_policy_that_cannot_be_evaluated_denies(effect, facts):
    """Cedar itself skips it and permits."""
    condition = "resource.level * 9223372036854775807 > 9"
    faulty = f"{effect}(principal, action, resource) when {{ {condition} }};"
    policies = one_user(ALL + faulty)
    decisions = decide(policies, "ann", [facts("f", level=2), facts("g", level=0)])
    assert not decisions[0].allowed
    assert "policy 2 (line 2)" in decisions[0].errors[0] and "overflow" in decisions[0].errors[0]
    assert decisions[1].allowed and decisions[1].errors == ()


@pytest.mark.parametrize("name", ["zoe", "", "ann ", "Ann", "\ud800", 'x"; permit', "y" * 10_000])
def test_who_is_not_known_is_denied_what_all_are_permitted(name, facts):
    (decision,) = decide(one_user(ALL), name, [facts("f")])
    assert not decision.allowed and decision.reasons == () and decision.errors == ()


def test_an_expired_adapter_is_denied_to_everybody(facts):
    moments = (NOW, NOW - timedelta(days=1), NOW + timedelta(seconds=1), None)
    adapters = [facts(f"f{n}", expires_at=moment) for n, moment in enumerate(moments)]
    decisions = decide(one_user(ALL), "ann", adapters, now=NOW)
    assert [one.allowed for one in decisions] == [False, False, True, True]
    assert [one.expired for one in decisions] == [True, True, False, False]


def test_labels_that_must_not_meet(policies, facts):
    finance, legal, other = facts("f", "finance"), facts("l", "legal"), facts("o", "finance")
    assert all(one.allowed for one in decide(policies, "ann", [finance, legal, other]))
    assert all(one.allowed for one in decide_together(policies, "ann", [finance, other]))
    assert not any(one.allowed for one in decide_together(policies, "ann", [finance, legal]))
    pairs = apart(policies, "ann", [finance, legal, other])
    assert pairs == {
        tuple(sorted((finance.digest, legal.digest))),
        tuple(sorted((other.digest, legal.digest))),
    }


def test_mixing_can_be_forbidden_altogether(facts):
    policies = one_user(ALL + "forbid(principal, action, resource) when { context.mixing };")
    adapters = [facts("a", "x"), facts("b", "x"), facts("c")]
    assert len(apart(policies, "ann", adapters)) == 3
    assert decide_together(policies, "ann", adapters[:1])[0].allowed


WORDS = ["a", "b", "c", "d"]
CONDITIONS = [
    'context.labels.containsAll(["a", "b"])',
    'context.labels.contains("c") && context.mixing',
    'context.mixing && !context.labels.containsAny(["d", "a"])',
    'context.labels == ["a", "b"]',
    "context.labels.containsAll(resource.labels) && resource.level > 1",
    'context.mixing && resource.labels.contains("a") && context.labels.contains("b")',
    'context has labels && ["a", "b", "c"].containsAll(context.labels) && context.mixing',
    'if context.mixing then context.labels.contains("d") else false',
    'context == {"purpose": "", "labels": ["a", "c"], "mixing": true}',
    'resource.name == "n1" && context.mixing && principal.clearance < 1',
]


@given(
    st.lists(st.sampled_from(CONDITIONS), max_size=3),
    st.lists(st.tuples(st.sets(st.sampled_from(WORDS)), st.integers(0, 2)), max_size=5),
)
@settings(deadline=None, max_examples=40)
def test_pairs_apart_are_those_of_judging_every_pair_in_full(conditions, described):
    forbids = [f"forbid(principal, action, resource) when {{ {one} }};" for one in conditions]
    policies = one_user(ALL + "\n".join(forbids))
    adapters = [
        AdapterFacts(digest=f"d{n}", name=f"n{n}", labels=tuple(sorted(labels)), level=level)
        for n, (labels, level) in enumerate(described)
    ]
    expected = {
        (first.digest, second.digest)
        for n, first in enumerate(adapters)
        for second in adapters[n + 1 :]
        if not all(one.allowed for one in decide_together(policies, "ann", [first, second]))
    }
    assert apart(policies, "ann", adapters) == expected


@given(st.permutations(range(6)), st.integers(0, 6))
@settings(deadline=None, max_examples=20)
def test_a_decision_does_not_depend_on_the_other_adapters(order, count):
    policies = one_user(
        'permit(principal, action, resource) when { resource.labels.contains("a") };'
    )
    adapters = [
        AdapterFacts(digest=f"d{n}", name=f"n{n}", labels=("a",) if n % 2 else ("b",))
        for n in range(6)
    ]
    alone = {one.digest: decide(policies, "ann", [one])[0] for one in adapters}
    chosen = [adapters[n] for n in order[:count]]
    assert decide(policies, "ann", chosen) == [alone[one.digest] for one in chosen]
