"""The table of access, for stewards alone."""

from typing import Any

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.gateway.stewardship import Stewardship


@pytest.fixture
def stewardship(served: Any) -> Stewardship:
    return Stewardship(served.service.database)


def test_the_table_is_what_the_policies_decide(served: Any):
    with served.http("cleo") as http:
        table = http.get("/intarsia/access").json()
    users = [user["name"] for user in table["users"]]
    adapters = [adapter["name"] for adapter in table["adapters"]]
    assert users == ["ana", "ben", "cleo", "dora", "eve"]
    assert adapters == ["legal", "medical"]
    allowed = [[cell["allowed"] for cell in row] for row in table["decisions"]]
    assert allowed == [
        [True, False],
        [False, True],
        [False, False],
        [True, True],
        [False, False],
    ]
    (reason,) = table["decisions"][0][0]["reasons"]
    assert reason.startswith("legal readers (line ")
    line = reason.removesuffix(")").rpartition(" ")[2]
    assert 'contains("lawyers")' in table["policies"][line]


def test_a_purpose_is_part_of_the_question(stewardship: Stewardship):
    table = stewardship.access("cleo", purpose="audit")
    assert [cell["allowed"] for cell in table["decisions"][2]] == [True, True]


def test_the_table_comes_in_parts(stewardship: Stewardship):
    table = stewardship.access("cleo", users_from=3, adapters_from=1)
    assert [user["name"] for user in table["users"]] == ["dora", "eve"]
    assert [one["name"] for one in table["adapters"]] == ["medical"]
    assert (table["users_total"], table["adapters_total"]) == (5, 2)
    assert stewardship.access("cleo", users_from=9)["decisions"] == []
    with pytest.raises(InputError):
        stewardship.access("cleo", users_from=-1)
    with pytest.raises(InputError):
        stewardship.access("cleo", purpose="x" * 300)


@pytest.mark.parametrize("principal", ["ana", "eve"])
def test_others_see_no_table(served: Any, principal: str):
    with served.http(principal) as http:
        answer = http.get("/intarsia/access")
        assert answer.status_code == 403
        assert "medical" not in answer.text
        assert http.get("/intarsia/caller").json()["steward"] is False


def test_whoever_asks_is_told_who_they_are(served: Any):
    with served.http("cleo") as http:
        found = http.get("/intarsia/caller").json()
    assert (found["principal"], found["steward"]) == ("cleo", True)
    assert found["conversations"] is False
    with served.http("stranger") as http:
        assert http.get("/intarsia/caller").status_code == 403


def test_each_look_is_in_the_audit_log(served: Any, stewardship: Stewardship):
    from intarsia_platform.access.audit import AuditLog

    stewardship.access("cleo", purpose="audit")
    (entry,) = AuditLog(served.service.database).entries(last=1)
    assert entry.event["action"] == "access-review"
    assert entry.event["principal"] == "cleo"
