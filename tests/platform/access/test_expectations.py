"""Files of expected decisions."""

import json
from datetime import UTC, datetime

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.access.expectations import judge_expectations, read_expectations
from intarsia_platform.access.policy_set import PolicySet

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def write(tmp_path):
    def write(document):
        path = tmp_path / "tests.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return write


def test_each_expectation_is_judged(write, policies_text, entities_text, facts):
    tests = [
        {"principal": "ann", "adapter": "finance", "decision": "allow"},
        {"principal": "ann", "adapter": facts("finance").digest, "decision": "allow"},
        {"principal": "ann", "together": ["finance", "legal"], "decision": "deny"},
        {"principal": "ann", "together": ["finance", "finance"], "decision": "allow"},
        {"principal": "zoe", "adapter": "finance", "decision": "deny"},
        {"principal": "auditor", "adapter": "new", "purpose": "audit", "decision": "allow"},
        {"principal": "auditor", "adapter": "new", "decision": "allow"},
    ]
    new = {"name": "new", "labels": ["x"], "owner": "ann", "tenant": "acme", "level": 2}
    file = read_expectations(write({"adapters": [new], "tests": tests}))
    assert file.adapters[0].level == 2 and file.policies is file.entities is None
    registered = [facts("finance", "finance"), facts("legal", "legal")]
    outcomes = judge_expectations(file, PolicySet(policies_text, entities_text), registered, NOW)
    assert [outcome.held for outcome in outcomes] == [True] * 6 + [False]
    assert outcomes[2].decisions[-1].reasons == ("never-mix (line 10)",)


def test_an_adapter_that_is_described_stands_instead_of_the_registered_one(write, facts):
    document = {
        "adapters": [{"name": "finance", "level": 9}],
        "tests": [{"principal": "ann", "adapter": "finance", "decision": "deny"}],
    }
    users = json.dumps([{"uid": {"type": "User", "id": "ann"}}])
    policies = PolicySet(
        "permit(principal, action, resource) when { principal.clearance >= resource.level };", users
    )
    (outcome,) = judge_expectations(
        read_expectations(write(document)), policies, [facts("finance")], NOW
    )
    assert outcome.held and not outcome.allowed


def test_a_misspelt_adapter_is_no_denial(write):
    file = read_expectations(
        write({"tests": [{"principal": "ann", "adapter": "fiance", "decision": "deny"}]})
    )
    with pytest.raises(InputError, match="test 1: there is no adapter fiance"):
        judge_expectations(file, None, [], NOW)


TEST = {"principal": "ann", "adapter": "f", "decision": "deny"}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "write JSON"),
        ([TEST], "is no JSON object"),
        ({"test": []}, "has no tests"),
        ({"tests": [], "policy": "x"}, "has the field policy"),
        ({"tests": {}}, "is no list"),
        ({"tests": [], "policies": 3}, "is no path"),
        ({"tests": [{**TEST, "together": ["f"]}]}, "tests, number 1: names no adapter, or both"),
        ({"tests": [{"principal": "ann", "decision": "deny"}]}, "names no adapter, or both"),
        ({"tests": [{**TEST, "decision": "yes"}]}, "decision is yes"),
        ({"tests": [{**TEST, "principal": 3}]}, "principal: is no word"),
        ({"tests": [{**TEST, "purpose": "a\nb"}]}, "purpose: is no word"),
        ({"tests": [{"principal": "a", "together": [], "decision": "deny"}]}, "no list of names"),
        ({"tests": [], "adapters": [{"name": "f", "level": "1"}]}, "adapters, number 1, level"),
        ({"tests": [], "adapters": [{"labels": []}]}, "adapters, number 1: has no name"),
        ({"tests": [], "adapters": [{"name": "f", "labels": "x"}]}, "labels: is no list"),
    ],
)
def test_a_fault_is_named(write, document, words):
    with pytest.raises(InputError) as caught:
        read_expectations(write(document))
    assert words in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(InputError, match="test file"):
        read_expectations(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        read_expectations(tmp_path / "binary")
