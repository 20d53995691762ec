"""What was made of what: a graph of digests without cycles.

Read from a version upwards it says where an adapter comes from; read from a shard downwards it is
the closure that a deletion has to reach.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from intarsia_client.errors import IntegrityError
from sqlalchemy import CTE, Connection, select

from intarsia_platform.registry.database import (
    Database,
    insert_all_if_absent,
    insert_if_absent,
    serialise,
)
from intarsia_platform.registry.rows import ARTEFACT_KINDS, ArtefactKind, ArtefactRow
from intarsia_platform.registry.tables import ArtefactTable, LineageTable

Relation = Literal["trained-on", "started-from", "aggregated", "continued", "published-from"]


@dataclass(frozen=True, kw_only=True)
class Edge:
    """One step of the lineage.

    Args:
        child: Digest of what was made.
        parent: Digest of what it was made of.
        relation: How.
    """

    child: str
    parent: str
    relation: str


@dataclass(frozen=True, kw_only=True, eq=False)
class LineageNode:
    """An artefact with what it was made of below it.

    Args:
        artefact: The artefact.
        relation: How the node above was made of it; None at the root.
        repeated: Whether it stands elsewhere in the tree, nearer to the root, with its parents.
        parents: What it was made of, in a fixed order; empty where ``repeated``.
    """

    artefact: ArtefactRow
    relation: str | None
    repeated: bool
    parents: tuple[LineageNode, ...] = field(default=(), repr=False)

    def walk(self) -> Iterator[tuple[int, LineageNode]]:
        """Every node in the order of printing.

        Yields:
            Depth from 0, and the node.
        """
        waiting = [(0, self)]
        while waiting:
            depth, node = waiting.pop()
            yield depth, node
            waiting.extend((depth + 1, parent) for parent in reversed(node.parents))


class Lineage:
    """Questions to the graph.

    Args:
        database: The registry's database.
    """

    def __init__(self, database: Database) -> None:
        """Keep the database."""
        self._database = database

    def artefact(self, digest: str) -> ArtefactRow | None:
        """The artefact of that digest, or None where there is none."""
        with self._database.read() as connection:
            return next(iter(find_artefacts(connection, [digest])), None)

    def parents(self, digest: str) -> list[ArtefactRow]:
        """What it was made of directly; in the order of :meth:`tree`, empty for the unknown."""
        wanted = select(LineageTable.parent).where(LineageTable.child == digest)
        return self._artefacts(wanted.cte("wanted"))

    def children(self, digest: str) -> list[ArtefactRow]:
        """What was made of it directly; ordered as :meth:`parents`."""
        wanted = select(LineageTable.child).where(LineageTable.parent == digest)
        return self._artefacts(wanted.cte("wanted"))

    def ancestors(self, digest: str) -> list[ArtefactRow]:
        """All that it was made of, however far back; ordered as :meth:`parents`."""
        return self._artefacts(_reach_up(digest))

    def descendants(self, digest: str) -> list[ArtefactRow]:
        """All that was made of it, however far on; ordered as :meth:`parents`.

        Formal guarantee: every recorded artefact that depends on ``digest`` is among them.
        """
        return self._artefacts(_reach_down(digest))

    def edges(self, digest: str) -> list[Edge]:
        """Every step above an artefact: its own, its parents' and so on; sorted."""
        with self._database.read() as connection:
            return _edges_above(connection, digest)

    def tree(self, digest: str) -> LineageNode:
        """Where an artefact comes from, each ancestor expanded once, as near to the root as it is.

        Args:
            digest: The artefact.

        Returns:
            The root. Siblings are ordered by kind, round, client and digest.

        Raises:
            IntegrityError: If the artefact is not known.
        """
        with self._database.read() as connection:
            edges = _edges_above(connection, digest)
            digests = {digest, *(edge.parent for edge in edges)}
            artefacts = {row.digest: row for row in find_artefacts(connection, digests)}
        if digest not in artefacts:
            raise _unknown(digest)
        return _tree(digest, edges, artefacts)

    def _artefacts(self, wanted: CTE) -> list[ArtefactRow]:
        (digest,) = wanted.c
        statement = select(ArtefactTable).where(ArtefactTable.digest.in_(select(digest)))
        with self._database.read() as connection:
            rows = [_artefact(row._asdict()) for row in connection.execute(statement)]
        return sorted(rows, key=_order)


def record_artefact(
    connection: Connection,
    digest: str,
    kind: ArtefactKind,
    *,
    size: int | None = None,
    details: Mapping[str, Any] | None = None,
) -> bool:
    """Write an artefact down unless it is known; what was recorded first stands.

    Args:
        connection: An open transaction.
        digest: Its digest.
        kind: One of :data:`~intarsia_platform.registry.rows.ARTEFACT_KINDS`.
        size: Bytes, None where it never came here.
        details: What else is known, as JSON values.

    Returns:
        Whether it was new.
    """
    row = {
        "digest": digest,
        "kind": kind,
        "size": size,
        "created_at": datetime.now(UTC),
        "details": dict(details or {}),
    }
    return insert_if_absent(connection, ArtefactTable, row)


def find_artefacts(connection: Connection, digests: Iterable[str]) -> list[ArtefactRow]:
    """Artefacts by digest; unknown digests are passed over.

    Args:
        connection: An open transaction.
        digests: The digests.

    Returns:
        The known ones, ordered by kind, round, client and digest.
    """
    wanted = sorted(set(digests))
    rows: list[ArtefactRow] = []
    for begin in range(0, len(wanted), 500):
        some = wanted[begin : begin + 500]
        statement = select(ArtefactTable).where(ArtefactTable.digest.in_(some))
        rows += [_artefact(row._asdict()) for row in connection.execute(statement)]
    return sorted(rows, key=_order)


def link(
    connection: Connection,
    child: str,
    parents: Mapping[str, Relation],
    *,
    circular: Literal["refuse", "skip"] = "refuse",
) -> bool:
    """Write down what an artefact was made of; saying it again changes nothing.

    Args:
        connection: An open transaction.
        child: Digest of what was made.
        parents: From each parent's digest to the relation. An artefact that came out equal to its
            own parent is not linked to itself.
        circular: What to do where a parent was itself made of ``child``. ``"skip"`` is for a result
            that came out equal to something older: that content exists without these parents, so
            it owes them nothing.

    Returns:
        Whether the steps stand.

    Raises:
        IntegrityError: If an artefact is not known, or a step would close a cycle that is refused;
            nothing is written then.
    """
    others = {parent: relation for parent, relation in parents.items() if parent != child}
    known = {row.digest for row in find_artefacts(connection, [child, *others])}
    for digest in (child, *others):
        if digest not in known:
            raise _unknown(digest)
    serialise(connection, "lineage")
    below = _made_of(connection, child) & set(others)
    if below and circular == "refuse":
        raise IntegrityError(
            f"lineage of {child}",
            f"its parent {min(below)} was made of it",
            "give an artefact a digest that covers its round and client",
        )
    if below:
        return False
    rows = [
        {"child": child, "parent": parent, "relation": relation}
        for parent, relation in others.items()
    ]
    insert_all_if_absent(connection, LineageTable, rows)
    return True


def _made_of(connection: Connection, digest: str) -> set[str]:
    """Everything below an artefact; mostly nothing, which one look at the index tells."""
    first = select(LineageTable.child).where(LineageTable.parent == digest).limit(1)
    if connection.execute(first).first() is None:
        return set()
    reached = _reach_down(digest)
    return set(connection.execute(select(reached.c.digest)).scalars())


def _reach_down(digest: str) -> CTE:
    first = select(LineageTable.child.label("digest")).where(LineageTable.parent == digest)
    reached = first.cte("reached", recursive=True)
    further = select(LineageTable.child).join(reached, LineageTable.parent == reached.c.digest)
    return reached.union(further)


def _reach_up(digest: str) -> CTE:
    first = select(LineageTable.parent.label("digest")).where(LineageTable.child == digest)
    reached = first.cte("reached", recursive=True)
    further = select(LineageTable.parent).join(reached, LineageTable.child == reached.c.digest)
    return reached.union(further)


def _edges_above(connection: Connection, digest: str) -> list[Edge]:
    above = _reach_up(digest)
    statement = select(LineageTable).where(
        (LineageTable.child == digest) | LineageTable.child.in_(select(above.c.digest))
    )
    edges = [Edge(**row._asdict()) for row in connection.execute(statement)]
    return sorted(edges, key=lambda edge: (edge.child, edge.parent, edge.relation))


def _tree(root: str, edges: Sequence[Edge], artefacts: Mapping[str, ArtefactRow]) -> LineageNode:
    above: dict[str, dict[str, str]] = {}
    for edge in edges:
        above.setdefault(edge.child, {}).setdefault(edge.parent, edge.relation)
    # Breadth first decides where an ancestor is expanded: at its place nearest to the root.
    home: dict[str, str] = {}
    breadth = [root]
    for child in breadth:
        for parent in sorted(above.get(child, ()), key=lambda digest: _order(artefacts[digest])):
            if parent not in home:
                home[parent] = child
                breadth.append(parent)
    expanded: dict[str, LineageNode] = {}
    for digest in reversed(breadth):
        parents = []
        for parent, relation in above.get(digest, {}).items():
            if home[parent] == digest:
                parents.append(replace(expanded[parent], relation=relation))
            else:
                artefact = artefacts[parent]
                parents.append(LineageNode(artefact=artefact, relation=relation, repeated=True))
        expanded[digest] = LineageNode(
            artefact=artefacts[digest],
            relation=None,
            repeated=False,
            parents=tuple(sorted(parents, key=lambda node: _order(node.artefact))),
        )
    return expanded[root]


def _artefact(values: Mapping[str, Any]) -> ArtefactRow:
    return ArtefactRow(**values)


def _order(artefact: ArtefactRow) -> tuple[int, int, str, str]:
    details = artefact.details
    return (
        ARTEFACT_KINDS.index(artefact.kind),
        int(details.get("round") or 0),
        str(details.get("client") or ""),
        artefact.digest,
    )


def _unknown(digest: str) -> IntegrityError:
    return IntegrityError("lineage", f"{digest} is not a known artefact", "record it first")
