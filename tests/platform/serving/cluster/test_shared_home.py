"""What replicas share without Ray: the home's secret, its epoch, and how a start goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from intarsia_client.errors import AccessError, InputError, StorageError
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.ticket import Ticket, open_mint
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database

POLICIES = 'permit(principal, action == Action::"use", resource);'
OTHER = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.ticket import open_mint
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database
home = Home.open(Path(sys.argv[1]))
with open_database(home.database_url) as database:
    authorizer = Authorizer(database, open_mint(home))
    for line in sys.stdin:
        ticket = asdict(authorizer.authorize("ann", credential=line.strip()))
        print(json.dumps({**ticket, "apart": sorted(ticket["apart"])}), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def other(home: Home) -> Iterator[Any]:
    """Another process of the same home; gives a ticket for each key that it is told of."""
    process = subprocess.Popen(
        [sys.executable, "-c", OTHER, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ticket(credential: str) -> Ticket:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{credential}\n")
        process.stdin.flush()
        fields = json.loads(process.stdout.readline())
        assert not fields["adapters"]
        return Ticket(**{**fields, "adapters": (), "apart": frozenset()})

    yield ticket
    process.communicate()


def test_a_ticket_is_let_in_by_the_process_that_issued_it_until_its_key_is_revoked(
    home: Home, other: Any
) -> None:
    users = [{"uid": {"type": "User", "id": "ann"}, "attrs": {"groups": []}, "parents": []}]
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(users))
        key, _ = ApiKeys(database).create("ann")
        authorizer = Authorizer(database, open_mint(home))
        first, second = (authorizer.authorize("ann", credential=key) for _ in range(2))
        authorizer.admit(first)
        assert authorizer.standing(first, ())
        foreign = other(key)
        open_mint(home).check(foreign, foreign.issued_at)
        for refused in (foreign, replace(foreign, issuer=first.issuer)):
            with pytest.raises(AccessError):
                authorizer.admit(refused)
        ApiKeys(database).revoke(key)
        assert authorizer.epoch() > first.epoch
        assert not authorizer.standing(first, ())
        with pytest.raises(AccessError):
            authorizer.admit(second)


def test_what_is_wrong_with_a_home_or_an_address_is_told_before_ray_starts(home: Home) -> None:
    pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)
    import ray
    from intarsia_platform.gateway.server import bind
    from intarsia_platform.serving_cluster.replicas import running_replicas
    from intarsia_platform.serving_cluster.settings import ReplicaPlan, ReplicaSettings

    def start(port: int = 0, base: str | None = None) -> None:
        plan = ReplicaPlan(home=home.path, base=base)
        with running_replicas(plan, ReplicaSettings(replicas=2), port=port):
            pass

    with pytest.raises(InputError, match="the home has no groups"):
        start()
    with pytest.raises(InputError, match="nowhere"):
        start(base=str(home.path / "nowhere"))
    stories = Path(__file__).parents[5] / "shared/data/stories260k/hf"
    if (stories / "model.safetensors").is_file():
        with bind("127.0.0.1", 0) as taken, pytest.raises(StorageError, match="address"):
            taken.listen()
            start(port=taken.getsockname()[1], base=str(stories))
    assert not ray.is_initialized()
