"""``intarsia policy`` and ``adapters list --as``, as a steward types them."""

import json
from pathlib import Path

import pytest

POLICIES = """\
@id("own-group")
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
@id("no-mix")
forbid(principal, action, resource)
when { context.mixing && context.labels.containsAll(["finance", "legal"]) };
@id("faulty")
forbid(principal == User::"cat", action, resource)
when { principal.clearance * 9223372036854775807 > 9 };
"""


def user(name, *groups, clearance=1):
    attributes = {"groups": groups, "clearance": clearance, "tenant": "acme"}
    return {"uid": {"type": "User", "id": name}, "attrs": attributes, "parents": []}


USERS = [user("ann", "finance", "legal"), user("bob"), user("cat", "legal", clearance=2)]


@pytest.fixture
def home(intarsia, saved_by_peft):
    """Two adapters, three users and policies in the home ``home``; gives its words."""
    Path("p.cedar").write_text(POLICIES)
    Path("e.json").write_text(json.dumps(USERS))
    words = ("--home", "home")
    for folder, name, label in (("four", "payroll", "finance"), ("sixteen", "contracts", "legal")):
        ended = intarsia(
            *words, "adapters", "import", saved_by_peft[folder], "--name", name, "--label", label
        )
        assert ended.code == 0
    ended = intarsia(*words, "policy", "set", "--policies", "p.cedar", "--entities", "e.json")
    assert (ended.code, ended.err) == (0, ""), ended.err
    return words


def told(intarsia, *words):
    ended = intarsia(*words, "--json", "-")
    assert (ended.code, ended.err) == (0, ""), ended.err
    return json.loads(ended.out)


def test_policies_make_their_own_home(intarsia):
    Path("p.cedar").write_text(POLICIES)
    Path("e.json").write_text(json.dumps(USERS))
    words = ("policy", "set", "--policies", "p.cedar", "--entities", "e.json", "--home", "new")
    found = told(intarsia, *words)
    assert (found["policies"], found["users"], found["epoch"]) == (3, 3, 1)
    again = told(intarsia, *words)
    assert again == {**found, "epoch": 2} and found["policy_version"].startswith("sha256:")


def test_check_shows_what_may_be_used(intarsia, home):
    found = told(intarsia, *home, "policy", "check", "ann")
    assert {one["name"]: one["labels"] for one in found["adapters"]} == {
        "payroll": ["finance"],
        "contracts": ["legal"],
    }
    assert found["apart"] == [["contracts", "payroll"]] and found["epoch"] == 1
    shown = intarsia(*home, "policy", "check", "ann").out
    assert "payroll" in shown and "never in one answer: contracts and payroll" in shown
    assert told(intarsia, *home, "policy", "check", "bob")["adapters"] == []
    shown = intarsia(*home, "policy", "check", "bob").out
    assert "only the base answers" in shown and "payroll" not in shown


def test_explain_says_which_policy_decided(intarsia, home):
    found = told(intarsia, *home, "policy", "explain", "ann", "payroll")
    assert (found["decision"], found["reasons"]) == ("allow", ["own-group (line 1)"])
    assert found["user"]["groups"] == ["finance", "legal"] and found["facts"]["owner"] == ""
    by_digest = told(intarsia, *home, "policy", "explain", "ann", found["digest"][7:17])
    assert by_digest == found
    found = told(intarsia, *home, "policy", "explain", "bob", "payroll")
    assert (found["decision"], found["reasons"], found["errors"]) == ("deny", [], [])
    assert "no policy permits it" in intarsia(*home, "policy", "explain", "bob", "payroll").out


def test_explain_shows_a_policy_that_cannot_be_evaluated(intarsia, home):
    found = told(intarsia, *home, "policy", "explain", "cat", "contracts")
    assert found["decision"] == "deny" and found["reasons"] == ["own-group (line 1)"]
    (error,) = found["errors"]
    assert "policy 3 (line 7)" in error and "overflow" in error
    assert "overflow" in intarsia(*home, "policy", "explain", "cat", "contracts").out


def test_unknown_is_refused_in_the_words_of_forbidden(intarsia, home):
    asked = {
        "principal zoe": ["policy", "check", "zoe"],
        "principal eve": ["policy", "explain", "eve", "payroll"],
        "adapter none": ["policy", "explain", "ann", "none"],
        "principal max": ["adapters", "list", "--as", "max"],
    }
    for thing, words in asked.items():
        ended = intarsia(*home, *words)
        assert (ended.code, ended.out) == (3, "")
        assert ended.line == (
            f"intarsia: error: {thing}: is not one that you may use; ask its steward for access"
        )


def test_the_list_as_somebody_is_theirs(intarsia, home):
    names = lambda *words: [  # noqa: E731 - a short word for a long call
        one["name"] for one in told(intarsia, *home, "adapters", "list", *words)["adapters"]
    ]
    assert names() == ["payroll", "contracts"] and names("--as", "ann") == names()
    assert names("--as", "cat") == names("--as", "bob") == []
    shown = intarsia(*home, "adapters", "list", "--as", "bob").out
    assert "payroll" not in shown and "contracts" not in shown


def test_without_policies_nothing_may_be_used(intarsia, saved_by_peft):
    words = ("--home", "home")
    intarsia(*words, "adapters", "import", saved_by_peft["four"], "--name", "payroll")
    assert told(intarsia, *words, "adapters", "list", "--as", "ann")["adapters"] == []
    assert told(intarsia, *words, "policy", "check", "ann")["adapters"] == []
    assert told(intarsia, *words, "policy", "explain", "ann", "payroll")["decision"] == "deny"
    assert "no policies are set" in intarsia(*words, "policy", "explain", "ann", "payroll").out


def test_a_fault_changes_nothing_and_names_its_line(intarsia, home):
    Path("p.cedar").write_text(POLICIES + "permit(principal, action, resource) when { x };")
    ended = intarsia(*home, "policy", "set", "--policies", "p.cedar", "--entities", "e.json")
    assert ended.code == 2 and "policies, line 10: invalid variable: x" in ended.line
    ended = intarsia(*home, "policy", "set", "--policies", "none", "--entities", "e.json")
    assert ended.code == 2 and "policies: none (No such file" in ended.line
    assert told(intarsia, *home, "policy", "check", "ann")["epoch"] == 1


TESTS = [
    {"principal": "ann", "adapter": "payroll", "decision": "allow"},
    {"principal": "ann", "together": ["payroll", "contracts"], "decision": "deny"},
    {"principal": "bob", "adapter": "payroll", "decision": "deny"},
]


def test_expectations_that_hold_end_with_0(intarsia, home):
    Path("t.json").write_text(json.dumps({"tests": TESTS}))
    found = told(intarsia, *home, "policy", "test", "t.json")
    assert found["failed"] == 0 and [one["held"] for one in found["tests"]] == [True] * 3
    assert "3 of 3 as expected" in intarsia(*home, "policy", "test", "t.json").out


def test_a_change_is_tested_before_it_is_live(intarsia, home):
    folder = Path("change")
    folder.mkdir()
    (folder / "new.cedar").write_text(POLICIES + "permit(principal, action, resource);")
    document = {"policies": "new.cedar", "tests": TESTS, "adapters": [{"name": "soon"}]}
    document["tests"] = [*TESTS, {"principal": "bob", "adapter": "soon", "decision": "allow"}]
    (folder / "t.json").write_text(json.dumps(document))
    ended = intarsia(*home, "policy", "test", "change/t.json", "--json", "result.json")
    assert (ended.code, ended.err) == (7, "")
    assert "3 of 4 as expected" in ended.out and "allow, DIFFERS" in ended.out
    result = json.loads(Path("result.json").read_text())
    assert result["failed"] == 1 and [one["held"] for one in result["tests"]] == [
        True, True, False, True,
    ]  # fmt: skip
    (folder / "users.json").write_text(json.dumps([user("bob", "finance")]))
    document = {"entities": "users.json", "tests": [{**TESTS[2], "decision": "allow"}]}
    (folder / "t.json").write_text(json.dumps(document))
    assert intarsia(*home, "policy", "test", "change/t.json").code == 0
    assert told(intarsia, *home, "policy", "check", "bob")["adapters"] == []


def test_a_test_file_with_a_fault_is_no_failed_expectation(intarsia, home):
    Path("t.json").write_text(json.dumps({"tests": [{**TESTS[0], "adapter": "pay"}]}))
    ended = intarsia(*home, "policy", "test", "t.json")
    assert ended.code == 2 and "there is no adapter pay" in ended.line
