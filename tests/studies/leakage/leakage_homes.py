"""The study's homes and callers: groups trained by the platform, rights by real policies."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from intarsia_client.records import records_digest
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.audits.views import Exam
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.groups.new_group import NewGroup
from intarsia_platform.groups.rows import GroupSettings, Rights
from intarsia_platform.home import Home
from leakage_groups import Size

EVERYBODY, NOBODY = "auditor", "stranger"
TENANT = "library"
POLICIES = """\
@id("readers")
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) && principal.clearance >= resource.level };
@id("own-tenant")
forbid(principal, action, resource)
unless { principal.tenant == resource.tenant };
"""


def intended_rights(groups: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Who is meant to use what: a reader of each group, two of two, one of all, one of none."""
    found = {f"{group}-reader": (group,) for group in groups}
    if len(groups) > 2:
        found["first-two"] = tuple(groups[:2])
        found["last-two"] = tuple(groups[-2:])
    return {**found, EVERYBODY: tuple(groups), NOBODY: ()}


def open_home(
    path: Path, exams: Sequence[Exam], size: Size, base: Path, only: Collection[str] | None = None
) -> Home:
    """A home with groups; those that it has from an earlier run are not trained again.

    Args:
        path: The home's folder.
        exams: The groups.
        size: How to train them.
        base: The base model's folder.
        only: Which groups; all of them by default.

    Returns:
        The home, without policies.
    """
    home = Home.open(path)
    settings = GroupSettings(
        rank=size.rank, epochs=size.epochs, batch_size=8, max_length=256, encoder="base"
    )
    with open_groups(home) as lifecycle:
        there = {group.name: group for group in lifecycle.groups.list()}
        for exam in exams:
            if only is not None and exam.group not in only:
                continue
            found = there.get(exam.group)
            if found is not None:
                trained = found.records_digest, found.settings.rank, found.settings.epochs
                if trained == (records_digest(exam.members), size.rank, size.epochs):
                    continue
                lifecycle.remove(exam.group)
            lifecycle.add(
                NewGroup(
                    name=exam.group,
                    base=str(base),
                    records=exam.members,
                    labels=[exam.group],
                    settings=settings,
                    rights=Rights(tenant=TENANT, level=1),
                )
            )
    return home


def set_rights(home: Home, rights: Mapping[str, Collection[str]]) -> None:
    """Put policies and users in force."""
    from intarsia_platform.registry.database import open_database

    users = [_user(name, groups) for name, groups in rights.items()]
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(users))


def _user(name: str, groups: Collection[str]) -> dict[str, Any]:
    attributes = {"groups": sorted(groups), "clearance": 1, "tenant": TENANT}
    return {"uid": {"type": "User", "id": name}, "attrs": attributes, "parents": []}
