from __future__ import annotations

import os
import subprocess
import sys

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.groups.workspace import FederationWorkspaces

HOLDER = """
import sys
from pathlib import Path
from intarsia_platform.groups.workspace import FederationWorkspaces
with FederationWorkspaces(Path(sys.argv[1])).opened("wards", "key") as work:
    (work.path / "half").write_text("done")
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "federations"


@pytest.fixture
def workspaces(folder):
    return FederationWorkspaces(folder)


def leave(workspaces, name="wards", key="key", text="half"):
    """What a process that was killed leaves."""
    with workspaces.opened(name, key) as work:
        (work.path / text).write_text("records")
        (work.path / "home").mkdir()
        (work.path / "home" / "store").write_text("updates")
    return work.path


def test_the_same_work_goes_on_and_other_work_begins_anew(workspaces):
    path = leave(workspaces)
    with workspaces.opened("wards", "key") as work:
        assert work.path == path and (path / "half").read_text() == "records"
    with workspaces.opened("wards", "another key") as work:
        assert work.path == path and not (path / "half").exists() and not (path / "home").exists()
    assert leave(workspaces, name="others") != path
    assert workspaces.unfinished() == ("others", "wards")


def test_a_folder_has_a_home_of_its_own_whatever_the_environment_says(workspaces, monkeypatch):
    monkeypatch.setenv("INTARSIA_DATABASE_URL", "sqlite:///elsewhere.db")
    monkeypatch.setenv("INTARSIA_STORE_URL", "elsewhere")
    with workspaces.opened("wards", "key") as work:
        assert work.home.path == work.path / "home"
        assert str(work.path) in work.home.database_url and str(work.path) in work.home.store_url


def test_finished_work_leaves_nothing(workspaces, folder):
    leave(workspaces)
    with workspaces.opened("wards", "key") as work:
        workspaces.finish(work)
    assert not folder.exists()
    assert workspaces.unfinished() == ()


def test_a_sweep_takes_what_is_published_and_what_half_deletions_left(workspaces, folder):
    published, going = leave(workspaces), leave(workspaces, name="others")
    half = leave(workspaces, name="third")
    (half / "federation.json").unlink()
    workspaces.sweep({"wards": "key", "others": "earlier key"}.get)
    assert not published.exists() and not half.exists()
    assert (going / "half").exists()
    workspaces.sweep({"others": "key"}.get)
    assert not folder.exists()


def test_given_up_work_is_gone(workspaces, folder):
    leave(workspaces)
    assert not workspaces.give_up("others")
    assert workspaces.give_up("wards") and not folder.exists()


def test_two_processes_do_not_work_in_one_folder(workspaces, folder):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        for key in ("key", "another key"):
            with (
                pytest.raises(InputError, match="another process"),
                workspaces.opened("wards", key),
            ):
                pass
        # Nor is it swept, though it is of published work.
        workspaces.sweep({"wards": "key"}.get)
        other.kill()
    # The lock went with the process; what it did is there.
    with workspaces.opened("wards", "key") as work:
        assert (work.path / "half").read_text() == "done"


def test_a_link_is_removed_and_not_followed(workspaces, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with workspaces.opened("wards", "key") as work:
        (work.path / "link").symlink_to(outside)
        workspaces.finish(work)
    assert (outside / "kept").exists()
