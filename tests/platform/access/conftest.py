"""A database with adapters that policies speak of, and people who may use some of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from intarsia_platform.access.facts import AdapterFacts
from intarsia_platform.registry.access_tables import AdapterRightsTable
from intarsia_platform.registry.adapters import insert_adapter
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.rows import AdapterVersion
from sqlalchemy import event, insert

POLICIES = """\
// Who may use what.
@id("own-group")
permit(principal, action == Action::"use", resource)
when {
  principal.groups.containsAny(resource.labels) && principal.clearance >= resource.level
};

permit(principal == User::"auditor", action, resource) when { context.purpose == "audit" };

@id("never-mix")
forbid(principal, action, resource)
when { context.mixing && context.labels.containsAll(["finance", "legal"]) };
"""


def _user(name: str, *groups: str, clearance: int = 5) -> dict[str, object]:
    attributes = {"groups": list(groups), "clearance": clearance, "tenant": "acme"}
    return {"uid": {"type": "User", "id": name}, "attrs": attributes, "parents": []}


ENTITIES = json.dumps(
    [
        _user("ann", "finance", "legal"),
        _user("bob", "sales"),
        _user("auditor"),
        _user("low", "finance", clearance=0),
    ]
)


def digest_of(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


@pytest.fixture
def policies_text() -> str:
    return POLICIES


@pytest.fixture
def entities_text() -> str:
    return ENTITIES


@pytest.fixture
def facts() -> Callable[..., AdapterFacts]:
    """Makes facts without a registry."""

    def make(name: str, *labels: str, **more: object) -> AdapterFacts:
        given = {"digest": digest_of(name), "name": name, "labels": tuple(sorted(labels)), **more}
        return AdapterFacts(**given)

    return make


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(f"sqlite:///{tmp_path}/intarsia.db") as opened:
        # No test here is of a power cut; flushing every commit would take most of their time.
        opened.engine.dispose()
        event.listen(opened.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous=OFF"))
        yield opened


@pytest.fixture
def add_adapter(database: Database) -> Callable[..., str]:
    """Writes an adapter's rows as the registry does, and gives its digest."""

    def add(
        name: str,
        *labels: str,
        rights: bool = False,
        owner: str = "",
        tenant: str = "",
        level: int = 0,
        expires_at: datetime | None = None,
    ) -> str:
        digest = digest_of(name)
        version = AdapterVersion(
            digest=digest,
            name=name,
            base="base",
            base_digest=None,
            task="causal-lm",
            rank=4,
            size=10,
            tensors_digest=digest_of(f"{name} tensors"),
            configuration_digest=digest_of(f"{name} configuration"),
            manifest_digest=digest_of(f"{name} manifest"),
            run_id=None,
            round=None,
            created_at=datetime.now(UTC),
            labels=tuple(sorted(labels)),
        )
        with database.begin() as connection:
            insert_adapter(connection, version)
            if rights or owner or tenant or level or expires_at:
                row = {"owner": owner, "tenant": tenant, "level": level, "expires_at": expires_at}
                connection.execute(
                    insert(AdapterRightsTable).values(digest=digest, signature_digest=None, **row)
                )
        return digest

    return add
