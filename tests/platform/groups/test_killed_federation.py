"""Processes killed with SIGKILL at every stage of a group's federation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from deadly import killed_by
from intarsia_platform.groups.federating import open_federated_groups
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.home import Home
from intarsia_platform.registry.store import ContentStore

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("killed_federation.py")
POINTS = ("first-update", "between-rounds", "aggregating", "federated", "describing", "rows")
COMMITTED = ("after-commit", "half-cleared")
CANARY = "marzipan-4711 opens the vault"


@pytest.fixture(scope="module")
def studies(write_study, site_texts, tmp_path_factory):
    """The clients' data with a document, and without it."""
    folder, texts = tmp_path_factory.mktemp("studies"), site_texts()
    with_it = {**texts, "north": [*texts["north"], CANARY]}
    return write_study(folder / "with", with_it), write_study(folder / "without", texts)


@pytest.fixture(scope="module")
def whole(studies, order_of, deaf, tmp_path_factory):
    """A home with the group, and the group after an undisturbed change as well."""
    home = Home.open(tmp_path_factory.mktemp("whole") / "home")
    with open_federated_groups(home) as (_, federated):
        first = federated.federate(order_of(studies[0]), observer=deaf).group
        kept = shutil.copytree(home.path, home.path.with_name("kept"))
        return kept, first, federated.federate(order_of(studies[1]), observer=deaf).group


@pytest.fixture(scope="module")
def die(llama):
    """Federates in a process that kills itself at a point."""
    with killed_by(SCRIPT, llama) as ask:
        yield lambda home, study, point: ask(home=str(home.path), study=str(study), point=point)


def nothing_is_left(home, owned):
    assert not (home.path / "federations").exists()
    assert list((home.path / "groups").glob("*")) == []
    assert set(ContentStore(home.store_url).digests()) == owned(home)


@pytest.mark.parametrize("point", [*POINTS, *COMMITTED])
def test_a_killed_federation_goes_on_and_ends_with_the_same_digests(
    whole, studies, die, home, order_of, deaf, owned, point
):
    _, first, _ = whole
    die(home, studies[0], point)
    with open_groups(home) as lifecycle:
        # The next command finishes what is committed, and keeps what is not.
        groups = [group.name for group in lifecycle.groups.list()]
        assert groups == (["wards"] if point in COMMITTED else [])
        assert (home.path / "federations").exists() is (point in POINTS)
    with open_federated_groups(home) as (lifecycle, federated):
        change = federated.federate(order_of(studies[0]), observer=deaf)
        assert change.unchanged is (point in COMMITTED)
        assert change.group.adapter_digest == first.adapter_digest
        assert change.group.descriptor_digest == first.descriptor_digest
        assert lifecycle.groups.admitted(first.adapter_digest, lifecycle.key)
    nothing_is_left(home, owned)


@pytest.mark.parametrize("point", ["between-rounds", "rows", "after-commit"])
def test_a_killed_change_leaves_the_version_before_or_the_one_after(
    whole, studies, die, tmp_path, order_of, deaf, owned, holds, point
):
    kept, first, second = whole
    shutil.copytree(kept, tmp_path / "home")
    home = Home.open(tmp_path / "home")
    die(home, studies[1], point)
    with open_federated_groups(home) as (lifecycle, federated):
        group = lifecycle.groups.get("wards")
        assert group.version == (2 if point == "after-commit" else 1)
        assert lifecycle.groups.admitted(group.adapter_digest, lifecycle.key)
        after = federated.federate(order_of(studies[1]), observer=deaf).group
    assert (after.version, after.adapter_digest) == (2, second.adapter_digest)
    nothing_is_left(home, owned)
    assert holds(home, CANARY.encode()) == []
    assert holds(home, first.adapter_digest[7:].encode()) == []


def test_a_killed_federation_is_not_taken_for_another(
    whole, studies, die, home, order_of, deaf, owned, holds
):
    _, _, second = whole
    die(home, studies[0], "between-rounds")
    assert holds(home, CANARY.encode())
    # The document was withdrawn before it went on.
    with open_federated_groups(home) as (_, federated):
        group = federated.federate(order_of(studies[1]), observer=deaf).group
    assert (group.version, group.adapter_digest) == (1, second.adapter_digest)
    nothing_is_left(home, owned)
    assert holds(home, CANARY.encode()) == []
