"""A round with dishonest clients: the real strategy, admission, rule and sum, made-up training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_client.assignment import TrainAssignment
from intarsia_client.files import bytes_digest
from intarsia_client.messages import adapter_of, read_train_content, update_content
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.start import assigned_start
from intarsia_client.transport import decode_broadcast, encode_update
from intarsia_client.wire import Adapter, LowRankFactors, UpdateManifest
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.guard import RobustGuard
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.strategy import LoraStrategy

SHAPES = {"model.q": (20, 24), "model.v": (18, 24)}
HEAD = "score.weight"
NAMES = {10 * (place + 1): name for place, name in enumerate("abcdefg")}
HOSTILE = ("f", "g")
EXAMPLES = 20
PLAN = FederationPlan(
    run="run-1",
    rounds=5,
    seed=0,
    base="base",
    base_digest="sha256:base",
    task="sequence-classification",
    labels=("no", "yes"),
    target_modules=SHAPES,
    ranks=(4, 2, 6, 3),
    names=NAMES,
)
RULES = ("none", "norm-bound", "multi-krum", "geometric-median", "fltrust")
SETTINGS = RobustSettings(byzantine=len(HOSTILE))


def empty(plan: FederationPlan, dense: Mapping[str, np.ndarray]) -> Adapter:
    """A global adapter of rank 0."""
    modules = {
        name: LowRankFactors(
            a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
        )
        for name, (d_out, d_in) in plan.target_modules.items()
    }
    return Adapter(base=plan.base, task=plan.task, modules=modules, dense=dict(dense))


EMPTY = empty(PLAN, {HEAD: np.full((2, 24), 0.25, np.float32)})


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What a client makes of its assignment.

    Args:
        trained: Its adapter.
        claims: What its manifest says beside the truth.
    """

    trained: Adapter
    claims: Mapping[str, Any]


class Root:
    """The server's own update, as honest as can be."""

    def __init__(self, train: Callable[[TrainAssignment, Adapter], Adapter]) -> None:
        self._train = train

    def update(self, open_round: Any, plan: FederationPlan) -> WeightedUpdate:
        assignment = next(iter(open_round.assignments.values()))
        assignment = replace(assignment, client="server", rank=plan.largest_rank,
                             lora_alpha=plan.alpha_over_rank * plan.largest_rank)  # fmt: skip
        start = open_round.start(assignment)
        trained = self._train(assignment, start)
        return WeightedUpdate(client="server", weight=1.0, start=start, trained=trained)


SPREAD = 0.3
"""How far honest clients' columns of B are from each other, over how far they go."""


def goal(name: str, rank: int) -> np.ndarray:
    """Where honest clients take a module's B, at most six columns."""
    generator = np.random.default_rng([ord(letter) for letter in name])
    return generator.standard_normal((SHAPES[name][0], 6)).astype(np.float32)[:, :rank]


def honest(client: str, assignment: TrainAssignment, start: Adapter) -> Adapter:
    """Everyone goes the same way, and each a little elsewhere."""
    generator = np.random.default_rng([ord(letter) for letter in client])
    modules = {}
    for name in start.modules:
        before = start.modules[name]
        own = generator.standard_normal(before.b.shape).astype(np.float32)
        modules[name] = replace(before, b=goal(name, assignment.rank) + np.float32(SPREAD) * own)
    dense = {
        name: head + np.float32(0.3) + np.float32(0.1) * generator.standard_normal(
            head.shape).astype(np.float32)
        for name, head in start.dense.items()
    }  # fmt: skip
    return replace(start, modules=modules, dense=dense)


def guard_of(rule: str, root: Any, settings: RobustSettings = SETTINGS) -> RobustGuard | None:
    """The named rule at work; None for none."""
    return None if rule == "none" else RobustGuard(rule, settings, root=root)


def grid_of(plan: FederationPlan) -> InProcessGrid:
    """A grid of which only the nodes are asked; the tests answer for them."""
    clients = [VirtualClient(node_id=node, node_config={}) for node in plan.names]
    return InProcessGrid(ClientApp(), clients)


def asked(
    strategy: LoraStrategy, arrays: ArrayRecord, number: int = 1
) -> dict[str, tuple[Message, TrainAssignment, Adapter]]:
    """By client: the message it got, its assignment and its start."""
    found = {}
    for message in strategy.configure_train(number, arrays, ConfigRecord(), grid_of(strategy.plan)):
        assignment, data = read_train_content(message.content)
        rank = assignment.rank if assignment.start == "prefix" else None
        start = assigned_start(decode_broadcast(data, rank=rank), assignment).trainable
        found[assignment.client] = (message, assignment, start)
    return found


def reply_to(message: Message, content: RecordDict, *, node: int = 0) -> Message:
    """A reply as it would arrive, from the node that was asked or another."""
    sent = message.metadata
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=node or sent.dst_node_id, dst_node_id=0,
        reply_to_message_id=sent.message_id, group_id=sent.group_id, created_at=sent.created_at,
        ttl=sent.ttl, message_type=sent.message_type,
    )  # fmt: skip
    return make_message(metadata, content)


def manifest_of(
    assignment: TrainAssignment, encoded: EncodedAdapter, **claims: Any
) -> UpdateManifest:
    """What an honest client would say, but for its claims."""
    values = {
        "run": assignment.run,
        "round": assignment.round,
        "client": assignment.client,
        "nonce": assignment.nonce,
        "base_digest": assignment.base_digest,
        "start_digest": assignment.start_digest,
        "task": assignment.task,
        "target_modules": tuple(sorted(assignment.target_modules)),
        "rank": assignment.rank,
        "lora_alpha": assignment.lora_alpha,
        "use_rslora": assignment.use_rslora,
        "number_of_examples": EXAMPLES,
        "shard_digest": "sha256:" + "0" * 64,
        "tensors_digest": bytes_digest(encoded.tensors),
    }
    return UpdateManifest(**{**values, **claims})


def answer(message: Message, assignment: TrainAssignment, start: Adapter, sent: Sent) -> Message:
    """A whole reply."""
    encoded = encode_update(sent.trained, start, assignment.upload, factors=assignment.sent_factors)
    manifest = manifest_of(assignment, encoded, **sent.claims)
    return reply_to(message, update_content(manifest, encoded, {}))


def published(strategy: LoraStrategy, arrays: ArrayRecord) -> Adapter:
    """What the clients of the next round are sent."""
    return strategy.broadcast(adapter_of(arrays)).published


def vector(adapter: Adapter) -> np.ndarray:
    """An adapter's products and head as one dense vector."""
    products = [adapter.modules[name].product().ravel() for name in sorted(adapter.modules)]
    heads = [adapter.dense[name].astype(np.float64).ravel() for name in sorted(adapter.dense)]
    return np.concatenate([*products, *heads])


def moved(start: Adapter, trained: Adapter, factor: float) -> Adapter:
    """What was added to B and the head times a factor; for starts whose B is zero, of all."""
    modules = {
        name: replace(
            trained.modules[name],
            b=before.b + np.float32(factor) * (trained.modules[name].b - before.b),
        )
        for name, before in ((name, start.modules[name]) for name in start.modules)
    }
    dense = {
        name: before + np.float32(factor) * (trained.dense[name] - before)
        for name, before in start.dense.items()
    }
    return replace(trained, modules=modules, dense=dense)
