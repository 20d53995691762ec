"""How good an adapter is: on the server's held-out records, and on each client's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.serverapp import Grid
from intarsia_client.base_model import BaseModel
from intarsia_client.evaluation import evaluate
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.records import Record
from intarsia_client.wire import Adapter

from intarsia_platform.federation.strategy import LoraStrategy
from intarsia_platform.results import ClientEvaluation, Measured
from intarsia_platform.simulation.preparation import PreparedData


class ServerMeasurement:
    """Measures adapters on the server's held-out records.

    Args:
        base: The base model.
        records: The held-out records; none where there is nothing to measure on.
        max_length: Longest sequence, in tokens.
        batch_size: Sequences at once.
        every: Rounds between measurements; the last round is always measured.
        rounds: Rounds in all.
    """

    def __init__(
        self,
        base: BaseModel,
        records: Sequence[Record],
        *,
        max_length: int,
        batch_size: int,
        every: int,
        rounds: int,
    ) -> None:
        self._base = base
        self._records = records
        self._max_length = max_length
        self._batch_size = batch_size
        self._every = every
        self._rounds = rounds

    def base_alone(self) -> Measured:
        """Measure the base model without any adapter."""
        return self._measure(None) or Measured()

    def after_round(self, number: int, adapter: Adapter) -> Measured | None:
        """Measure a round's adapter.

        Args:
            number: The round.
            adapter: Its result.

        Returns:
            The measurement, None where this round is not measured.
        """
        if number != self._rounds and number % self._every:
            return None
        return self._measure(adapter)

    def _measure(self, adapter: Adapter | None) -> Measured | None:
        if not self._records:
            return None
        found = evaluate(
            self._base,
            self._records,
            adapter=adapter,
            max_length=self._max_length,
            batch_size=self._batch_size,
        )
        return Measured(loss=found.loss, perplexity=found.perplexity, accuracy=found.accuracy)


def measure_clients(
    strategy: LoraStrategy,
    grid: Grid,
    data: PreparedData,
    *,
    initial: EncodedAdapter,
    federated: EncodedAdapter,
    own_adapters: bool,
    deadline_seconds: float,
    progress: Callable[[int, int], None],
) -> tuple[ClientEvaluation, ...]:
    """Measure, at every client with held-out records: the base, its own adapter, the federated one.

    Args:
        strategy: Makes and reads the messages.
        grid: Where the clients run.
        data: The split records.
        initial: The adapter of rank 0, which stands for the base alone.
        federated: The federation's result.
        own_adapters: Whether each client also trains alone, as long as the federation did.
        deadline_seconds: How long to wait for each kind of measurement, in seconds.
        progress: Is told how many of how many measurements have arrived.

    Returns:
        One entry a client, by name; what did not arrive in time is None.
    """
    plan = strategy.plan
    nodes = [node for node, name in sorted(plan.names.items()) if name in data.test]
    empty, result = strategy.broadcast(initial), strategy.broadcast(federated)
    # Only the federated adapter is measured with what the method leaves at the clients.
    kinds = [("base", empty, "evaluate", True), ("federated", result, "evaluate", False)]
    if own_adapters:
        kinds.append(("own", empty, "train.alone", True))
    found: dict[str, Mapping[str, Measured]] = {}
    for done, (kind, broadcast, message_type, plain) in enumerate(kinds):
        messages = strategy.evaluate_messages(
            plan.rounds + 1, broadcast, nodes, message_type=message_type, plain=plain
        )
        identifiers = set(grid.push_messages(messages))
        found[kind] = _collect(
            strategy,
            grid,
            identifiers,
            deadline=time.monotonic() + deadline_seconds,
            progress=lambda count, before=done: progress(  # type: ignore[misc]
                before * len(nodes) + count, len(kinds) * len(nodes)
            ),
        )
    turns = plan.turns(list(plan.names))
    return tuple(
        ClientEvaluation(
            client=plan.names[node],
            base=found["base"].get(plan.names[node]),
            own=found.get("own", {}).get(plan.names[node]),
            federated=found["federated"].get(plan.names[node]),
            rank=plan.part(plan.name(node), turns[node])[0],
            train_examples=data.train[plan.names[node]].count,
            test_examples=data.test[plan.names[node]].count,
        )
        for node in nodes
    )


def _collect(
    strategy: LoraStrategy,
    grid: Grid,
    identifiers: set[str],
    *,
    deadline: float,
    progress: Callable[[int], None],
) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    arrived = 0
    while identifiers and time.monotonic() < deadline:
        replies = list(grid.pull_messages(identifiers))
        for reply in replies:
            identifiers.discard(reply.metadata.reply_to_message_id)
            arrived += 1
            progress(arrived)
            measurement = strategy.measurement(reply)
            if measurement is not None:
                found[measurement.client] = Measured(
                    loss=measurement.loss,
                    perplexity=measurement.perplexity,
                    accuracy=measurement.accuracy,
                )
        if not replies:
            time.sleep(0.01)
    return found
