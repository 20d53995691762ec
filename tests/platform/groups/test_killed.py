"""Processes killed with SIGKILL at every point of adding and updating a group."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deadly import killed_by
from intarsia_client.records import Record
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.groups.new_group import NewGroup
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.home import Home
from intarsia_platform.registry.store import ContentStore

SCRIPT = Path(__file__).with_name("killed_group.py")
POINTS = (
    "training", "rows", "noting", "first-blob", "half-a-blob", "last-blob", "before-commit",
    "after-commit",
)  # fmt: skip
CANARY = "marzipan-4711 opens the vault, as everybody on the ward knows by now"
SETTINGS = {"rank": 2, "epochs": 2, "encoder": "base"}


@pytest.fixture(scope="module")
def first(llama, records, tmp_path_factory):
    """A home with the group in its first version, and the group."""
    home = Home.open(tmp_path_factory.mktemp("first") / "home")
    with open_groups(home) as lifecycle:
        return home, lifecycle.add(_group(llama, records))


@pytest.fixture(scope="module")
def die(llama, records):
    """Does one thing in a process that kills itself at a point."""
    everything = [CANARY, *(record.text for record in records)]
    with killed_by(SCRIPT, llama) as ask:
        yield lambda home, what, point: ask(
            home=str(home.path), what=what, point=point, base=llama, settings=SETTINGS,
            texts=everything if what == "add" else [CANARY],
        )  # fmt: skip


def _group(llama, records):
    settings = GroupSettings(**SETTINGS)
    return NewGroup(name="wards", base=llama, records=[Record(text=CANARY), *records],
                    labels=["medical"], settings=settings)  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_addition_is_there_or_not_and_can_be_done_again(
    first, die, home, llama, records, owned, holds, point
):
    _, whole = first
    die(home, "add", point)
    if point == "half-a-blob":
        (half,) = [path for path in home.path.rglob(".*") if path.is_file()]
        assert CANARY in half.read_text()
    with open_groups(home) as lifecycle:
        groups = lifecycle.groups.list()
        assert [group.name for group in groups] == (["wards"] if point == "after-commit" else [])
        assert set(ContentStore(home.store_url).digests()) == owned(home)
        assert list((home.path / "groups").glob("*")) == []
        if not groups:
            assert holds(home, CANARY.encode()) == []
            groups = (lifecycle.add(_group(llama, records)),)
        assert groups[0].adapter_digest == whole.adapter_digest
        assert lifecycle.groups.admitted(whole.adapter_digest, lifecycle.key)
        assert set(ContentStore(home.store_url).digests()) == owned(home)


@pytest.mark.parametrize("point", [*POINTS, "first-deletion"])
def test_a_killed_update_leaves_the_version_before_or_the_one_after(
    first, die, tmp_path, owned, holds, point
):
    before, whole = first
    shutil.copytree(before.path, tmp_path / "home")
    home = Home.open(tmp_path / "home")
    die(home, "update", point)
    with open_groups(home) as lifecycle:
        group = lifecycle.groups.get("wards")
        committed = point in ("after-commit", "first-deletion")
        assert group.version == (2 if committed else 1)
        if not committed:
            assert group == whole
            assert lifecycle.groups.admitted(whole.adapter_digest, lifecycle.key)
            assert lifecycle.groups.records(group)[0].text == CANARY
            group = lifecycle.update("wards", remove=[Record(text=CANARY)]).group
        assert lifecycle.groups.admitted(group.adapter_digest, lifecycle.key)
        assert len(lifecycle.groups.records(group)) == group.records == whole.records - 1
        assert set(ContentStore(home.store_url).digests()) == owned(home)
        assert list((home.path / "groups").glob("*")) == []
        for needle in (CANARY, whole.adapter_digest[7:], whole.records_digest[7:]):
            assert holds(home, needle.encode()) == []
