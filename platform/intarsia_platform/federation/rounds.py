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
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import FederationError, InputError, IntegrityError, RefusedUpdate
from intarsia_client.messages import abstention_reason, adapter_record, read_update_content
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.privacy import epsilon_of, would_exceed
from intarsia_client.wire import Adapter, UpdateManifest

from intarsia_platform.federation.admission import is_plausible
from intarsia_platform.federation.artefacts import get_update, put_update
from intarsia_platform.federation.local_grid import LocalGrid
from intarsia_platform.federation.strategy import LoraStrategy, OpenRound
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.journal import RunJournal
from intarsia_platform.registry.privacy_ledger import PrivacyLedger
from intarsia_platform.registry.rows import (
    ParticipationRow,
    PlannedParticipation,
    PrivacySpendRow,
    RoundRow,
)
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
    ) -> None:
        self._strategy = strategy
        self._grid = grid
        self._journal = journal
        self._ledger = ledger
        self._store = store
        self._registry = registry
        self._initial = initial
        self._limits = limits
        self._evaluate = evaluate
        self._observer = observer

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
            if row is None:
                number = len(self._journal.published_rounds()) + 1
                if number > self._strategy.plan.rounds:
                    return self.published()
                self._plan_round(number)
                continue
            self._finish_round(row)

    def published(self) -> EncodedAdapter:
        """The last published adapter, or the initial one."""
        rows = self._journal.published_rounds()
        return self._adapter(rows[-1].result_digest) if rows else self._initial

    def _adapter(self, digest: str | None) -> EncodedAdapter:
        if digest == self._initial.digest:
            return self._initial
        if digest is None:
            raise IntegrityError("published round", "without a result", "restore the database")
        return self._registry.encoded(digest)

    def _plan_round(self, number: int) -> None:
        start = self.published()
        assignments = self._strategy.plan.assignments(
            number, self._strategy.nodes(self._grid), start.digest
        )
        self._journal.plan_round(
            number,
            start.digest,
            [self._participation(node, assignment) for node, assignment in assignments.items()],
        )

    def _participation(self, node: int, assignment: TrainAssignment) -> PlannedParticipation:
        reason = self._over_budget(assignment)
        return PlannedParticipation(
            client=assignment.client,
            node_id=node,
            assignment=dict(assignment.as_mapping()),
            status="planned" if reason is None else "sat-out",
            reason=reason,
        )

    def _over_budget(self, assignment: TrainAssignment) -> str | None:
        """Why a client must sit the round out, judged by what its last round cost."""
        privacy = assignment.privacy
        if privacy.unit == "none":
            return None
        spends = self._ledger.spends(assignment.run, assignment.client)
        if not spends:
            return None
        history = [_parameters(spend) for spend in spends]
        if not would_exceed(history, history[-1], privacy.epsilon, privacy.delta):
            return None
        spent = epsilon_of(history, privacy.delta)
        return f"privacy budget: {spent:.3f} of epsilon {privacy.epsilon:g} is spent"

    def _finish_round(self, row: RoundRow) -> None:
        begun = time.monotonic()
        start = self._adapter(row.start_digest)
        rows = self._journal.participations(row.number)
        open_round = self._strategy.open_round(
            row.number, start, {part.node_id: _assignment(part) for part in rows}
        )
        self._observer.round_begun(row.number, len(rows))
        if row.state != "aggregating":
            self._collect(row, open_round, adapter_record(start), rows)
            self._journal.mark_aggregating(row.number)
        self._publish(row, open_round, begun)

    def _collect(
        self,
        row: RoundRow,
        open_round: OpenRound,
        arrays: ArrayRecord,
        rows: Sequence[ParticipationRow],
    ) -> None:
        number = row.number
        pending = {part.node_id: part.client for part in rows if part.status == "planned"}
        messages = list(self._strategy.train_messages(open_round, arrays, pending))
        identifiers = set(self._grid.push_messages(messages)) if messages else set()
        size = sum(len(array.data) for array in arrays.values())
        self._journal.mark_sent(
            number,
            {
                client: size + len(open_round.assignments[node].to_json())
                for node, client in pending.items()
            },
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
        size = _reply_size(reply)
        spend = _claimed_spend(reply, open_round.assignments[reply.metadata.src_node_id])
        try:
            update = self._strategy.admit_reply(open_round, reply)
            digest = put_update(self._store, update)
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
        if accepted >= self._limits.minimum_accepted:
            return
        reasons = sorted({words for part in rows if (words := part.detail or part.reason)})
        raise FederationError(
            f"accepted updates in round {number}",
            accepted,
            f"at least {self._limits.minimum_accepted} are needed"
            + (f"; {len(rows)} asked, for example: {reasons[0]}" if reasons else ""),
        )

    def _publish(self, row: RoundRow, open_round: OpenRound, begun: float) -> None:
        accepted = [
            part for part in self._journal.participations(row.number) if part.status == "accepted"
        ]
        digests = [part.update_digest for part in accepted if part.update_digest is not None]
        adapter = self._strategy.aggregate(
            open_round.published, (get_update(self._store, d, open_round) for d in digests)
        )
        test = self._evaluate(row.number, adapter)
        version = self._registry.prepare(
            adapter,
            name=f"{self._strategy.plan.run}/round-{row.number}",
            base_digest=self._strategy.plan.base_digest,
            run_id=self._strategy.plan.run,
            round=row.number,
        )
        self._journal.publish(
            row.number,
            result_digest=version.digest,
            metrics={
                "test": None if test is None else test.as_mapping(),
                "seconds": time.monotonic() - begun,
                "rank": adapter.rank,
            },
            adapter=version,
        )
        self._observer.round_closed(row.number)


def _assignment(part: ParticipationRow) -> TrainAssignment:
    return TrainAssignment.from_json(json.dumps(part.assignment))


def _claimed_spend(reply: Message, assignment: TrainAssignment) -> PrivacySpendRow | None:
    """What a client says that it spent on this assignment, whether or not its update is used."""
    try:
        manifest = UpdateManifest.from_json(read_update_content(reply).manifest)
    except InputError:
        return None
    ours = (assignment.run, assignment.client, assignment.round)
    spend = manifest.privacy
    if spend is None or not is_plausible(spend, assignment):
        return None
    if (manifest.run, manifest.client, manifest.round) != ours:
        return None
    return PrivacySpendRow(
        scope=manifest.run,
        client=manifest.client,
        round=manifest.round,
        unit=spend.unit,
        noise_multiplier=spend.noise_multiplier,
        sample_rate=spend.sample_rate,
        steps=spend.steps,
        delta=spend.delta,
        max_grad_norm=spend.max_grad_norm,
    )


def _parameters(spend: PrivacySpendRow) -> tuple[float, float, int]:
    return spend.noise_multiplier, spend.sample_rate, spend.steps


def _reply_size(reply: Message) -> int:
    arrays = sum(
        len(array.data)
        for record in reply.content.array_records.values()
        for array in record.values()
    )
    texts = sum(
        len(str(value))
        for record in reply.content.config_records.values()
        for value in record.values()
    )
    return arrays + texts
