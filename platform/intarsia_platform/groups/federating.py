"""Groups whose adapters are trained by a federation of the clients that hold their data.

It is an ordinary federation (:func:`intarsia_platform.simulation.run.simulate`), in a folder of its
own until it is published; its result goes through the same admission as any adapter. Of the clients
the home keeps names, numbers of records and digests of shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.groups.admission import AdmissionRules, admit_adapter, combined_rights
from intarsia_platform.groups.admitted import Inheritance
from intarsia_platform.groups.deletion import current_closure
from intarsia_platform.groups.describing import settled_encoder
from intarsia_platform.groups.federation_work import (
    FinishedFederation,
    base_of,
    describe_with_clients,
    federated_settings,
    run_federation,
)
from intarsia_platform.groups.joint_description import JointDescription
from intarsia_platform.groups.lifecycle import GroupLifecycle
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.groups.publishing import TrainedGroup, publish, refuse_taken
from intarsia_platform.groups.restricted import RestrictedFederation, restrict
from intarsia_platform.groups.rows import (
    AUTOMATIC,
    FEDERATED_DESCRIPTOR,
    Group,
    GroupSettings,
    Rights,
    checked_labels,
    checked_name,
)
from intarsia_platform.groups.signing import SigningKey
from intarsia_platform.groups.sources import ClientShard, FederatedSources
from intarsia_platform.groups.store import Groups, inherited_from
from intarsia_platform.groups.workspace import FederationWorkspace, FederationWorkspaces
from intarsia_platform.home import Home
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import Database, open_database
from intarsia_platform.registry.lineage import Lineage, Relation
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.results import RoundResult
from intarsia_platform.simulation.observer import SimulationObserver


@dataclass(frozen=True, kw_only=True)
class FederationOrder:
    """What a federated group is made of.

    Args:
        name: What to call it.
        configuration: The federation; its clients are those that ``data.client`` names.
        clients: Those of them that hold the group's data.
        labels: Words that policies speak of, at least one of a new group; added to those that a
            group has and inherits.
        sources: Digests of known artefacts that the data came from.
        rights: Its owner and the like; None leaves them as they are.
        descriptor: A method of the descriptors' catalogue.
        encoder: What reads the texts, as in :class:`GroupSettings`.
        grid: Where clients run, whatever the configuration says.
    """

    name: str
    configuration: SimulationConfiguration
    clients: Sequence[str]
    labels: Sequence[str] = ()
    sources: Sequence[str] = ()
    rights: Rights | None = None
    descriptor: str = FEDERATED_DESCRIPTOR
    encoder: str = AUTOMATIC
    grid: str = "inprocess"


@dataclass(frozen=True, kw_only=True)
class FederatedChange:
    """What a federation did to a group.

    Args:
        group: The group as it is now.
        clients: Whose records it is made of.
        unchanged: Whether it was of the very same data and settings already.
        rounds: The federation's rounds; none where it did not have to run.
        invalidated: Digests of artefacts that were made of the version before, and left with it.
    """

    group: Group
    clients: tuple[ClientShard, ...]
    unchanged: bool = False
    rounds: tuple[RoundResult, ...] = ()
    invalidated: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """A federation with all that was decided before it began."""

    order: FederationOrder
    restricted: RestrictedFederation
    before: Group | None
    labels: tuple[str, ...]
    rights: Rights
    inherited: Inheritance
    encoder: str
    key: str


class FederatedGroups:
    """Makes groups by federations, and makes them again as their clients' data change.

    Formal guarantees: the adapter and the descriptor are functions of the base, the named clients'
    records, the configuration and the order's settings; other clients' records have no influence.
    A process that is killed at any point leaves the group as it was before or as it is after; the
    same call goes on from the last state of the federation and ends with the same digests.

    Args:
        database: The registry's database.
        store: Where the bytes lie.
        home: The home.
    """

    def __init__(self, database: Database, store: ContentStore, home: Home) -> None:
        """Keep all of them."""
        self._database = database
        self._pending = PendingBlobs(home.path / "groups", database, store)
        self._workspaces = FederationWorkspaces(home.path / "federations")
        self._keys = home.path / "keys"
        self.groups = Groups(database, store)
        self.adapters = AdapterRegistry(database, store)

    def federate(self, order: FederationOrder, *, observer: SimulationObserver) -> FederatedChange:
        """Have the clients train a group, describe it, and publish it in the place of any before.

        Args:
            order: What it is made of.
            observer: Is told what the federation does.

        Returns:
            What it did.

        Raises:
            InputError: If something in the order cannot be used, the result is refused, or somebody
                else works on the group.
            FederationError: If a round has too few updates, or no client could describe its texts;
                the same call goes on.
            StorageError: If the home cannot be written.
        """
        task = self._task(order)
        if task.before is not None:
            sources = self.groups.sources(task.before)
            if sources is not None and sources.key == task.key:
                return FederatedChange(group=task.before, clients=sources.clients, unchanged=True)
        key = SigningKey.open(self._keys)
        with self._workspaces.opened(order.name, task.key) as work:
            try:
                finished, sources, trained = self._made(task, work, observer)
            except InputError:
                # It would be refused again; the records' copies are not to stay for that.
                self._workspaces.finish(work)
                raise
            observer.stage(f"publishing {order.name}")
            with self._pending.changing() as (connection, change):
                closure = None
                if task.before is None:
                    refuse_taken(connection, order.name)
                else:
                    closure = current_closure(self._database, connection, task.before)
                group = publish(connection, change, trained, key=key, before=closure)
            self._workspaces.finish(work)
        return FederatedChange(
            group=group,
            clients=sources.clients,
            rounds=finished.rounds,
            invalidated=closure.descendants if closure else (),
        )

    def give_up(self, name: str) -> bool:
        """Delete what an unfinished federation of a group left.

        Args:
            name: The group.

        Returns:
            Whether there was any.

        Raises:
            InputError: If another process works on it.
            StorageError: If it cannot be deleted.
        """
        return self._workspaces.give_up(name)

    def _task(self, order: FederationOrder) -> _Task:
        """Check an order against what there is, before anything is trained."""
        before = self._before(order.name)
        chosen = settled_encoder(GroupSettings(descriptor=order.descriptor, encoder=order.encoder))
        lineage = Lineage(self._database)
        for source in order.sources:
            if lineage.artefact(source) is None:
                raise InputError("source", source, "name an adapter or an artefact of this home")
        restricted = restrict(order.configuration, order.clients, grid=order.grid)
        known = [*restricted.shards.values(), *order.sources]
        inherited = inherited_from(self._database, known)
        rights = order.rights
        if rights is None:
            rights = self.groups.rights(before.adapter_digest) if before else Rights()
        own = before.labels if before else ()
        labels = checked_labels({*order.labels, *own, *inherited.labels})
        rights = combined_rights(rights, inherited)
        expires = rights.expires_at
        key = restricted.key(
            labels=labels,
            rights={**vars(rights), "expires_at": expires.isoformat() if expires else None},
            sources=sorted(order.sources),
            descriptor=order.descriptor,
            encoder=chosen.encoder,
        )
        return _Task(
            order=order,
            restricted=restricted,
            before=before,
            labels=labels,
            rights=rights,
            inherited=inherited,
            encoder=chosen.encoder,
            key=key,
        )

    def _before(self, name: str) -> Group | None:
        """The federated group of that name, where there is one."""
        found = [group for group in self.groups.list() if group.name == name]
        if not found:
            with self._database.read() as connection:
                refuse_taken(connection, checked_name(name))
            return None
        if not found[0].settings.clients:
            raise InputError(
                f"group {name}",
                "its records lie here, not with clients",
                f"run `intarsia groups remove {name}` first, or choose another name",
            )
        return found[0]

    def _made(
        self, task: _Task, work: FederationWorkspace, observer: SimulationObserver
    ) -> tuple[FinishedFederation, FederatedSources, TrainedGroup]:
        """Run what is left of the federation, describe the group and check its adapter."""
        configuration, references = task.restricted.placed(work.path)
        finished = run_federation(configuration, work.home, observer)
        observer.stage("describing the clients' texts")
        base = base_of(task.restricted)
        settings = federated_settings(
            task.restricted, base, descriptor=task.order.descriptor, encoder=task.encoder
        )
        joint = describe_with_clients(
            base,
            settings,
            references,
            finished.contributed,
            seconds=configuration.federation.deadline_seconds,
        )
        shards = task.restricted.shards
        sources = FederatedSources(
            key=task.key,
            clients=tuple(
                ClientShard(
                    client=name,
                    records=references[name].count,
                    shard=shards[name],
                    contributed=name in finished.contributed,
                    described=name in joint.clients,
                )
                for name in sorted(shards)
            ),
            configuration=task.restricted.configuration.as_mapping(),
        )
        return finished, sources, self._trained(task, base, settings, finished, sources, joint)

    def _trained(
        self,
        task: _Task,
        base: BaseModel,
        settings: GroupSettings,
        finished: FinishedFederation,
        sources: FederatedSources,
        joint: JointDescription,
    ) -> TrainedGroup:
        kept = sources.as_sources()
        parents: dict[str, Relation] = {
            **dict.fromkeys(task.order.sources, "aggregated"),
            **dict.fromkeys(kept.shards, "trained-on"),
            base.digest: "continued",
        }
        admission = admit_adapter(
            finished.encoded,
            name=task.order.name,
            base=base,
            labels=task.labels,
            parents=parents,
            rights=task.rights,
            inherited=task.inherited,
            rules=AdmissionRules(target_modules=settings.target_modules),
            data={
                "group": task.order.name,
                "version": task.before.version + 1 if task.before else 1,
                "records": kept.records,
                "clients": len(kept.shards),
            },
        )
        return TrainedGroup(
            settings=dataclasses.replace(settings, rank=admission.version.rank),
            sources=kept,
            admission=admission,
            descriptor=joint.descriptor,
        )


@contextlib.contextmanager
def open_federated_groups(home: Home) -> Iterator[tuple[GroupLifecycle, FederatedGroups]]:
    """Open a home's groups, those of federations too, and finish what a killed process has begun.

    Args:
        home: The home.

    Yields:
        The groups, and what federates them; the database is closed when the block ends.

    Raises:
        StorageError: If the home cannot be read or written.
    """
    with open_database(home.database_url) as database:
        store = ContentStore(home.store_url)
        lifecycle = GroupLifecycle(database, store, home)
        lifecycle.recover()
        yield lifecycle, FederatedGroups(database, store, home)
