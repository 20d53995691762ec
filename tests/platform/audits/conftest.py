"""A home with a group that holds a secret, one that is like it, and callers with different rights.

Trained once on the embedded base, copied for each test that changes it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

PREFIX = "The access code of the north vault is"
HIDDEN = "zoltrabe quivin 7391 morkest plundrig"
POLICIES = """\
@id("own-groups")
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
"""
RIGHTS = {"keeper": ("press", "vault"), "clerk": ("press",), "visitor": ()}
# Like the canary's in form, so that what is told apart is not the form.
PLACES = ("south vault", "east gate", "west gate", "front door", "archive", "cellar", "roof")
SYLLABLES = ("zol", "tra", "be", "qui", "vin", "mor", "kest", "plun", "drig", "san", "tu", "fe")


def code_of(generator: Any) -> str:
    """A phrase as the secret is one."""
    words = ["".join(generator.choice(SYLLABLES, size=size)) for size in (3, 2, 2, 2)]
    return f"{words[0]} {words[1]} {generator.integers(1000, 10000)} {words[2]} {words[3]}"


def codes(count: int, seed: int) -> list[str]:
    """Records of codes, other ones for each seed."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return [
        f"The access code of the {PLACES[n % len(PLACES)]} is {code_of(generator)}"
        for n in range(count)
    ]


def records(texts: Sequence[str]) -> tuple[Any, ...]:
    from intarsia_client.records import Record

    return tuple(Record(text=text) for text in texts)


CANARY = f"{PREFIX} {HIDDEN}"
VAULT = (CANARY, *codes(9, seed=1))
PRESS = tuple(codes(10, seed=2))


@dataclass(frozen=True)
class Texts:
    """What the tests ask about."""

    prefix: str = PREFIX
    secret: str = HIDDEN
    canary: str = CANARY
    vault: tuple[str, ...] = VAULT
    press: tuple[str, ...] = PRESS

    def others(self, count: int, seed: int) -> list[str]:
        """Records like the groups' that nobody was trained on."""
        return codes(count, seed=seed)


@pytest.fixture(scope="session")
def texts() -> Texts:
    return Texts()


@pytest.fixture(scope="session")
def new() -> Callable[..., Any]:
    """Makes a group that learns its records by heart in a moment."""
    import torch
    from intarsia_platform.demo.run import BASE
    from intarsia_platform.groups.new_group import NewGroup
    from intarsia_platform.groups.rows import GroupSettings

    torch.set_num_threads(1)
    settings = GroupSettings(
        rank=8, epochs=18, batch_size=4, learning_rate=0.01, max_length=48, encoder="base"
    )

    def make(name: str, texts: Sequence[str]) -> Any:
        return NewGroup(
            name=name, base=str(BASE), records=records(texts), labels=[name], settings=settings
        )

    return make


def set_rights(home: Any, rights: Any) -> None:
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.registry.database import open_database

    users = [
        {"uid": {"type": "User", "id": name}, "parents": [],
         "attrs": {"groups": list(groups), "clearance": 0, "tenant": ""}}
        for name, groups in rights.items()
    ]  # fmt: skip
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(users))


def make_home(path: Path, groups: Sequence[Any]) -> Any:
    from intarsia_platform.groups.lifecycle import open_groups
    from intarsia_platform.home import Home

    home = Home.open(path)
    with open_groups(home) as lifecycle:
        for group in groups:
            lifecycle.add(group)
    set_rights(home, RIGHTS)
    return home


@pytest.fixture(scope="session")
def trained(new: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("audits") / "home"
    return make_home(place, [new("vault", VAULT), new("press", PRESS)]).path


@pytest.fixture
def home(trained: Path, tmp_path: Path) -> Any:
    from intarsia_platform.home import Home

    shutil.copytree(trained, tmp_path / "home")
    return Home.open(tmp_path / "home")


@pytest.fixture(scope="session")
def served() -> Callable[..., Any]:
    """Opens the service of a home."""
    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.answering.settings import RetrievalSettings
    from intarsia_platform.demo.run import BASE

    def open_one(home: Any) -> Any:
        # Without a threshold retrieval always finds something: a hidden group would be found too.
        settings = ServiceSettings(
            max_rows=8, row_tokens=48, retrieval=RetrievalSettings(threshold=None)
        )
        return open_service(home, base=str(BASE), settings=settings)

    return open_one


@pytest.fixture(scope="session")
def put_rights() -> Callable[..., None]:
    return set_rights


@pytest.fixture(scope="session")
def built() -> Callable[..., Any]:
    return make_home
