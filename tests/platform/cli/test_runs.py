import json

import pytest
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import PlannedParticipation, create_run

BASE = "sha256:" + "b" * 64


@pytest.fixture
def begun(tmp_path):
    """A home with a run whose first round was interrupted before anything was sent."""
    (tmp_path / "home").mkdir()
    with open_database(f"sqlite:///{tmp_path}/home/intarsia.db") as database:
        journal = create_run(
            database, name="tiny", config={"a": 1}, seed=7, rounds=3, base_digest=BASE
        )
        plan = [PlannedParticipation(client=name, node_id=1) for name in ("ann", "bob")]
        plan.append(
            PlannedParticipation(client="cem", node_id=3, status="sat-out", reason="budget")
        )
        journal.plan_round(1, "sha256:" + "0" * 64, plan)
        journal.set_status("interrupted")
    return journal.run_id


def test_the_list_has_interrupted_runs(intarsia, begun):
    ended = intarsia("runs", "list", "--home", "home")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[2].split()[:6] == [begun, "tiny", "interrupted", "0", "of", "3"]
    (run,) = json.loads(intarsia("runs", "list", "--home", "home", "--json", "-").out)["runs"]
    assert run["run"] == begun and run["seed"] == 7 and run["base_digest"] == BASE
    assert (run["rounds_finished"], run["rounds_asked"], run["adapter"]) == (0, 3, None)


@pytest.mark.parametrize("by", ["number", "identifier"])
def test_one_run_shows_its_open_round(intarsia, begun, by):
    reference = "1" if by == "number" else begun
    ended = intarsia("runs", "show", reference, "--home", "home")
    assert "1, planned: 2 planned, 1 sat-out" in ended.out
    shown = json.loads(intarsia("runs", "show", reference, "--home", "home", "--json", "-").out)
    assert shown["rounds"] == [] and shown["configuration"] == {"a": 1}
    assert shown["open_round"] == {
        "round": 1,
        "state": "planned",
        "clients": {"planned": 2, "sat-out": 1},
    }


def test_an_unknown_run_is_one_line(intarsia, begun):
    ended = intarsia("runs", "show", "2", "--home", "home")
    assert ended.code == 2 and ended.line == "intarsia: error: run: 2; see `intarsia runs list`"


def test_a_database_that_is_none_is_one_line(intarsia, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "intarsia.db").write_bytes(b"not a database" * 100)
    ended = intarsia("runs", "list", "--home", "home")
    assert ended.code == 4 and "intarsia.db: file is not a database; " in ended.line
