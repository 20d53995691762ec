"""A home with real groups of a real small model, trained once, copied for each test."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

STORIES = Path(__file__).parents[4] / "shared/data/stories260k/hf"

TEXTS = {
    "sea": "The ship sailed to harbour {n} and the captain dropped the anchor in the blue sea.",
    "farm": "The farmer fed {n} cows and the hens slept in the barn behind the green field.",
    "space": "The rocket flew past {n} stars and the robot looked at the moon from its window.",
    "vault": "The king hid {n} gold coins in the dark castle and gave the key to a dragon.",
}
POLICIES = """\
@id("own-groups")
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
@id("never-mix")
forbid(principal, action, resource)
when { context.mixing && context.labels.containsAll(["farm", "space"]) };
"""


def _user(name: str, *groups: str) -> dict[str, Any]:
    attributes = {"groups": list(groups), "clearance": 1, "tenant": "acme"}
    return {"uid": {"type": "User", "id": name}, "attrs": attributes, "parents": []}


USERS = [
    _user("ann", "sea", "farm"),
    _user("bob", "farm", "space"),
    _user("all", *TEXTS),
    _user("nobody"),
]


def records_of(name: str, count: int = 8) -> tuple[Any, ...]:
    from intarsia_client.records import Record

    return tuple(Record(text=TEXTS[name].format(n=n)) for n in range(2, 2 + count))


@pytest.fixture(scope="session")
def stories() -> str:
    if not (STORIES / "model.safetensors").is_file():
        pytest.skip(f"{STORIES} is not there")
    import torch

    torch.set_num_threads(1)
    return str(STORIES)


@pytest.fixture(scope="session")
def new(stories: str) -> Callable[..., Any]:
    """Makes a group that trains in a moment."""
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings

    def make(name: str, records: Any = None, **changes: Any) -> Any:
        settings = GroupSettings(rank=4, epochs=4, batch_size=4, encoder="base", max_length=48)
        given = {"base": stories, "labels": [name], "settings": settings, **changes}
        return NewGroup(name=name, records=records or records_of(name), **given)

    return make


def set_policies(home: Any, policies: str = POLICIES, users: Any = None) -> None:
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.registry.database import open_database

    with open_database(home.database_url) as database:
        PolicyStore(database).set(policies, json.dumps(users or USERS))


@pytest.fixture(scope="session")
def trained(new: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with all four groups and policies for four principals."""
    from intarsia_platform.groups.lifecycle import open_groups
    from intarsia_platform.home import Home

    home = Home.open(tmp_path_factory.mktemp("trained") / "home")
    with open_groups(home) as groups:
        for name in TEXTS:
            groups.add(new(name))
    set_policies(home)
    return home.path


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Callable[..., Any]:
    """Copies the trained home under a name."""
    from intarsia_platform.home import Home

    def make(name: str = "home") -> Any:
        shutil.copytree(trained, tmp_path / name)
        return Home.open(tmp_path / name)

    return make


@pytest.fixture
def home(copy: Callable[..., Any]) -> Any:
    return copy()


@pytest.fixture
def service(home: Any) -> Iterator[Any]:
    from intarsia_platform.answering.service import open_service

    with open_service(home, settings=quick()) as opened:
        yield opened


def quick(**changes: Any) -> Any:
    from intarsia_platform.answering.service import ServiceSettings
    from intarsia_platform.answering.settings import RetrievalSettings

    # Without a threshold and with a high temperature everything that may be is mixed: a hidden
    # adapter would show at once. What both do is the retriever's to test.
    always = RetrievalSettings(threshold=None, temperature=30.0)
    return ServiceSettings(**{"max_rows": 4, "row_tokens": 96, "retrieval": always, **changes})


@pytest.fixture(scope="session")
def settings() -> Callable[..., Any]:
    """Settings of a small service."""
    return quick


@pytest.fixture(scope="session")
def texts() -> dict[str, str]:
    return TEXTS


@pytest.fixture(scope="session")
def put_policies() -> Callable[..., None]:
    return set_policies


@pytest.fixture(scope="session")
def own_records() -> Callable[..., tuple[Any, ...]]:
    return records_of
