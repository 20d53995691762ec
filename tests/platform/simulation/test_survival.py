"""A federation killed with SIGKILL at any state ends, resumed, with the undisturbed digest."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.journal import latest_unfinished
from intarsia_platform.simulation.run import simulate

MARK = "INTARSIA_TEST_KILLED_RUN"
KILLED_RUN = Path(__file__).parent / "killed_run.py"


def kill_at(state: str, configuration: Path, home: Path, *overrides: str) -> None:
    done = subprocess.run(
        [sys.executable, KILLED_RUN, configuration, home, state, "2", *overrides],
        env={**os.environ, MARK: str(home)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("state", "left"),
    [
        ("planned", "planned"),
        ("sent", "sent"),
        ("collecting", "collecting"),
        ("accepted", "collecting"),
        ("aggregating", "aggregating"),
        ("published", None),
    ],
)
def test_killed_at_any_state_it_ends_with_the_undisturbed_digest(
    state, left, configure, configuration_file, tmp_path, observer
):
    undisturbed = simulate(configure(), home=Home.open(tmp_path / "other"), observer=observer)
    home = Home.open(tmp_path / "home")
    kill_at(state, configuration_file, home.path)
    with open_database(home.database_url) as database:
        journal = latest_unfinished(database)
        assert journal is not None
        assert len(journal.published_rounds()) == (2 if state == "published" else 1)
        row = journal.current_round()
        assert (row.state if row else None) == left
        if state == "accepted":
            statuses = [part.status for part in journal.participations(2)]
            assert statuses.count("accepted") == 1
    observer.replies.clear()
    resumed = simulate(configure(), home=home, resume=True, observer=observer)
    assert resumed.adapter.digest == undisturbed.adapter.digest
    assert [one.test for one in resumed.rounds] == [one.test for one in undisturbed.rounds]
    asked_again = [client for number, client, _ in observer.replies if number == 2]
    assert len(asked_again) == {"accepted": 3, "aggregating": 0, "published": 0}.get(state, 4)


@pytest.mark.slow
def test_killed_with_its_ray_workers_in_the_middle_of_a_round(
    configure, configuration_file, tmp_path, observer
):
    ray = ("engine.grid=ray", "engine.workers=2")
    undisturbed = simulate(configure(*ray), home=Home.open(tmp_path / "other"), observer=observer)
    home = Home.open(tmp_path / "home")
    kill_at("accepted", configuration_file, home.path, *ray)
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
