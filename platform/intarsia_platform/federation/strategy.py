"""The Flower strategy: mixed-rank LoRA, added up exactly.

It is an ordinary ``flwr.serverapp.strategy.Strategy``: put it into any ServerApp and call
``strategy.start(grid=…, initial_arrays=strategy.initial_arrays(adapter), num_rounds=…)``. The
durable round loop of :mod:`intarsia_platform.federation.rounds` calls the same pieces one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.catalog import find_method
from intarsia_client.assignment import START_KINDS, TrainAssignment
from intarsia_client.errors import FederationError, IntarsiaError, RefusedUpdate
from intarsia_client.messages import (
    abstention_reason,
    adapter_of,
    adapter_record,
    read_update_content,
    train_content,
)
from intarsia_client.peft_files import EncodedAdapter, encode_adapter
from intarsia_client.wire import Adapter

from intarsia_platform.federation.admission import ValidatedUpdate, admit
from intarsia_platform.federation.aggregation import RoundAggregate, aggregate_round
from intarsia_platform.federation.broadcast import Broadcast
from intarsia_platform.federation.guard import RobustGuard
from intarsia_platform.federation.measurements import ClientMeasurement, read_measurement
from intarsia_platform.federation.open_round import OpenRound
from intarsia_platform.federation.plan import FederationPlan


class LoraStrategy(Strategy):
    """Federated LoRA over clients of unequal ranks.

    Args:
        plan: What stays the same over the rounds.
        method: A name of the aggregation catalogue.
        guard: What stands between a dishonest client and the sum; None for nothing.
        minimum_nodes: Nodes that must be there before a round begins.
        node_deadline: Seconds to wait for them.

    Raises:
        InputError: If the plan does not fit the modules, the method or the guard, or there is no
            such method.
    """

    def __init__(
        self,
        plan: FederationPlan,
        *,
        method: str = "ledger",
        guard: RobustGuard | None = None,
        minimum_nodes: int = 1,
        node_deadline: float = 600.0,
    ) -> None:
        plan.check()
        self.method = find_method(method)
        self.plan = plan.using(self.method)
        self.guard = guard
        if guard is not None:
            guard.check(self.method, self.plan)
        self.minimum_nodes = minimum_nodes
        self.node_deadline = node_deadline
        self._open: OpenRound | None = None
        # What Flower's own loop has no place for: the exact adapter, and to what it belongs.
        self._exact: Adapter | None = None
        self._given_out = ""

    @property
    def fewest_updates(self) -> int:
        """Accepted updates without which a round cannot be added up."""
        return 1 if self.guard is None else self.guard.fewest

    # The pieces of a round -----------------------------------------------------------------------

    @staticmethod
    def initial_arrays(adapter: Adapter) -> ArrayRecord:
        """The record that a federation starts from.

        Args:
            adapter: The first global adapter; rank 0 for a fresh start.

        Returns:
            The record for ``start(initial_arrays=…)``.
        """
        return adapter_record(encode_adapter(adapter))

    def nodes(self, grid: Grid) -> tuple[int, ...]:
        """The nodes there are, once there are enough.

        Args:
            grid: Where the clients run.

        Returns:
            Sorted node identifiers.

        Raises:
            FederationError: If too few came before the deadline.
        """
        deadline = time.monotonic() + self.node_deadline
        while True:
            nodes = tuple(sorted(grid.get_node_ids()))
            if len(nodes) >= self.minimum_nodes:
                return nodes
            if time.monotonic() >= deadline:
                raise FederationError(
                    f"nodes after {self.node_deadline:g} seconds",
                    len(nodes),
                    f"connect at least {self.minimum_nodes}",
                )
            time.sleep(min(1.0, max(0.0, deadline - time.monotonic())))

    def broadcast(self, encoded: EncodedAdapter) -> Broadcast:
        """A published adapter as it is sent.

        Args:
            encoded: PEFT's two files.

        Returns:
            Its broadcast in the plan's precision.
        """
        return Broadcast(encoded, self.plan.download)

    def assignments(
        self, number: int, nodes: Sequence[int], broadcast: Broadcast
    ) -> dict[int, TrainAssignment]:
        """What each node of a round's cohort is asked to do.

        Args:
            number: From 1.
            nodes: The nodes there are.
            broadcast: What the round starts from.

        Returns:
            From node identifier to its assignment; see :meth:`.FederationPlan.assignments`.
        """
        planned = self.plan.assignments(number, nodes, broadcast.start_digest)
        return {node: broadcast.named_in(assignment) for node, assignment in planned.items()}

    def open_round(
        self,
        number: int,
        broadcast: Broadcast,
        assignments: Mapping[int, TrainAssignment],
        exact: Adapter | None = None,
    ) -> OpenRound:
        """Begin a round.

        Args:
            number: From 1.
            broadcast: What it starts from.
            assignments: From node identifier to what the node is asked.
            exact: What the server keeps beside what is sent.

        Returns:
            The round.
        """
        return OpenRound(
            number=number, broadcast=broadcast, exact=exact, assignments=dict(assignments)
        )

    def train_messages(self, open_round: OpenRound, nodes: Iterable[int]) -> Iterable[Message]:
        """The messages that ask nodes to train; what is sent to several is shared between them.

        Args:
            open_round: The round.
            nodes: Which of the round's nodes to ask.

        Yields:
            One message a node.
        """
        for node in nodes:
            assignment = open_round.assignments[node]
            yield Message(
                train_content(assignment, open_round.broadcast.record(assignment)),
                dst_node_id=node,
                message_type="train",
                group_id=str(open_round.number),
            )

    def admit_reply(self, open_round: OpenRound, reply: Message) -> ValidatedUpdate:
        """Check one reply.

        Args:
            open_round: The round it should belong to.
            reply: A reply without error that is no abstention.

        Returns:
            The validated update.

        Raises:
            RefusedUpdate: With the reason; see :func:`~.admission.admit`.
        """
        node = reply.metadata.src_node_id
        if node not in open_round.assignments:
            raise RefusedUpdate("not-invited", "node", node, "wait until it is sampled")
        try:
            received = read_update_content(reply)
        except IntarsiaError as error:
            raise RefusedUpdate("malformed", error.thing, error.value, error.remedy) from None
        return admit(received, open_round.assignments[node], open_round)

    def weighted(self, open_round: OpenRound, update: ValidatedUpdate) -> WeightedUpdate:
        """An admitted update as aggregation takes it."""
        return update.weighted(
            open_round.start(update.assignment), max_examples=self.plan.max_examples
        )

    def aggregate(self, open_round: OpenRound, updates: Sequence[WeightedUpdate]) -> RoundAggregate:
        """Add admitted updates up.

        Args:
            open_round: The round.
            updates: In a fixed order; equal orders give equal bytes.

        Returns:
            The new global adapter and what was done to make it.
        """
        return aggregate_round(
            open_round, updates, plan=self.plan, method=self.method, guard=self.guard
        )

    # Flower's own loop ---------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample a cohort and ask it to train; see Flower's ``Strategy``."""
        del config  # the plan says it all
        encoded = adapter_of(arrays)
        broadcast = self.broadcast(encoded)
        assignments = self.assignments(server_round, self.nodes(grid), broadcast)
        # What belongs to other arrays than the last ones given out is of another federation.
        exact = self._exact if broadcast.start_digest == self._given_out else None
        self._open = self.open_round(server_round, broadcast, assignments, exact)
        # Flower's own grid goes over the messages twice.
        return list(self.train_messages(self._open, assignments))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit the replies and add up what was admitted; see Flower's ``Strategy``."""
        open_round = self._open
        if open_round is None or open_round.number != server_round:
            raise FederationError("round", server_round, "configure it before aggregating")
        updates: list[ValidatedUpdate] = []
        nonces: set[str] = set()
        refused = 0
        for reply in replies:
            try:
                if reply.has_error():
                    raise RefusedUpdate(
                        "failed", f"node {reply.metadata.src_node_id}", reply.error.reason, "see it"
                    )
                reason = abstention_reason(reply.content)
                if reason is not None:
                    raise RefusedUpdate(
                        "sat-out", f"node {reply.metadata.src_node_id}", reason, "go on without"
                    )
                update = self.admit_reply(open_round, reply)
                if update.manifest.nonce in nonces:
                    raise RefusedUpdate(
                        "replayed-nonce",
                        f"update of {update.assignment.client} in round {server_round}",
                        "came before",
                        "send one a round",
                    )
                nonces.add(update.manifest.nonce)
                updates.append(update)
            except RefusedUpdate as refusal:
                refused += 1
                log(WARNING, "round %s, %s: %s", server_round, refusal.reason, refusal)
        metrics = MetricRecord({"accepted": len(updates), "refused": refused})
        if len(updates) < self.fewest_updates:
            log(WARNING, "round %s: %s updates are too few", server_round, len(updates))
            return None, metrics
        updates.sort(key=lambda update: update.assignment.client)
        made = self.aggregate(open_round, [self.weighted(open_round, one) for one in updates])
        encoded = encode_adapter(made.published)
        self._exact, self._given_out = made.exact, encoded.digest
        for decision in made.decisions:
            log(INFO, "round %s, %s: %s", server_round, decision.client, decision.outcome)
        return adapter_record(encoded), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node to measure the adapter; see Flower's ``Strategy``."""
        del config
        broadcast = self.broadcast(adapter_of(arrays))
        return list(self.evaluate_messages(server_round, broadcast, self.nodes(grid)))

    def evaluate_messages(
        self,
        number: int,
        broadcast: Broadcast,
        nodes: Sequence[int],
        *,
        message_type: str = "evaluate",
        plain: bool = False,
    ) -> Iterable[Message]:
        """The messages that ask nodes to measure an adapter on their held-out records.

        Args:
            number: The round.
            broadcast: The adapter; it is sent whole to everyone.
            nodes: Which nodes to ask.
            message_type: ``"evaluate"``, or ``"train.alone"`` for a site's own adapter.
            plain: Whether it is measured, or trained alone, without what the method has clients
                keep to themselves.

        Yields:
            One message a node.
        """
        for node, turn in self.plan.turns(nodes).items():
            assignment = self.plan.assignment(number, node, turn, broadcast.start_digest)
            assignment = replace(assignment, start=START_KINDS[0])
            if plain:
                assignment = replace(assignment, shared_factors="both")
            assignment = broadcast.named_in(assignment)
            yield Message(
                train_content(assignment, broadcast.record(assignment)),
                dst_node_id=node,
                message_type=message_type,
                group_id=str(number),
            )

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the clients' losses by what each measured; see Flower's ``Strategy``."""
        measured = [m for reply in replies if (m := self.measurement(reply)) is not None]
        if not measured:
            return None
        sizes = [m.tokens if m.perplexity is not None else m.examples for m in measured]
        total = sum(sizes)
        loss = sum(m.loss * size for m, size in zip(measured, sizes, strict=True)) / total
        return MetricRecord({"loss": loss, "clients": len(measured), "round": server_round})

    def measurement(self, reply: Message) -> ClientMeasurement | None:
        """Read one client's measurement, or None where it has no held-out records or failed."""
        return read_measurement(reply, self.plan.name(reply.metadata.src_node_id))

    def summary(self) -> None:
        """Log the strategy's settings; see Flower's ``Strategy``."""
        plan = self.plan
        log(INFO, "\t├──> Method: %s", self.method.name)
        log(INFO, "\t├──> Ranks in turn: %s", list(plan.ranks))
        log(INFO, "\t├──> Fraction of clients: %s", plan.fraction)
        log(INFO, "\t└──> Privacy unit: %s", plan.privacy.unit)
