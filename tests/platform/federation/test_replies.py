"""What a reply says that it cost is written down, whether or not its update is used."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from intarsia_client.assignment import PrivacyParameters, TrainAssignment
from intarsia_client.messages import MANIFEST, update_content
from intarsia_client.peft_files import EncodedAdapter
from intarsia_client.wire import PrivacySpend, UpdateManifest
from intarsia_platform.federation.replies import claimed_spend, reply_size
from intarsia_platform.registry.rows import PrivacySpendRow

ASSIGNMENT = TrainAssignment(
    run="run-1",
    round=3,
    rounds=5,
    client="site-a",
    nonce="n" * 32,
    seed=0,
    base="base",
    base_digest="sha256:base",
    start_digest="sha256:start",
    task="causal-lm",
    rank=4,
    lora_alpha=8.0,
    target_modules=("q",),
    privacy=PrivacyParameters(unit="example", delta=1e-5, max_grad_norm=0.5),
)
SPEND = PrivacySpend(
    unit="example",
    noise_multiplier=1.5,
    sample_rate=0.25,
    steps=4,
    max_grad_norm=0.5,
    delta=1e-5,
    epsilon=3.0,
)


def reply(spend: PrivacySpend | None = SPEND, **changes: object) -> Message:
    """A reply whose adapter is rubbish: admission will turn it away."""
    values = {
        "run": "run-1", "round": 3, "client": "site-a", "nonce": "another", "base_digest": "b",
        "start_digest": "s", "task": "causal-lm", "target_modules": ("q",), "rank": 99,
        "lora_alpha": 8.0, "use_rslora": False, "number_of_examples": 7, "shard_digest": "d",
        "tensors_digest": "t", "privacy": spend, **changes,
    }  # fmt: skip
    manifest = UpdateManifest(**values)  # type: ignore[arg-type]
    content = update_content(manifest, EncodedAdapter(configuration=b"{", tensors=b"rubbish"), {})
    return message(content)


def message(content: RecordDict) -> Message:
    metadata = Metadata(
        run_id=1, message_id="m", src_node_id=1, dst_node_id=0, reply_to_message_id="x",
        group_id="3", created_at=0.0, ttl=1.0, message_type="train",
    )  # fmt: skip
    return make_message(metadata, content)


def test_the_spend_of_an_update_that_will_be_refused_is_what_the_ledger_takes() -> None:
    assert claimed_spend(reply(), ASSIGNMENT) == PrivacySpendRow(
        scope="run-1",
        client="site-a",
        round=3,
        unit="example",
        noise_multiplier=1.5,
        sample_rate=0.25,
        steps=4,
        delta=1e-5,
        max_grad_norm=0.5,
    )


@pytest.mark.parametrize(
    "change", [{"run": "run-2"}, {"client": "site-b"}, {"round": 2}, {"spend": None}]
)
def test_the_spend_of_another_assignment_is_not_this_ones(change: dict[str, object]) -> None:
    assert claimed_spend(reply(**change), ASSIGNMENT) is None


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "client"},
        {"delta": 0.1},
        {"max_grad_norm": 100.0},
        {"noise_multiplier": 0.0},
        {"noise_multiplier": -1.0},
        {"sample_rate": 0.0},
        {"sample_rate": 1.5},
        {"steps": 0},
    ],
)
def test_a_spend_that_no_accountant_can_work_with_is_none(change: dict[str, object]) -> None:
    assert claimed_spend(reply(replace(SPEND, **change)), ASSIGNMENT) is None


def test_a_reply_without_a_readable_manifest_claims_nothing() -> None:
    broken = reply()
    broken.content.config_records[MANIFEST]["json"] = "{"
    assert claimed_spend(broken, ASSIGNMENT) is None
    assert claimed_spend(message(RecordDict()), ASSIGNMENT) is None
    assert reply_size(message(RecordDict())) == 0


def test_a_reply_weighs_its_arrays_and_texts() -> None:
    whole = reply()
    text = str(whole.content.config_records[MANIFEST]["json"])
    assert reply_size(whole) == len(text) + len(b"{") + len(b"rubbish")
