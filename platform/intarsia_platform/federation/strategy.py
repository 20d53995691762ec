"""The Flower strategy: mixed-rank LoRA, added up exactly.

It is an ordinary ``flwr.serverapp.strategy.Strategy``: put it into any ServerApp and call
``strategy.start(grid=…, initial_arrays=strategy.initial_arrays(adapter), num_rounds=…)``. The
durable round loop of :mod:`intarsia_platform.federation.rounds` calls the same pieces one by one.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.logger import log
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from intarsia_aggregators.catalog import find_method
from intarsia_client.assignment import TrainAssignment
from intarsia_client.errors import FederationError, InputError, IntarsiaError, RefusedUpdate
from intarsia_client.messages import (
    METRICS,
    abstention_reason,
    adapter_of,
    adapter_record,
    read_update_content,
    train_content,
)
from intarsia_client.peft_files import EncodedAdapter, decode_adapter, encode_adapter
from intarsia_client.wire import Adapter

from intarsia_platform.federation.admission import ValidatedUpdate, admit
from intarsia_platform.federation.plan import FederationPlan


@dataclass(frozen=True, kw_only=True)
class OpenRound:
    """What a round in progress needs to know.

    Args:
        number: From 1.
        published: The adapter it started from.
        assignments: From node identifier to what the node was asked.
    """

    number: int
    published: Adapter
    assignments: Mapping[int, TrainAssignment]


@dataclass(frozen=True, kw_only=True)
class ClientMeasurement:
    """One client's measurement of an adapter on its held-out records.

    Args:
        client: The client's name.
        loss: Mean loss, per token or per example.
        perplexity: Per token, for causal language models.
        accuracy: Share between 0 and 1, for classification.
        examples: Held-out records.
        tokens: Predicted tokens.
    """

    client: str
    loss: float
    perplexity: float | None
    accuracy: float | None
    examples: int
    tokens: int


class LoraStrategy(Strategy):
    """Federated LoRA over clients of unequal ranks.

    Args:
        plan: What stays the same over the rounds.
        method: A name of the aggregation catalogue.
        minimum_nodes: Nodes that must be there before a round begins.
        node_deadline: Seconds to wait for them.

    Raises:
        InputError: If the ranks do not fit the modules or the method, or there is no such method.
    """

    def __init__(
        self,
        plan: FederationPlan,
        *,
        method: str = "ledger",
        minimum_nodes: int = 1,
        node_deadline: float = 600.0,
    ) -> None:
        plan.check()
        self.plan = plan
        self.method = find_method(method)
        if not self.method.mixed_ranks and len(set(plan.ranks)) > 1:
            raise InputError("lora.ranks", list(plan.ranks), f"{method} takes clients of one rank")
        self.minimum_nodes = minimum_nodes
        self.node_deadline = node_deadline
        self._open: OpenRound | None = None

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

    def open_round(
        self, number: int, encoded: EncodedAdapter, assignments: Mapping[int, TrainAssignment]
    ) -> OpenRound:
        """Begin a round.

        Args:
            number: From 1.
            encoded: The published adapter's bytes.
            assignments: From node identifier to what the node is asked.

        Returns:
            The round.
        """
        published = decode_adapter(encoded.configuration, encoded.tensors)
        return OpenRound(number=number, published=published, assignments=dict(assignments))

    def train_messages(
        self, open_round: OpenRound, arrays: ArrayRecord, nodes: Iterable[int]
    ) -> Iterable[Message]:
        """The messages that ask nodes to train; one record of arrays is shared between them.

        Args:
            open_round: The round.
            arrays: The published adapter's record.
            nodes: Which of the round's nodes to ask.

        Yields:
            One message a node.
        """
        for node in nodes:
            yield Message(
                train_content(open_round.assignments[node], arrays),
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
        return admit(received, open_round.assignments[node], open_round.published)

    def aggregate(self, published: Adapter, updates: Iterable[ValidatedUpdate]) -> Adapter:
        """Add admitted updates up, one at a time.

        Args:
            published: The adapter that the round started from.
            updates: In a fixed order; equal orders give equal bytes.

        Returns:
            The new global adapter.
        """
        aggregation = self.method.method(published)
        for update in updates:
            aggregation.accumulate(update.weighted(published))
        return aggregation.finalize()

    # Flower's own loop ---------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Sample a cohort and ask it to train; see Flower's ``Strategy``."""
        del config  # the plan says it all
        encoded = adapter_of(arrays)
        assignments = self.plan.assignments(server_round, self.nodes(grid), encoded.digest)
        self._open = self.open_round(server_round, encoded, assignments)
        # Flower's own grid goes over the messages twice.
        return list(self.train_messages(self._open, arrays, assignments))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Admit the replies and add up what was admitted; see Flower's ``Strategy``."""
        open_round = self._open
        if open_round is None or open_round.number != server_round:
            raise FederationError("round", server_round, "configure it before aggregating")
        updates: list[ValidatedUpdate] = []
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
                updates.append(self.admit_reply(open_round, reply))
            except RefusedUpdate as refusal:
                refused += 1
                log(WARNING, "round %s, %s: %s", server_round, refusal.reason, refusal)
        metrics = MetricRecord({"accepted": len(updates), "refused": refused})
        if not updates:
            return None, metrics
        updates.sort(key=lambda update: update.assignment.client)
        adapter = self.aggregate(open_round.published, updates)
        return adapter_record(encode_adapter(adapter)), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every node to measure the adapter; see Flower's ``Strategy``."""
        del config
        return list(self.evaluate_messages(server_round, arrays, self.nodes(grid)))

    def evaluate_messages(
        self,
        number: int,
        arrays: ArrayRecord,
        nodes: Sequence[int],
        *,
        message_type: str = "evaluate",
    ) -> Iterable[Message]:
        """The messages that ask nodes to measure an adapter on their held-out records.

        Args:
            number: The round.
            arrays: The adapter's record, shared between the messages.
            nodes: Which nodes to ask.
            message_type: ``"evaluate"``, or ``"train.alone"`` for a site's own adapter.

        Yields:
            One message a node.
        """
        digest = adapter_of(arrays).digest
        for node, turn in self.plan.turns(nodes).items():
            yield Message(
                train_content(self.plan.assignment(number, node, turn, digest), arrays),
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
        if reply.has_error():
            log(WARNING, "node %s: %s", reply.metadata.src_node_id, reply.error.reason)
            return None
        record = reply.content.metric_records.get(METRICS)
        if record is None or not record.get("examples"):
            return None
        node = reply.metadata.src_node_id
        return ClientMeasurement(
            client=self.plan.name(node),
            loss=_number(record, "loss"),
            perplexity=_number(record, "perplexity") if "perplexity" in record else None,
            accuracy=_number(record, "accuracy") if "accuracy" in record else None,
            examples=int(_number(record, "examples")),
            tokens=int(_number(record, "tokens")),
        )

    def summary(self) -> None:
        """Log the strategy's settings; see Flower's ``Strategy``."""
        plan = self.plan
        log(INFO, "\t├──> Method: %s", self.method.name)
        log(INFO, "\t├──> Ranks in turn: %s", list(plan.ranks))
        log(INFO, "\t├──> Fraction of clients: %s", plan.fraction)
        log(INFO, "\t└──> Privacy unit: %s", plan.privacy.unit)


def _number(record: MetricRecord, name: str) -> float:
    value = record.get(name, 0.0)
    return float(value) if isinstance(value, int | float) else float("nan")
