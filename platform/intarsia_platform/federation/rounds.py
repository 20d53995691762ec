"""The round loop that survives: each state of a round is in the database before the next begins.

    planned -> sent -> collecting -> aggregating -> published

A round's cohort and assignments are written before anything is sent; an admitted update lies in the
store under its digest before it counts; aggregation reads only what counts, in the order of the
clients' names. A process killed anywhere is replaced by another that opens the same database: it
asks again only those clients whose update does not count yet, and since training depends only on
the assignment and the start, it ends with the same bytes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import FederationError, IntegrityError, RefusedUpdate
from intarsia_client.messages import abstention_reason, read_update_content
from intarsia_client.peft_files import EncodedAdapter, decode_adapter
from intarsia_client.privacy import epsilon_of, would_exceed
from intarsia_client.wire import Adapter

from intarsia_platform.federation.artefacts import (
    open_exact,
    open_update,
    put_exact,
    put_update,
)
from intarsia_platform.federation.broadcast import Broadcast
from intarsia_platform.federation.local_grid import LocalGrid
from intarsia_platform.federation.open_round import OpenRound
from intarsia_platform.federation.replies import claimed_spend, reply_size
from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.planning.client_plan import RankPlan
from intarsia_platform.planning.schedule import RankPlanning
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.journal import RunJournal
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import ParticipationRow, PlannedParticipation, RoundRow
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.results import Measured

_POLL_SECONDS = 0.01


class RoundObserver(Protocol):
    """Someone who watches the rounds go by."""

    def round_begun(self, number: int, cohort: int) -> None:
        """A round begins or goes on, with ``cohort`` clients asked."""

    def replied(self, number: int, client: str, status: str) -> None:
        """One client's reply was dealt with."""

    def round_closed(self, number: int) -> None:
        """A round's result is in the registry."""


@dataclass(frozen=True, kw_only=True)
class RoundLimits:
    """What a round waits for.

    Args:
        deadline_seconds: How long replies are waited for, in seconds.
        minimum_accepted: Updates without which no round is published.
    """

    deadline_seconds: float = 3600.0
    minimum_accepted: int = 1


class DurableFederation:
    """Runs a federation's rounds, or what is left of them.

    Args:
        strategy: What is sent and how replies are admitted and added up.
        grid: Where the clients run.
        journal: The run's state in the database.
        ledger: The privacy spent so far.
        store: Where updates and adapters are kept.
        registry: Where published adapters are found.
        initial: The adapter that round 1 starts from.
        limits: What a round waits for.
        evaluate: Measures an adapter on the server's held-out records after the given round; None
            where this round is not measured.
        observer: Who watches.
        planning: Plans ranks and modules; None leaves them as the strategy's plan has them.
        planned: Is told each plan before its first round, and one that goes on when the federation
            is taken up again.
    """

    def __init__(
        self,
        *,
        strategy: LoraStrategy,
        grid: Grid,
        journal: RunJournal,
        ledger: PrivacyLedger,
        store: ContentStore,
        registry: AdapterRegistry,
        initial: EncodedAdapter,
        limits: RoundLimits,
        evaluate: Callable[[int, Adapter], Measured | None],
        observer: RoundObserver,
        planning: RankPlanning | None = None,
        planned: Callable[[RankPlan], None] = lambda plan: None,
    ) -> None:
        self._strategy = strategy
        self._grid = grid
        self._journal = journal
        self._ledger = ledger
        self._store = store
        self._registry = registry
        self._initial = initial
        self._initial_digest = initial.digest
        self._limits = limits
        self._evaluate = evaluate
        self._observer = observer
        self._planning = planning
        self._planned = planned
        self._plan_taken = 0
        self._broadcast: Broadcast | None = None

    def run(self) -> EncodedAdapter:
        """Run every round that is not published yet.

        Returns:
            The last published adapter.

        Raises:
            FederationError: If a round ends with fewer accepted updates than it needs.
            StorageError: If the database or the store cannot be written.
        """
        begun = self._journal.current_round()
        if begun is not None and begun.state in ("sent", "collecting"):
            self._journal.ask_again(begun.number)
        while True:
            row = self._journal.current_round()
            number = len(self._journal.published_rounds()) + 1
            self._take_plan(min(number, self._strategy.plan.rounds))
            if row is None:
                if number > self._strategy.plan.rounds:
                    return self.published()
                self._plan_round(number)
                continue
            self._finish_round(row)

    def published(self) -> EncodedAdapter:
        """The last published adapter, or the initial one."""
        rows = self._journal.published_rounds()
        return self._adapter(rows[-1].result_digest) if rows else self._initial

    def plans(self) -> tuple[RankPlan, ...]:
        """The plans of all rounds that are published; none where ranks are not planned."""
        if self._planning is None:
            return ()
        return self._planning.plans(len(self._journal.published_rounds()), self._left_by)

    def _take_plan(self, number: int) -> None:
        """Have the strategy ask what is planned for a round."""
        if self._planning is None or self._planning.begins(number) == self._plan_taken:
            return
        plan = self._planning.plan(number, self._left_by)
        self._strategy.plan = replace(self._strategy.plan, clients=plan.by_client)
        self._plan_taken = plan.round
        self._planned(plan)

    def _left_by(self, number: int) -> Adapter:
        """The adapter that a round left."""
        encoded = self._adapter(self._journal.published_rounds()[number - 1].result_digest)
        return decode_adapter(encoded.configuration, encoded.tensors)

    def _adapter(self, digest: str | None) -> EncodedAdapter:
        if digest == self._initial_digest:
            return self._initial
        if not digest:
            raise IntegrityError("published round", "without a result", "restore the database")
        return self._registry.encoded(digest)

    def _broadcast_of(self, digest: str) -> Broadcast:
        """A published adapter as it is sent; the latest one's is kept, since a round asks twice."""
        if self._broadcast is None or self._broadcast.start_digest != digest:
            self._broadcast = None
            self._broadcast = self._strategy.broadcast(self._adapter(digest))
        return self._broadcast

    def _plan_round(self, number: int) -> None:
        rows = self._journal.published_rounds()
        digest = rows[-1].result_digest if rows else self._initial_digest
        broadcast = self._broadcast_of(digest or "")
        nodes = self._strategy.nodes(self._grid)
        assignments = self._strategy.assignments(number, nodes, broadcast)
        self._journal.plan_round(
            number,
            broadcast.start_digest,
            [self._participation(node, assignment) for node, assignment in assignments.items()],
        )

    def _participation(self, node: int, assignment: TrainAssignment) -> PlannedParticipation:
        reason = self._nothing_planned(assignment.client) or self._over_budget(assignment)
        return PlannedParticipation(
            client=assignment.client,
            node_id=node,
            assignment=dict(assignment.as_mapping()),
            status="planned" if reason is None else "sat-out",
            reason=reason,
        )

    def _nothing_planned(self, client: str) -> str | None:
        """Why a client has nothing to train."""
        planned = self._strategy.plan.clients.get(client)
        return planned.note if planned is not None and not planned.fits else None

    def _over_budget(self, assignment: TrainAssignment) -> str | None:
        """Why a client must sit the round out, judged by what its last round cost."""
        privacy = assignment.privacy
        if privacy.unit == "none":
            return None
        history = self._ledger.history(assignment.run, assignment.client)
        if not history:
            return None
        if not would_exceed(history, history[-1], privacy.epsilon, privacy.delta):
            return None
        spent = epsilon_of(history, privacy.delta)
        return f"privacy budget: {spent:.3f} of epsilon {privacy.epsilon:g} is spent"

    def _finish_round(self, row: RoundRow) -> None:
        begun = time.monotonic()
        rows = self._journal.participations(row.number)
        # Where blobs of a store that is not a folder lie while the round reads them.
        with TemporaryDirectory() as folder:
            open_round = self._opened(row, rows, Path(folder))
            self._observer.round_begun(row.number, len(rows))
            if row.state != "aggregating":
                self._collect(row, open_round, rows)
                self._journal.mark_aggregating(row.number)
            self._publish(row, open_round, Path(folder), begun)

    def _opened(self, row: RoundRow, rows: Sequence[ParticipationRow], folder: Path) -> OpenRound:
        finished = self._journal.published_rounds()
        kept = finished[-1].aggregate_digest if finished else None
        return self._strategy.open_round(
            row.number,
            self._broadcast_of(row.start_digest),
            {part.node_id: _assignment(part) for part in rows},
            None if kept is None else open_exact(self._store, kept, folder),
        )

    def _collect(
        self, row: RoundRow, open_round: OpenRound, rows: Sequence[ParticipationRow]
    ) -> None:
        number = row.number
        pending = {part.node_id: part.client for part in rows if part.status == "planned"}
        messages = list(self._strategy.train_messages(open_round, pending))
        identifiers = set(self._grid.push_messages(messages)) if messages else set()
        self._journal.mark_sent(
            number,
            {client: open_round.bytes_down(node) for node, client in pending.items()},
        )
        self._journal.mark_collecting(number)
        deadline = time.monotonic() + self._limits.deadline_seconds
        while identifiers and time.monotonic() < deadline:
            replies = list(self._grid.pull_messages(identifiers))
            for reply in replies:
                identifiers.discard(reply.metadata.reply_to_message_id)
                client = pending.pop(reply.metadata.src_node_id, None)
                if client is not None:
                    self._observer.replied(number, client, self._take(open_round, client, reply))
            if not replies:
                time.sleep(_POLL_SECONDS)  # Flower's own grid answers at once, with nothing
        if isinstance(self._grid, LocalGrid):
            self._grid.cancel_messages(identifiers)
        for client in pending.values():
            self._journal.mark_late(number, client)
            self._observer.replied(number, client, "late")
        self._check_enough(number)

    def _take(self, open_round: OpenRound, client: str, reply: Message) -> str:
        """Deal with one reply; returns the client's status."""
        number = open_round.number
        if reply.has_error():
            detail = (reply.error.reason or "no reason given")[:1000]
            self._journal.fail(number, client, "client-error", detail=detail)
            return "failed"
        abstained = abstention_reason(reply.content)
        if abstained is not None:
            self._journal.sit_out(number, client, "privacy-budget", detail=abstained)
            return "sat-out"
        size = reply_size(reply)
        spend = claimed_spend(reply, open_round.assignments[reply.metadata.src_node_id])
        try:
            update = self._strategy.admit_reply(open_round, reply)
            digest = put_update(self._store, update, read_update_content(reply).adapter)
            manifest = update.manifest
            self._journal.accept(
                number,
                client,
                update_digest=digest,
                nonce=manifest.nonce,
                number_of_examples=manifest.number_of_examples,
                bytes_up=size,
                metrics=dict(manifest.metrics),
                shard_digest=manifest.shard_digest,
                spend=spend,
            )
        except RefusedUpdate as refusal:
            # Training on the records cost privacy, whether or not the update is used.
            self._journal.refuse(number, client, refusal.reason, str(refusal), size, spend=spend)
            return "refused"
        return "accepted"

    def _check_enough(self, number: int) -> None:
        rows = self._journal.participations(number)
        accepted = sum(part.status == "accepted" for part in rows)
        needed = max(self._limits.minimum_accepted, self._strategy.fewest_updates)
        if accepted >= needed:
            return
        reasons = sorted({words for part in rows if (words := part.detail or part.reason)})
        raise FederationError(
            f"accepted updates in round {number}",
            accepted,
            f"at least {needed} are needed"
            + (f"; {len(rows)} asked, for example: {reasons[0]}" if reasons else ""),
        )

    def _publish(self, row: RoundRow, open_round: OpenRound, folder: Path, begun: float) -> None:
        plan = self._strategy.plan
        made = self._strategy.aggregate(
            open_round,
            [
                self._strategy.weighted(
                    open_round, open_update(self._store, part.update_digest, open_round, folder)
                )
                for part in self._journal.participations(row.number)
                if part.status == "accepted" and part.update_digest is not None
            ],
        )
        test = self._evaluate(row.number, made.published)
        version = self._registry.prepare(
            made.published,
            name=f"{plan.run}/round-{row.number}",
            base_digest=plan.base_digest,
            run_id=plan.run,
            round=row.number,
        )
        # On the device before the round says that it is.
        kept = put_exact(self._store, made.exact, beside=version)
        self._journal.publish(
            row.number,
            result_digest=version.digest,
            metrics={
                "test": None if test is None else test.as_mapping(),
                "seconds": time.monotonic() - begun,
                "rank": made.published.rank,
                "cut_energy": made.cut_energy,
                "residual_energy": made.residual_energy,
                "decisions": [decision.as_mapping() for decision in made.decisions],
            },
            adapter=version,
            aggregate_digest=kept.digest,
            aggregate_size=kept.size,
        )
        self._observer.round_closed(row.number)


def _assignment(part: ParticipationRow) -> TrainAssignment:
    return TrainAssignment.from_json(json.dumps(part.assignment))
