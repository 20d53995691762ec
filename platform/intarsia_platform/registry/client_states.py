"""What virtual clients keep between rounds: opaque bytes in the database, in nobody's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from sqlalchemy import BindParameter, bindparam, delete, func, select
from sqlalchemy.orm import aliased

from intarsia_platform.registry.database import Database, insert_or_replace
from intarsia_platform.registry.tables import ClientStateTable

_BATCH = 250


class ClientStates:
    """States of one run's virtual clients, the two newest of each.

    Two, because a round that is run again after a kill must start from the state before it, while
    its first attempt may have left one already.

    Args:
        database: The registry's database.
        run_id: The run.
    """

    def __init__(self, database: Database, run_id: str) -> None:
        """Keep both."""
        self._database = database
        self._run_id = run_id

    def load(self, node_id: int, before_round: int) -> bytes | None:
        """The newest state that a node left before a round.

        Args:
            node_id: The Flower node.
            before_round: States of this round and later ones are passed over.

        Returns:
            The bytes, or None where it left none.
        """
        statement = (
            select(ClientStateTable.state)
            .where(
                ClientStateTable.run_id == self._run_id,
                ClientStateTable.node_id == node_id,
                ClientStateTable.round < before_round,
            )
            .order_by(ClientStateTable.round.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            return connection.execute(statement).scalar_one_or_none()

    def save_many(self, states: Iterable[tuple[int, int, bytes]]) -> None:
        """Keep states, all of them or none; a state of the same node and round is replaced.

        Args:
            states: Node, round and bytes; read as a stream, a few hundred at a time.

        Raises:
            StorageError: If the database cannot be written.
        """
        newest = aliased(ClientStateTable)
        second = aliased(ClientStateTable)
        node: BindParameter[int] = bindparam("node")
        newest_round = (
            select(func.max(newest.round))
            .where(newest.run_id == self._run_id, newest.node_id == node)
            .scalar_subquery()
        )
        second_round = (
            select(func.max(second.round))
            .where(
                second.run_id == self._run_id,
                second.node_id == node,
                second.round < newest_round,
            )
            .scalar_subquery()
        )
        forget = delete(ClientStateTable).where(
            ClientStateTable.run_id == self._run_id,
            ClientStateTable.node_id == node,
            ClientStateTable.round < second_round,
        )
        with self._database.begin() as connection:
            for batch in _batches(states):
                rows = [
                    {"run_id": self._run_id, "node_id": node_id, "round": number, "state": state}
                    for node_id, number, state in batch
                ]
                insert_or_replace(connection, ClientStateTable, rows, value="state")
                nodes = sorted({node_id for node_id, _, _ in batch})
                connection.execute(forget, [{"node": node_id} for node_id in nodes])


def _batches(
    states: Iterable[tuple[int, int, bytes]],
) -> Iterator[list[tuple[int, int, bytes]]]:
    stream = iter(states)
    while batch := list(islice(stream, _BATCH)):
        yield batch
