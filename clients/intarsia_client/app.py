"""The Flower ClientApp: a site's side of every round.

One app for simulation and production. What it trains on comes from the node's own configuration,
never from the server: ``client`` and a prepared shard in a simulation, ``client`` and ``data`` (a
file) on an edge node; see :mod:`intarsia_client.shards`.

On an edge node each message starts a process. What only training and measuring need is imported by
them, which takes some seconds of a core: a node that says its name does without.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from intarsia_client.assignment import TrainAssignment
from intarsia_client.client_state import ClientState
from intarsia_client.errors import InputError, IntegrityError
from intarsia_client.files import bytes_digest
from intarsia_client.messages import (
    METRICS,
    abstention_content,
    read_train_content,
    update_content,
)
from intarsia_client.privacy import BudgetExceeded
from intarsia_client.shards import DataShard, shard_of
from intarsia_client.start import assigned_start
from intarsia_client.transport import decode_broadcast
from intarsia_client.wire import Adapter, PrivacySpend

if TYPE_CHECKING:
    from intarsia_client.base_model import BaseModel
    from intarsia_client.evaluation import Evaluation
    from intarsia_client.training import TrainedRound

DESCRIPTION = "description"
"""The record of :func:`describe`'s reply: ``client``, and ``records`` to train on."""

_PRIVACY = "privacy"
_STATE = "state"

app = ClientApp()


@dataclass(frozen=True, kw_only=True)
class _Received:
    """A broadcast's bytes, equal to others of the same digest."""

    digest: str
    rank: int | None
    data: bytes = field(compare=False, repr=False)


@app.query()
def describe(message: Message, context: Context) -> Message:
    """Tell the server how this node calls itself and how many records it would train on.

    A server that has never seen the nodes learns here which names to put into its assignments.

    Args:
        message: A query message, whatever it holds.
        context: The node's configuration.

    Returns:
        The reply; see :data:`DESCRIPTION`.
    """
    name = context.node_config.get("client")
    if not isinstance(name, str) or not name:
        raise InputError("node configuration client", repr(name), "set it to a string")
    shard = shard_of(context.node_config, "train")
    records = 0 if shard is None else len(shard.records)
    description = ConfigRecord({"client": name, "records": records})
    return Message(RecordDict({DESCRIPTION: description}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train one round and answer with an update, or abstain where the budget is spent.

    Args:
        message: A train message; see :mod:`intarsia_client.messages`.
        context: The node's configuration and the client's own state.

    Returns:
        The reply.
    """
    begun = time.perf_counter()
    assignment, published = _read(message, context, whole=False)
    history = _history(context)
    try:
        outcome = _train(context, assignment, published, history, _state(context))
    except BudgetExceeded as exceeded:
        return Message(abstention_content(str(exceeded)), reply_to=message)
    manifest = outcome.update.manifest
    if manifest.privacy is not None:
        _remember(context, [*history, manifest.privacy])
    if not outcome.state.is_empty:
        context.state.config_records[_STATE] = ConfigRecord({"file": outcome.state.to_bytes()})
    # How long private training took depends on the records, outside of what is accounted for.
    metrics = {} if manifest.privacy else {"seconds": time.perf_counter() - begun}
    content = update_content(manifest, outcome.encoded, metrics)
    return Message(content, reply_to=message)


@app.train("alone")
def train_alone(message: Message, context: Context) -> Message:
    """Train on this site's records alone, as many rounds as the federation, and measure it.

    The site's own adapter, of the same rank and with as many steps, is what the federated one has
    to be better than. Both of its factors are trained where the federation trains any, each round
    goes on where the last one ended, and nothing that this site keeps for the federation takes
    part. It is never sent; only its measurements are.

    Args:
        message: A train message whose adapter is the empty one.
        context: The node's configuration.

    Returns:
        The reply with the measurements on this site's held-out records.
    """
    assignment, adapter = _read(message, context, whole=True)
    trained_factors = "none" if assignment.trained_factors == "none" else "both"
    alone = replace(
        assignment,
        start="residual",
        trained_factors=trained_factors,
        shared_factors="both",
        upload="float32",
    )
    state = ClientState()
    for number in range(1, assignment.rounds + 1):
        outcome = _train(context, replace(alone, round=number), adapter, [], state)
        adapter, state = outcome.trained, outcome.state
    return _measured(message, context, assignment, adapter)


@app.evaluate()
def evaluate_global(message: Message, context: Context) -> Message:
    """Measure the adapter that was sent on this site's held-out records.

    Where only A is shared, with this site's own B.

    Args:
        message: An evaluate message.
        context: The node's configuration.

    Returns:
        The reply with the measurements; ``examples`` is 0 at a site without held-out records.
    """
    assignment, adapter = _read(message, context, whole=True)
    if assignment.shared_factors == "a":
        start = assigned_start(adapter, assignment)
        personal = _state(context).personal(start.trainable)
        adapter = replace(start, trainable=personal).whole
    return _measured(message, context, assignment, adapter)


def _measured(
    message: Message, context: Context, assignment: TrainAssignment, adapter: Adapter
) -> Message:
    from intarsia_client.evaluation import evaluate

    shard = shard_of(context.node_config, "test")
    metrics: dict[str, int | float | list[int] | list[float]] = {"examples": 0}
    if shard is not None and shard.records:
        measured = evaluate(
            _base(assignment),
            shard.records,
            adapter=adapter,
            max_length=assignment.training.max_length,
            batch_size=assignment.training.batch_size,
        )
        metrics = _as_metrics(measured)
    return Message(RecordDict({METRICS: MetricRecord(metrics)}), reply_to=message)


def _as_metrics(measured: Evaluation) -> dict[str, int | float | list[int] | list[float]]:
    values = asdict(measured)
    return {name: value for name, value in values.items() if value is not None}


def _train(
    context: Context,
    assignment: TrainAssignment,
    published: Adapter,
    history: list[PrivacySpend],
    state: ClientState,
) -> TrainedRound:
    from intarsia_client.training import LocalTrainer

    return LocalTrainer(_base(assignment)).train(
        _shard(context, assignment),
        assignment,
        published,
        private_seed=_private_seed(context, assignment),
        history=history,
        state=state,
    )


def _read(message: Message, context: Context, *, whole: bool) -> tuple[TrainAssignment, Adapter]:
    """The assignment and the adapter that came with it, of which a round may need the beginning."""
    assignment, data = read_train_content(message.content)
    name = context.node_config.get("client")
    if name is not None and name != assignment.client:
        raise InputError("assignment's client", assignment.client, f"this node is {name}")
    digest = bytes_digest(data)
    if digest != assignment.broadcast_digest:
        raise IntegrityError("global adapter", digest, "fetch it again; it changed")
    rank = assignment.rank if assignment.start == "prefix" and not whole else None
    return assignment, _decoded(_Received(digest=digest, rank=rank, data=data))


@lru_cache(maxsize=2)
def _decoded(received: _Received) -> Adapter:
    # Every client of a round starts from the same bytes; a process checks them once.
    return decode_broadcast(received.data, rank=received.rank)


def _state(context: Context) -> ClientState:
    record = context.state.config_records.get(_STATE, ConfigRecord())
    kept = record.get("file")
    return ClientState.from_bytes(kept) if isinstance(kept, bytes) else ClientState()


def _base(assignment: TrainAssignment) -> BaseModel:
    from intarsia_client.base_model import load_base

    return load_base(
        assignment.base, task=assignment.task, labels=assignment.labels, seed=assignment.seed
    )


def _shard(context: Context, assignment: TrainAssignment) -> DataShard:
    shard = shard_of(context.node_config, "train")
    if shard is None:
        raise InputError(
            f"records of {assignment.client}", "none", "name them in the node's configuration"
        )
    return shard


def _history(context: Context) -> list[PrivacySpend]:
    record = context.state.config_records.get(_PRIVACY)
    if record is None or "history" not in record:
        return []
    return [PrivacySpend(**spend) for spend in json.loads(str(record["history"]))]


def _remember(context: Context, history: list[PrivacySpend]) -> None:
    record = context.state.config_records.get(_PRIVACY, ConfigRecord())
    record["history"] = json.dumps([asdict(spend) for spend in history])
    context.state.config_records[_PRIVACY] = record


def _private_seed(context: Context, assignment: TrainAssignment) -> int | None:
    """The client's secret, from which private sampling and noise follow; None without privacy.

    A simulation gives each virtual client its secret, so that it can be repeated. Elsewhere the
    secret is drawn once from the operating system and kept in the client's state, so that a round
    asked for twice releases the same bytes, not a second noisy look at the same records.
    """
    if assignment.privacy.unit == "none":
        return None
    given = context.node_config.get("simulated-secret")
    if given is not None:
        return int.from_bytes(hashlib.sha256(str(given).encode()).digest())
    record = context.state.config_records.get(_PRIVACY, ConfigRecord())
    if "secret" not in record:
        record["secret"] = secrets.token_hex(32)
        context.state.config_records[_PRIVACY] = record
    return int(str(record["secret"]), 16)
