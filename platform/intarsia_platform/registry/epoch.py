"""The epoch: a number that rises with whatever may take a right away."""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from intarsia_platform.registry.access_tables import AccessStateTable
from intarsia_platform.registry.database import insert_if_absent

_ROW = 1
_READ = select(AccessStateTable.epoch).where(AccessStateTable.id == _ROW)
_RAISE = (
    update(AccessStateTable)
    .where(AccessStateTable.id == _ROW)
    .values(epoch=AccessStateTable.epoch + 1)
)


def read_epoch(connection: Connection) -> int:
    """Read the epoch.

    Args:
        connection: An open transaction.

    Returns:
        The epoch; 0 before anything raised it.
    """
    return connection.execute(_READ).scalar() or 0


def bump(connection: Connection) -> int:
    """Raise the epoch, in the transaction that takes a right away.

    Formal guarantee: the rise is committed with that transaction or not at all, and no two
    transactions raise it to the same number.

    Args:
        connection: An open transaction of ``Database.begin``.

    Returns:
        The new epoch.
    """
    insert_if_absent(connection, AccessStateTable, {"id": _ROW, "epoch": 0})
    connection.execute(_RAISE)
    return read_epoch(connection)
