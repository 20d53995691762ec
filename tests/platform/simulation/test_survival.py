"""A federation killed with SIGKILL at any state ends, resumed, with the undisturbed digest."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil
import pytest
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import RunJournal, latest_unfinished, list_runs
from intarsia_platform.results import SimulationResult
from intarsia_platform.simulation.run import simulate

MARK = "INTARSIA_TEST_KILLED_RUN"

# A ledger beside its broadcast, rounding both ways, and clients that keep something of their own.
BOUNDED = (
    "federation.broadcast_rank=3", "federation.upload=int8", "federation.download=int8",
    "train.keep_optimizer=true",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed_results() -> dict[tuple[str, ...], SimulationResult]:
    """What each configuration gives when nobody kills it."""
    return {}


@pytest.mark.parametrize(
    ("state", "left", "overrides"),
    [
        ("planned", "planned", BOUNDED),
        ("sent", "sent", BOUNDED),
        ("collecting", "collecting", BOUNDED),
        ("accepted", "collecting", BOUNDED),
        ("accepted", "collecting", ()),
        ("aggregating", "aggregating", BOUNDED),
        ("aggregating", "aggregating", ()),
        ("published", None, BOUNDED),
    ],
    ids=lambda value: {BOUNDED: "bounded", (): "default"}.get(value, str(value)),
)
def test_killed_at_any_state_it_ends_with_the_undisturbed_digest(
    state,
    left,
    overrides,
    undisturbed_results,
    kill_at,
    configure,
    configuration_file,
    tmp_path,
    observer,
):
    configuration = configure(*overrides)
    if overrides not in undisturbed_results:
        other = Home.open(tmp_path / "other")
        undisturbed_results[overrides] = simulate(configuration, home=other, observer=observer)
    undisturbed = undisturbed_results[overrides]
    home = Home.open(tmp_path / "home")
    kill_at(state, configuration_file, home.path, *overrides)
    with open_database(home.database_url) as database:
        journal = latest_unfinished(database)
        assert journal is not None
        assert len(journal.published_rounds()) == (2 if state == "published" else 1)
        exact = [finished.aggregate_digest for finished in journal.published_rounds()]
        assert None not in exact
        row = journal.current_round()
        assert (row.state if row else None) == left
        if state == "accepted":
            statuses = [part.status for part in journal.participations(2)]
            assert statuses.count("accepted") == 1
    observer.replies.clear()
    resumed = simulate(configuration, home=home, resume=True, observer=observer)
    assert resumed.adapter.digest == undisturbed.adapter.digest
    assert exact_digests(home) == exact_digests(Home.open(Path(undisturbed.report).parents[2]))
    assert [one.test for one in resumed.rounds] == [one.test for one in undisturbed.rounds]
    asked_again = [client for number, client, _ in observer.replies if number == 2]
    assert len(asked_again) == {"accepted": 3, "aggregating": 0, "published": 0}.get(state, 4)


def exact_digests(home: Home) -> list[str | None]:
    with open_database(home.database_url) as database:
        (run,) = list_runs(database)
        rounds = RunJournal(database, run.id).published_rounds()
        assert len(rounds) == 3
        return [row.aggregate_digest for row in rounds]


@pytest.mark.slow
def test_killed_with_its_ray_workers_in_the_middle_of_a_round(
    configure, configuration_file, tmp_path, observer, kill_at
):
    ray = ("engine.grid=ray", "engine.workers=2")
    # The grids give the same bytes; see test_methods.py.
    undisturbed = simulate(configure(), home=Home.open(tmp_path / "other"), observer=observer)
    home = Home.open(tmp_path / "home")
    kill_at("accepted", configuration_file, home.path, *ray, **{MARK: str(home.path)})
    left_over = wait_until_gone(home.path, seconds=60)
    assert not left_over, left_over
    resumed = simulate(configure(*ray), home=home, resume=True, observer=observer)
    assert resumed.adapter.digest == undisturbed.adapter.digest


def wait_until_gone(home: Path, *, seconds: float) -> list[str]:
    """Command lines of the processes that the killed run started and that are still there."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for process in psutil.process_iter(["name", "status"]):
            with contextlib.suppress(psutil.Error):
                if (
                    process.environ().get(MARK) == str(home)
                    and process.info["status"] != psutil.STATUS_ZOMBIE
                ):
                    found.append(process.info["name"])
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
