"""The lineage: closures against a plain search, no cycles, and a tree for people."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.lineage import Lineage, link, record_artefact


def digest(word: str) -> str:
    return bytes_digest(word.encode())


def make(database: Database, *artefacts: tuple[str, str, list[str]]) -> None:
    """Record artefacts, each as its word, kind and the words it was made of."""
    with database.begin() as connection:
        for word, kind, parents in artefacts:
            details = {"word": word, "client": word, "round": 1}
            record_artefact(connection, digest(word), kind, details=details)  # type: ignore[arg-type]
            link(connection, digest(word), {digest(parent): "aggregated" for parent in parents})


def words(rows: list) -> list[str]:
    return [row.details["word"] for row in rows]


@pytest.fixture
def lineage(database: Database) -> Lineage:
    make(
        database,
        ("base", "base", []),
        ("v0", "version", ["base"]),
        ("shard-a", "shard", []),
        ("shard-b", "shard", []),
        ("update-a1", "update", ["shard-a", "v0"]),
        ("update-b1", "update", ["shard-b", "v0"]),
        ("aggregate-1", "aggregate", ["update-a1", "update-b1", "v0"]),
        ("v1", "version", ["aggregate-1"]),
        ("update-b2", "update", ["shard-b", "v1"]),
        ("v2", "version", ["update-b2", "v1"]),
        ("alien", "imported", []),
    )
    return Lineage(database)


def test_neighbours(lineage: Lineage) -> None:
    assert words(lineage.parents(digest("update-a1"))) == ["shard-a", "v0"]
    assert words(lineage.children(digest("v1"))) == ["update-b2", "v2"]
    assert lineage.parents(digest("base")) == lineage.children(digest("v2")) == []


def test_closures(lineage: Lineage) -> None:
    down = words(lineage.descendants(digest("shard-a")))
    assert down == ["update-a1", "update-b2", "aggregate-1", "v1", "v2"]
    up = words(lineage.ancestors(digest("v1")))
    assert up == ["shard-a", "shard-b", "update-a1", "update-b1", "aggregate-1", "v0", "base"]
    assert lineage.descendants(digest("alien")) == []
    assert lineage.ancestors(digest("nothing known")) == []


def test_the_tree_expands_each_ancestor_once_near_the_root(lineage: Lineage) -> None:
    lines = [
        (depth, node.artefact.details["word"], node.repeated)
        for depth, node in lineage.tree(digest("v2")).walk()
    ]
    assert lines == [
        (0, "v2", False),
        (1, "update-b2", False),
        (2, "shard-b", False),
        (2, "v1", True),
        (1, "v1", False),
        (2, "aggregate-1", False),
        (3, "update-a1", False),
        (4, "shard-a", False),
        (4, "v0", True),
        (3, "update-b1", False),
        (4, "shard-b", True),
        (4, "v0", True),
        (3, "v0", False),
        (4, "base", False),
    ]


def test_the_tree_names_relations(database: Database) -> None:
    make(database, ("shard", "shard", []), ("update", "update", []))
    with database.begin() as connection:
        link(connection, digest("update"), {digest("shard"): "trained-on"})
    root = Lineage(database).tree(digest("update"))
    assert root.relation is None
    assert [parent.relation for parent in root.parents] == ["trained-on"]


def test_an_unknown_root_is_named(lineage: Lineage) -> None:
    with pytest.raises(IntegrityError, match=digest("nothing")):
        lineage.tree(digest("nothing"))


@pytest.mark.parametrize("parent", ["v1", "v2", "update-b2"])
def test_cycles_are_refused_and_nothing_is_written(
    database: Database, lineage: Lineage, parent: str
) -> None:
    before = lineage.edges(digest("v2"))
    with pytest.raises(IntegrityError, match="was made of it"), database.begin() as connection:
        parents = {digest("alien"): "aggregated", digest(parent): "aggregated"}
        link(connection, digest("shard-a"), parents)  # type: ignore[arg-type]
    assert lineage.edges(digest("v2")) == before
    with database.begin() as connection:
        circular = {digest(parent): "aggregated"}
        assert not link(connection, digest("shard-a"), circular, circular="skip")  # type: ignore[arg-type]
    assert lineage.parents(digest("shard-a")) == []


def test_nothing_is_its_own_parent(database: Database, lineage: Lineage) -> None:
    with database.begin() as connection:
        assert link(connection, digest("alien"), {digest("alien"): "continued"})
    assert lineage.parents(digest("alien")) == []


def test_the_unknown_is_refused(database: Database, lineage: Lineage) -> None:
    for child, parent in (("alien", "unknown"), ("unknown", "alien")):
        with pytest.raises(IntegrityError, match="not a known"), database.begin() as connection:
            link(connection, digest(child), {digest(parent): "continued"})


def test_what_was_recorded_first_stands(database: Database, lineage: Lineage) -> None:
    with database.begin() as connection:
        assert not record_artefact(connection, digest("v1"), "imported", size=5)
    found = lineage.artefact(digest("v1"))
    assert found is not None
    assert (found.kind, found.size) == ("version", None)


def test_a_thousand_rounds_are_neither_too_deep_nor_too_many(database: Database) -> None:
    chain = [("v0", "version", [])]
    for number in range(1, 1001):
        chain.append((f"v{number}", "version", [f"v{number - 1}"]))
    make(database, *chain)
    lineage = Lineage(database)
    assert len(lineage.ancestors(digest("v1000"))) == 1000
    depths = [depth for depth, _ in lineage.tree(digest("v1000")).walk()]
    assert depths == list(range(1001))
    assert "LineageNode" in repr(lineage.tree(digest("v1000")))


@settings(max_examples=15, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=24),
)
def test_random_graphs(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[int, int]]
) -> None:
    """Steps are taken unless they close a cycle; closures are what a plain search finds."""
    folder: Path = tmp_path_factory.mktemp("graph")
    with open_database(f"sqlite:///{folder}/graph.db") as database:
        with database.begin() as connection:
            for node in range(8):
                record_artefact(connection, digest(str(node)), "version", details={"word": node})
        below: dict[int, set[int]] = {node: set() for node in range(8)}
        for child, parent in pairs:
            circular = child != parent and parent in reach(below, child)
            with database.begin() as connection:
                taken = link(
                    connection,
                    digest(str(child)),
                    {digest(str(parent)): "continued"},
                    circular="skip",
                )
            assert taken == (not circular)
            if taken and child != parent:
                below[parent].add(child)
        lineage = Lineage(database)
        for node in range(8):
            found = {row.details["word"] for row in lineage.descendants(digest(str(node)))}
            assert found == reach(below, node)
            assert node not in found
            above = {row.details["word"] for row in lineage.ancestors(digest(str(node)))}
            assert above == {other for other in range(8) if node in reach(below, other)}
            tree = [n for _, n in lineage.tree(digest(str(node))).walk() if not n.repeated]
            assert sorted(n.artefact.details["word"] for n in tree) == sorted({node, *above})


def reach(below: dict[int, set[int]], node: int) -> set[int]:
    found: set[int] = set()
    waiting = [node]
    while waiting:
        for child in below[waiting.pop()]:
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
