"""Policies that Cedar would take, or would not name, and what we say of them."""

import json

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.access.policy_set import PolicySet

WHEN = "permit(principal, action, resource) when"
FIRST = "permit(principal, action, resource) when { resource.level == 0 };\n"


def test_a_valid_set_has_its_parts(policies_text, entities_text):
    found = PolicySet(policies_text, entities_text)
    assert [one.line for one in found.statements] == [2, 8, 10]
    assert found.knows("ann") and not found.knows("zoe") and not found.knows("")
    assert found.place("policy0", "own-group") == "own-group (line 2)"
    assert found.place("policy1") == "policy 2 (line 8)"
    assert found.place("other") == "other"


def test_the_version_is_that_of_both_texts(policies_text, entities_text):
    found = PolicySet(policies_text, entities_text)
    assert found.version == PolicySet(policies_text, entities_text).version
    others = [
        PolicySet(policies_text + "\n", entities_text),
        PolicySet(policies_text, entities_text + "\n"),
        PolicySet("", "[]"),
    ]
    assert len({one.version for one in (found, *others)}) == 4


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("permit(principal, action, resource) whe { true };", "line 2: invalid policy condition"),
        ("permit(principal, action, resource)", "line 2: "),
        ("permit(principal, action, resource) when { \"", "line 2: "),
        ("permit(principal, action, resource) when { principal.age > 3 };", "attribute `age`"),
        ('permit(principal, action == Action::"read", resource);', "line 2: unrecognized action"),
        ('permit(principal in Group::"g", action, resource);', "line 2: unrecognized entity type"),
        ('permit(principal, action, resource) when { resource.level > "x" };', "expected Long"),
        ("permit(principal, action, resource) when { context.time == 3 };", "line 2: "),
        ("permit(principal == ?principal, action, resource);", "hold a template"),
        (f"{WHEN} {{ {'(' * 90}true{')' * 90} }};", "line 2: nests"),
        (f"{WHEN} {{ {' || '.join(['context.mixing'] * 150)} }};", "100 levels"),
        (f"{WHEN} {{ context{'.a' * 400} }};", "100 levels"),
        (f"{WHEN} {{ context{'.a' * 10_000} }};", "500 operators"),
        (f'{WHEN} {{ "{"x" * (1 << 20)}" == "" }};', "bytes"),
        ("\ud800", "half a character"),
    ],
)  # fmt: skip
def test_a_fault_is_one_line_that_names_its_place(policy, words):
    with pytest.raises(InputError) as caught:
        PolicySet(FIRST + policy, "[]")
    assert words in str(caught.value) and str(caught.value).startswith("policies")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_no_policy_and_no_user_is_a_set():
    assert PolicySet("", "[]").users == ()


def test_cedar_takes_every_name_that_is_taken_here():
    names = ['quo"te', "back\\slash", "ünïcode", "a b", "Σ" * 255]
    entities = [{"uid": {"type": "User", "id": name}} for name in names]
    found = PolicySet("", json.dumps(entities))
    assert [user.name for user in found.users] == sorted(names)
