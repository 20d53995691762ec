"""A group's life: added, trained again as its records change, removed with all that it left.

Training happens outside of any transaction and writes nothing. What it gave is then published in
one step (:mod:`intarsia_platform.groups.publishing`, :mod:`intarsia_platform.groups.pending`).
Whoever looks sees a group as it was or as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from intarsia_client.errors import InputError
from intarsia_client.records import Record, records_digest

from intarsia_platform.groups.deletion import current_closure, delete_rows
from intarsia_platform.groups.describing import describe_texts
from intarsia_platform.groups.new_group import Describe, NewGroup
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.groups.publishing import TrainedGroup, publish, refuse_taken
from intarsia_platform.groups.rows import (
    Group,
    checked_labels,
    checked_name,
    checked_rights,
)
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.store import Groups
from intarsia_platform.groups.workspace import FederationWorkspaces
from intarsia_platform.home import Home
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.epoch import bump
from intarsia_platform.registry.store import ContentStore

if TYPE_CHECKING:
    from intarsia_client.training import Tell


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """What an update or a removal did.

    Args:
        group: The group as it is now; of a removed one, as it was.
        added: Records that came.
        removed: Records that left.
        not_found: Different records that were to leave and were not there.
        invalidated: Digests of artefacts that were made of the version before, and left with it.
    """

    group: Group
    added: int = 0
    removed: int = 0
    not_found: int = 0
    invalidated: tuple[str, ...] = ()


class GroupLifecycle:
    """Adds, changes and removes groups.

    Formal guarantees: a process that is killed at any point leaves every group as it was before or
    as it is after, and what it leaves beside that is deleted by the next :meth:`recover`. After
    :meth:`update` and :meth:`remove` the store holds no blob of the records, adapter, descriptor
    or signature of before that no remaining row names.

    Args:
        database: The registry's database.
        store: Where the bytes lie.
        home: The home, for its keys and its notes of unfinished changes.
        describe: Describes a group by its texts.
    """

    def __init__(
        self,
        database: Database,
        store: ContentStore,
        home: Home,
        *,
        describe: Describe = describe_texts,
    ) -> None:
        """Keep all of them."""
        self._database = database
        self._pending = PendingBlobs(home.path / "groups", database, store)
        self._workspaces = FederationWorkspaces(home.path / "federations")
        self._keys = home.path / "keys"
        self._describe = describe
        self.groups = Groups(database, store)

    @property
    def key(self) -> SigningKey:
        """The home's key, made on first use; raises as :meth:`SigningKey.open`."""
        return SigningKey.open(self._keys)

    def recover(self) -> bool:
        """Delete what killed processes left without an owner.

        Returns:
            Whether there was anything to look at.

        Raises:
            StorageError: If something cannot be deleted.
        """
        self._workspaces.sweep(self._federated_as)
        return self._pending.sweep()

    def add(self, new: NewGroup, *, tell: Tell | None = None) -> Group:
        """Train a group's adapter on its records and publish it.

        Args:
            new: What it is made of.
            tell: Called after each step of the training.

        Returns:
            The group.

        Raises:
            InputError: If the name is taken, or something in it cannot be used.
            FederationError: If the training diverged.
            StorageError: If the home cannot be written; nothing is left of it.
        """
        checked_name(new.name)
        checked_labels(new.labels)
        checked_rights(new.rights, datetime.now(UTC))
        key = self.key
        with self._database.read() as connection:
            refuse_taken(connection, new.name)
        from intarsia_platform.groups.making import make_group

        trained = make_group(new, version=1, describe=self._describe, tell=tell)
        with self._pending.changing() as (connection, change):
            refuse_taken(connection, new.name)
            return publish(connection, change, trained, key=key, before=None)

    def update(
        self,
        name: str,
        *,
        add: Sequence[Record] = (),
        remove: Sequence[Record] = (),
        tell: Tell | None = None,
    ) -> GroupChange:
        """Change a group's records and train it again from a fresh start.

        Formal guarantee: the new adapter is what a group of the new records alone would have got,
        byte for byte; see :func:`intarsia_platform.groups.training.train_group`. What was made of
        the version before leaves with it.

        Args:
            name: The group.
            add: Records that come after those that are there.
            remove: Records of which no equal one stays, not even among those that come. One
                without a label means every label.
            tell: Called after each step of the training.

        Returns:
            What it did.

        Raises:
            InputError: If there is no such group, its records lie with clients, nothing would
                change, no record would stay, its base has changed, or somebody else changed it
                meanwhile.
            FederationError: If the training diverged; the group is as it was.
            StorageError: If the home cannot be written.
        """
        group, key = self.groups.get(name), self.key
        before = self.groups.records(group)
        kept = without([*before, *add], remove)
        stayed = len(without(before, remove))
        if records_digest(kept) == group.records_digest:
            raise InputError(
                f"group {name}", "nothing changes", "name records to add, or some that it has"
            )
        if not kept:
            raise InputError(
                f"group {name}", "no record stays", f"run `intarsia groups remove {name}`"
            )
        trained = self._train_again(group, kept, tell)
        with self._pending.changing() as (connection, change):
            closure = current_closure(self._database, connection, group)
            after = publish(connection, change, trained, key=key, before=closure)
        return GroupChange(
            group=after,
            added=len(kept) - stayed,
            removed=len(before) - stayed,
            not_found=_not_found([*before, *add], remove),
            invalidated=closure.descendants,
        )

    def remove(self, name: str) -> GroupChange:
        """Remove a group, and all that was made of it.

        Args:
            name: The group.

        Returns:
            What it did.

        Raises:
            InputError: If there is no such group, or another one was made of it.
            StorageError: If the home cannot be written.
        """
        group = self.groups.get(name)
        with self._pending.changing() as (connection, change):
            closure = current_closure(self._database, connection, group)
            delete_rows(connection, closure)
            bump(connection)
            change.note(closure.blobs)
        return GroupChange(group=group, removed=group.records, invalidated=closure.descendants)

    def _federated_as(self, name: str) -> str | None:
        """By what a group's published federation is known, None where there is none."""
        found = [group for group in self.groups.list() if group.name == name]
        sources = self.groups.sources(found[0]) if found else None
        return sources.key if sources else None

    def _train_again(
        self, group: Group, records: Sequence[Record], tell: Tell | None
    ) -> TrainedGroup:
        from intarsia_client.base_model import base_digest

        from intarsia_platform.groups.making import make_group

        if base_digest(group.base) != group.base_digest:
            raise InputError(
                f"base of group {group.name}",
                f"{group.base} is another model now",
                "put the earlier one back, or remove the group and add it again",
            )
        again = NewGroup(
            name=group.name,
            base=group.base,
            records=records,
            labels=group.labels,
            task=group.task,
            settings=group.settings,
            rights=self.groups.rights(group.adapter_digest),
        )
        return make_group(again, version=group.version + 1, describe=self._describe, tell=tell)


def without(records: Sequence[Record], gone: Sequence[Record]) -> list[Record]:
    """Records that are equal to none of those that shall leave.

    Args:
        records: The records.
        gone: Those that shall leave; one without a label means every label.

    Returns:
        The others, in order.
    """
    contents = {_content(record) for record in gone}
    return [record for record in records if not contents & _names(record)]


@contextlib.contextmanager
def open_groups(home: Home) -> Iterator[GroupLifecycle]:
    """Open a home's groups, and finish what a killed process has begun there.

    Args:
        home: The home.

    Yields:
        The groups; the database is closed when the block ends.

    Raises:
        StorageError: If the home cannot be read or written.
    """
    with open_database(home.database_url) as database:
        store = ContentStore(home.store_url)
        lifecycle = GroupLifecycle(database, store, home)
        lifecycle.recover()
        yield lifecycle


def _content(record: Record) -> tuple[str, str | None]:
    return record.text, record.label


def _names(record: Record) -> set[tuple[str, str | None]]:
    """What a record that shall leave may be called by."""
    return {_content(record), (record.text, None)}


def _not_found(records: Sequence[Record], gone: Sequence[Record]) -> int:
    there = set[tuple[str, str | None]]().union(*map(_names, records))
    return len({_content(record) for record in gone} - there)
