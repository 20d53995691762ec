"""The ClientApp as a grid calls it: its own word, rounds from a broadcast, and what it keeps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from flwr.app.user_config import UserConfigValue
from intarsia_client.app import DESCRIPTION
from intarsia_client.assignment import TrainAssignment, TrainingParameters
from intarsia_client.evaluation import evaluate
from intarsia_client.files import bytes_digest
from intarsia_client.messages import (
    METRICS,
    broadcast_record,
    read_update_content,
    train_content,
)
from intarsia_client.records import Record
from intarsia_client.start import assigned_start
from intarsia_client.transport import (
    broadcast_prefix_size,
    decode_broadcast,
    decode_update,
    encode_broadcast,
)
from intarsia_client.wire import Adapter
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid


def ask(config: dict[str, UserConfigValue]) -> Message:
    clients = [VirtualClient(node_id=7, node_config=config)]
    with InProcessGrid("intarsia_client.app:app", clients) as grid:
        (reply,) = grid.send_and_receive([Message(RecordDict(), 7, "query")])
    return reply


def test_a_node_describes_itself(tmp_path: Path) -> None:
    data = tmp_path / "north.jsonl"
    data.write_text("".join(json.dumps({"text": f"note {n}"}) + "\n" for n in range(3)))
    reply = ask({"client": "north", "data": str(data)})
    assert dict(reply.content.config_records[DESCRIPTION]) == {"client": "north", "records": 3}
    reply = ask({"client": "south"})
    assert dict(reply.content.config_records[DESCRIPTION]) == {"client": "south", "records": 0}


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, "node configuration client: None; set it to a string"),
        ({"client": 3}, "node configuration client: 3; set it to a string"),
        ({"client": "north", "data": "absent.jsonl"}, "data of north: "),
    ],
)
def test_a_node_that_is_configured_wrongly_says_so(
    config: dict[str, UserConfigValue], line: str
) -> None:
    reply = ask(config)
    assert reply.has_error() and reply.error.reason.startswith(line)


LINES = [f"the quick brown fox jumps over {n} lazy dogs" for n in range(12)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Message]]:
    """A site with records to train on and held-out ones; it remembers what it is asked."""
    config: dict[str, UserConfigValue] = {"client": "north"}
    for key, lines in (("data", LINES[:8]), ("test-data", LINES[8:])):
        path = tmp_path / f"{key}.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        config[key] = str(path)
    with InProcessGrid(
        "intarsia_client.app:app", [VirtualClient(node_id=7, node_config=config)]
    ) as grid:

        def asked(assignment: TrainAssignment, data: bytes, kind: str = "train") -> Message:
            content = train_content(assignment, broadcast_record(data))
            message = Message(content, 7, kind, group_id=str(assignment.round))
            (reply,) = grid.send_and_receive([message])
            return reply

        yield asked


def assigned(base: Any, adapter: Adapter, data: bytes, **changes: Any) -> TrainAssignment:
    values: dict[str, Any] = {
        "run": "r", "round": 1, "rounds": 2, "client": "north", "nonce": "n", "seed": 0,
        "base": base.base, "base_digest": base.digest, "start_digest": "sha256:s",
        "task": "causal-lm", "rank": 4, "lora_alpha": 8.0,
        "target_modules": tuple(adapter.modules), "broadcast_digest": bytes_digest(data),
        "training": TrainingParameters(batch_size=4, learning_rate=1e-2, max_length=32),
    }  # fmt: skip
    return TrainAssignment(**{**values, **changes})


def received(reply: Message, start: Adapter, factors: str = "both") -> Adapter:
    assert not reply.has_error(), reply.error.reason
    return decode_update(read_update_content(reply).adapter, start, factors=factors)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["residual", "prefix", "fresh", "sampled"])
def test_a_round_from_a_broadcast_is_the_round_from_what_it_decodes_to(
    bases: Any, make_adapter: Any, site: Any, precision: str, kind: str
) -> None:
    base = bases.llama
    whole = encode_broadcast(make_adapter(base, 6), precision)
    published = decode_broadcast(whole)
    data = whole[: broadcast_prefix_size(whole, 4)] if kind == "prefix" else whole
    still = TrainingParameters(batch_size=4, learning_rate=0.0, max_length=32)
    assignment = assigned(base, published, data, start=kind, training=still, upload=precision)
    start = assigned_start(published, assignment).trainable
    found = received(site(assignment, data), start)
    for name in start.modules:
        assert found.modules[name].a.tobytes() == start.modules[name].a.tobytes()
        assert found.modules[name].b.tobytes() == start.modules[name].b.tobytes()


def test_bytes_that_are_not_those_of_the_assignment_are_refused(
    bases: Any, make_adapter: Any, site: Any
) -> None:
    published = make_adapter(bases.llama, 6)
    data = encode_broadcast(published, "float32")
    prefix = data[: broadcast_prefix_size(data, 4)]
    sound = assigned(bases.llama, published, data)
    cases = [
        (sound, data[:-1], "global adapter: sha256:.*; fetch it again"),
        (replace(sound, broadcast_digest=""), data, "global adapter: sha256:.*; fetch it again"),
        (replace(sound, client="south"), data, "assignment's client: south; this node is north"),
        (assigned(bases.llama, published, prefix), prefix, r"broadcast file: \d+ bytes of"),
        (assigned(bases.llama, published, b"no"), b"no", "broadcast file: 2 bytes"),
        (
            assigned(bases.llama, published, prefix, start="prefix", rank=5),
            prefix,
            r"broadcast file: \d+ bytes of",
        ),
    ]
    for assignment, sent, line in cases:
        reply = site(assignment, sent)
        assert reply.has_error()
        assert re.match(line, reply.error.reason), reply.error.reason


def test_a_site_keeps_its_own_b_and_is_measured_with_it(
    bases: Any, make_adapter: Any, site: Any
) -> None:
    base = bases.llama
    published = make_adapter(base, 4)
    zero = {name: replace(one, b=0.0 * one.b) for name, one in published.modules.items()}
    published = replace(published, modules=zero)
    data = encode_broadcast(published, "float32")
    options = {"shared_factors": "a", "training": TrainingParameters(
        batch_size=4, learning_rate=3e-2, max_length=32, epochs=6
    )}  # fmt: skip
    first = assigned(base, published, data, **options)
    held_out = [Record(text=line) for line in LINES[8:]]
    bare = evaluate(base, held_out, adapter=None, max_length=32).loss

    def measured(assignment: TrainAssignment) -> float:
        reply = site(assignment, data, "evaluate")
        assert not reply.has_error(), reply.error.reason
        return float(reply.content.metric_records[METRICS]["loss"])  # type: ignore[arg-type]

    assert measured(first) == pytest.approx(bare, rel=1e-5)
    start = assigned_start(published, first).trainable
    sent = received(site(first, data), start, "a")
    assert not any(one.b.any() for one in sent.modules.values())
    assert measured(first) < bare - 0.2
    # Others, who have no B of their own yet, see the base alone in the same bytes.
    assert measured(replace(first, round=0)) == pytest.approx(bare, rel=1e-5)


def test_what_is_kept_takes_part_in_the_next_round_and_not_in_a_repeated_one(
    bases: Any, make_adapter: Any, site: Any
) -> None:
    published = make_adapter(bases.llama, 6)
    data = encode_broadcast(published, "float32")
    training = TrainingParameters(
        batch_size=4, learning_rate=1e-2, max_length=32, keep_optimizer=True, schedule="constant"
    )
    options = {"training": training, "upload": "int8"}
    start = assigned_start(published, assigned(bases.llama, published, data)).trainable

    def tensors(number: int) -> bytes:
        reply = site(assigned(bases.llama, published, data, round=number, **options), data)
        received(reply, start)
        return read_update_content(reply).adapter.tensors

    first, second = tensors(1), tensors(2)
    assert (tensors(2), tensors(1)) == (second, first)


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"start": "prefix"}, {"start": "fresh"}, {"upload": "int8"}, {"shared_factors": "a"},
        {"trained_factors": "b"},
    ],
)  # fmt: skip
def test_training_alone_is_the_sites_own_lora_whatever_the_federation_does(
    bases: Any, make_adapter: Any, site: Any, changes: dict[str, str]
) -> None:
    base = bases.llama
    published = make_adapter(base, 2)
    empty = {
        name: replace(one, a=one.a[:0], b=one.b[:, :0]) for name, one in published.modules.items()
    }
    published = replace(published, modules=empty)
    data = encode_broadcast(published, "float32")
    options = {"training": TrainingParameters(
        batch_size=4, learning_rate=1e-2, max_length=32, keep_optimizer=not changes
    )}  # fmt: skip
    usual = site(assigned(base, published, data, round=0), data, "train.alone")
    reply = site(assigned(base, published, data, round=0, **changes), data, "train.alone")
    kept = site(assigned(base, published, data, round=0, **options), data, "train.alone")
    losses = []
    for one in (usual, reply, kept):
        assert not one.has_error(), one.error.reason
        losses.append(one.content.metric_records[METRICS]["loss"])
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == bool(changes)
    assert np.isfinite(losses).all()
