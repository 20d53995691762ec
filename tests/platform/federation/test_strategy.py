"""The strategy's pieces without a model: clients that add what they like to their start."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.clientapp import ClientApp
from intarsia_client.assignment import TrainAssignment
from intarsia_client.files import bytes_digest
from intarsia_client.messages import (
    adapter_of,
    adapter_record,
    read_train_content,
    update_content,
)
from intarsia_client.peft_files import encode_adapter
from intarsia_client.start import assigned_start
from intarsia_client.transport import decode_broadcast, encode_update
from intarsia_client.wire import Adapter, LowRankFactors, UpdateManifest
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.strategy import LoraStrategy

SHAPES = {"model.q": (20, 24), "model.v": (18, 24)}
NAMES = {10: "ann", 20: "bob", 30: "cem", 40: "dag"}
PLAN = FederationPlan(
    run="run-1",
    rounds=20,
    seed=0,
    base="base",
    base_digest="sha256:base",
    task="causal-lm",
    target_modules=SHAPES,
    ranks=(2, 4, 8, 3),
    names=NAMES,
)
EMPTY = Adapter(
    base="base",
    task="causal-lm",
    modules={
        name: LowRankFactors(
            a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
        )
        for name, (d_out, d_in) in SHAPES.items()
    },
)
EXAMPLES = {"ann": 5, "bob": 40, "cem": 7, "dag": 300}


@pytest.fixture(scope="module")
def grid() -> InProcessGrid:
    """A grid of which only the nodes are asked; the tests answer for them."""
    clients = [VirtualClient(node_id=node, node_config={}) for node in NAMES]
    return InProcessGrid(ClientApp(), clients)


def received(message: Message) -> tuple[TrainAssignment, Adapter]:
    """What a client makes of a message: its assignment and its start."""
    assignment, data = read_train_content(message.content)
    assert bytes_digest(data) == assignment.broadcast_digest
    rank = assignment.rank if assignment.start == "prefix" else None
    return assignment, assigned_start(decode_broadcast(data, rank=rank), assignment).trainable


def changed(start: Adapter, seed: int, size: float = 1.0) -> Adapter:
    generator = np.random.default_rng(seed)
    modules = {}
    for name in start.modules:
        factors = start.modules[name]
        modules[name] = replace(
            factors,
            a=factors.a + size * generator.standard_normal(factors.a.shape).astype(np.float32),
            b=factors.b + size * generator.standard_normal(factors.b.shape).astype(np.float32),
        )
    return replace(start, modules=modules)


def reply(message: Message, trained: Adapter, start: Adapter, **changes: object) -> Message:
    assignment, _ = read_train_content(message.content)
    encoded = encode_update(trained, start, assignment.upload, factors=assignment.sent_factors)
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
        "number_of_examples": EXAMPLES[assignment.client],
        "shard_digest": "sha256:" + "0" * 64,
        "tensors_digest": bytes_digest(encoded.tensors),
        **changes,
    }
    manifest = UpdateManifest(**values)  # type: ignore[arg-type]
    sent = message.metadata
    metadata = Metadata(
        run_id=1, message_id="", src_node_id=sent.dst_node_id, dst_node_id=0,
        reply_to_message_id="x", group_id=sent.group_id, created_at=sent.created_at, ttl=sent.ttl,
        message_type=sent.message_type,
    )  # fmt: skip
    return make_message(metadata, update_content(manifest, encoded, {}))


def dense(adapter: Adapter) -> dict[str, np.ndarray]:
    return {name: adapter.modules[name].product() for name in adapter.modules}


def relative(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    error = sum(float(np.sum((found[n] - expected[n]) ** 2)) for n in expected)
    return (error / sum(float(np.sum(expected[n] ** 2)) for n in expected)) ** 0.5


def begin(**changes: object) -> tuple[LoraStrategy, object]:
    strategy = LoraStrategy(replace(PLAN, **changes))  # type: ignore[arg-type]
    return strategy, adapter_record(encode_adapter(EMPTY))


@pytest.mark.parametrize("download", ["float32", "int8"])
@pytest.mark.parametrize("start", ["residual", "prefix", "fresh", "sampled"])
def test_what_is_kept_is_the_float64_sum_whatever_ranks_and_clients_come(download, start, grid):
    strategy, arrays = begin(
        broadcast_rank=6, residual_rank=64, start=start, download=download, upload=download
    )
    expected = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    generator = np.random.default_rng(7)
    for number in range(1, 7):
        # Clients change rank between rounds, stay away and come back.
        ranks = tuple(int(rank) for rank in generator.integers(1, 9, size=4))
        strategy.plan = replace(strategy.plan, ranks=ranks)
        there = set(generator.choice(list(NAMES), size=3, replace=False))
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies, added = [], []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in there:
                continue
            assignment, given = received(message)
            trained = changed(given, seed=100 * number + node, size=0.3)
            answer = reply(message, trained, given)
            replies.append(answer)
            update = strategy.admit_reply(strategy._open, answer)
            before, after = dense(given), dense(update.adapter)
            weight = EXAMPLES[assignment.client]
            added.append((weight, {name: after[name] - before[name] for name in SHAPES}))
        total = sum(weight for weight, _ in added)
        for weight, difference in added:
            for name in SHAPES:
                expected[name] += weight / total * difference[name]
        arrays, metrics = strategy.aggregate_train(number, replies)
        assert metrics["accepted"] == 3
        assert relative(dense(strategy._exact), expected) < 1e-6
    published = strategy.broadcast(adapter_of(arrays)).published
    assert published.rank == 6
    assert relative(dense(published), expected) > 1e-3


def test_a_round_without_training_changes_nothing(grid):
    strategy, arrays = begin(broadcast_rank=6, download="int8", upload="int8")
    first, *_ = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    _, given = received(first)
    arrays, _ = strategy.aggregate_train(1, [reply(first, changed(given, 1), given)])
    before = dense(strategy._exact)
    for number in range(2, 6):
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = []
        for message in messages:
            _, given = received(message)
            replies.append(reply(message, given, given))
        arrays, _ = strategy.aggregate_train(number, replies)
        assert relative(dense(strategy._exact), before) < 1e-6


def test_a_second_answer_of_a_round_is_refused(grid):
    strategy, arrays = begin()
    messages = list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    replies = []
    for message in messages:
        _, given = received(message)
        replies.append(reply(message, changed(given, 3), given))
    once, _ = strategy.aggregate_train(1, replies)
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    twice, metrics = strategy.aggregate_train(1, [*replies, replies[0], replies[2]])
    assert (metrics["accepted"], metrics["refused"]) == (4, 2)
    assert twice["adapter_model.safetensors"].data == once["adapter_model.safetensors"].data


def test_what_is_kept_belongs_to_its_arrays_alone(grid):
    strategy, initial = begin(broadcast_rank=1)
    message, *_ = strategy.configure_train(1, initial, ConfigRecord(), grid)
    _, given = received(message)
    arrays, _ = strategy.aggregate_train(1, [reply(message, changed(given, 1), given)])
    assert strategy._exact is not None
    list(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    assert strategy._open.exact is strategy._exact
    # Another federation begins from other arrays: nothing of the first one is in it.
    list(strategy.configure_train(1, initial, ConfigRecord(), grid))
    assert strategy._open.exact is None
    # A round without a usable answer changes neither.
    assert strategy.aggregate_train(1, []) == (None, {"accepted": 0, "refused": 0})
    list(strategy.configure_train(2, arrays, ConfigRecord(), grid))
    assert strategy._open.exact is strategy._exact


def test_a_declared_number_of_examples_counts_up_to_the_cap(grid):
    strategy, arrays = begin(max_examples=50)
    weights = {}
    for message in strategy.configure_train(1, arrays, ConfigRecord(), grid):
        assignment, given = received(message)
        update = strategy.admit_reply(strategy._open, reply(message, given, given))
        weights[assignment.client] = strategy.weighted(strategy._open, update).weight
    assert weights == {"ann": 5.0, "bob": 40.0, "cem": 7.0, "dag": 50.0}


def test_messages_share_what_they_carry(grid):
    strategy, arrays = begin(start="prefix", ranks=(2, 4), broadcast_rank=8)
    message, *_ = strategy.configure_train(1, arrays, ConfigRecord(), grid)
    _, given = received(message)
    arrays, _ = strategy.aggregate_train(1, [reply(message, changed(given, 1), given)])
    records = {}
    for message in strategy.configure_train(2, arrays, ConfigRecord(), grid):
        assignment, _ = read_train_content(message.content)
        records.setdefault(assignment.rank, set()).add(id(message.content["broadcast"]))
    assert {rank: len(found) for rank, found in records.items()} == {2: 1, 4: 1}
