"""Groups that change under a service that runs: a real ``intarsia serve``, and one in this process.

The served group's federations run as processes of their own, as a person would type them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import httpx
import pytest
from intarsia_client.errors import AccessError
from intarsia_client.wire import Adapter
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.answering.service import ServiceSettings, open_service
from intarsia_platform.answering.use import parse_use
from intarsia_platform.groups.desk import AdmissionDesk
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.sampling import Sampling

pytestmark = pytest.mark.slow

PROGRAM = "import sys; from intarsia_platform.cli.main import main; sys.exit(main())"
CANARY = "marzipan-4711 opens the vault"
POLICIES = """
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
"""
USERS = [
    {"uid": {"type": "User", "id": name}, "attrs": {"groups": groups}, "parents": []}
    for name, groups in (("ann", ["medical"]), ("bob", ["legal"]))
]


@pytest.fixture
def keys(home):
    """Policies in force, and each caller's key."""
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(USERS))
        return {name: ApiKeys(database).create(name)[1] for name in ("ann", "bob")}


@pytest.fixture
def begin(home):
    """Begins a command line as a process; what still runs at the end is ended."""
    begun = []

    def start(*words):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, words), "--home", str(home.path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@pytest.fixture
def federate(begin, write_study, tmp_path):
    """Federates the group in a process of its own, from these texts of the clients."""

    def run(texts):
        study = write_study(tmp_path / "study", texts)
        process = begin("groups", "federate", "wards", "--from", study, "--clients", "north,south",
                        "--label", "medical", "--encoder", "base", "--json", "-")  # fmt: skip
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def with_canary(site_texts):
    texts = site_texts()
    return {**texts, "north": [*texts["north"], CANARY]}


def compose(home, name):
    """Registers and admits an adapter that was made of a group's."""
    with open_database(home.database_url) as database:
        store = ContentStore(home.store_url)
        registry = AdapterRegistry(database, store)
        part, source = registry.load(name), registry.get(name).digest
        halves = {key: replace(one, b=one.b / 2) for key, one in part.modules.items()}
        made = registry.prepare(
            Adapter(base=part.base, task=part.task, modules=halves), name="joined"
        )
        registry.register(made, parents=[source])
        return AdmissionDesk(database, store, home).admit("joined").digest


def test_a_served_group_is_federated_changed_and_removed_without_a_restart(
    home, keys, begin, federate, with_canary, site_texts, llama, tmp_path, holds
):
    place = tmp_path / "server.json"
    server = begin("serve", "--base", llama, "--port", 0, "--rows", 2, "--json", place)
    end = time.monotonic() + 120
    while not place.exists():
        assert server.poll() is None and time.monotonic() < end, server.communicate()
        time.sleep(0.1)
    url = json.loads(place.read_text())["url"]

    def http(caller, path, body=None):
        headers = {"Authorization": f"Bearer {keys[caller]}"}
        if body is None:
            return httpx.get(url + path, headers=headers, timeout=60)
        return httpx.post(url + path, headers=headers, json=body, timeout=60)

    def models(caller):
        return [one["id"] for one in http(caller, "/v1/models").json()["data"]]

    def used(model):
        body = {"model": model, "prompt": "a ward", "max_tokens": 4, "temperature": 0}
        return http("ann", "/v1/completions", body)

    assert models("ann") == models("bob") == ["auto", "base"]
    first = federate(with_canary)
    assert models("ann") == ["auto", "base", "wards"] and models("bob") == ["auto", "base"]
    answer = used("wards").json()
    assert [one["adapter"] for one in answer["intarsia"]["used"]] == [first["adapter"]]
    joined = compose(home, "wards")
    assert models("ann") == ["auto", "base", "joined", "wards"]
    assert used("joined").json()["intarsia"]["used"][0]["adapter"] == joined
    # A document is withdrawn at its site: the group is trained again and swapped.
    second = federate(site_texts())
    assert second["version"] == 2 and second["adapter"] != first["adapter"]
    assert second["invalidated"] == [joined]
    assert models("ann") == ["auto", "base", "wards"]
    answer = used("wards").json()
    assert [one["adapter"] for one in answer["intarsia"]["used"]] == [second["adapter"]]
    gone, unknown = used("joined"), used("nobody")
    assert gone.status_code == unknown.status_code == 404
    assert gone.content.replace(b"joined", b"nobody") == unknown.content
    for needle in (CANARY, first["descriptor"]["digest"][7:]):
        assert holds(home, needle.encode()) == []
    out, err = begin("groups", "remove", "wards").communicate(timeout=120)
    assert models("ann") == ["auto", "base"], (out, err)
    assert server.poll() is None


def test_what_left_the_registry_leaves_the_services_memory(
    home, keys, federated, order_of, deaf, write_study, with_canary, site_texts, llama, tmp_path
):
    def federate(name, texts):
        order = order_of(write_study(tmp_path / name, texts))
        return federated.federate(order, observer=deaf).group

    before = federate("before", with_canary)
    joined = compose(home, "wards")
    settings = ServiceSettings(max_rows=2, alone=True)
    with open_service(home, base=llama, settings=settings) as service:

        def ask(use, text="a ward of the hospital"):
            ticket = service.authorize("ann")
            return service.answer(ticket, text, parse_use(use), Sampling(max_tokens=4))

        ask("joined=0.5,wards=0.5")
        # A text of the group's own is found by what its clients said of their texts.
        found = ask("auto", site_texts()["south"][0])
        assert [one.name for one in found.used] == ["wards"]
        kept = service._machine
        assert {before.adapter_digest, joined} <= set(kept.bank.digests)
        assert before.descriptor_digest in kept.descriptors.digests
        after = federate("after", site_texts())
        assert ask("wards").used[0].digest == after.adapter_digest
        assert not {before.adapter_digest, joined} & set(kept.bank.digests)
        assert before.descriptor_digest not in kept.descriptors.digests
        with pytest.raises(AccessError):
            ask("joined")
        with open_groups(home) as lifecycle:
            lifecycle.remove("wards")
        assert ask("auto").used == ()
        assert after.adapter_digest not in kept.bank.digests
