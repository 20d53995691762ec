"""Admission: each way an update can be wrong has its reason, and a right one passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from intarsia_client.assignment import PrivacyParameters, TrainAssignment
from intarsia_client.errors import RefusedUpdate
from intarsia_client.files import bytes_digest
from intarsia_client.messages import ReceivedUpdate
from intarsia_client.peft_files import EncodedAdapter, encode_adapter
from intarsia_client.start import client_start
from intarsia_client.transport import encode_update
from intarsia_client.wire import Adapter, LowRankFactors, PrivacySpend, UpdateManifest
from intarsia_platform.federation.admission import admit
from intarsia_platform.federation.broadcast import Broadcast
from intarsia_platform.federation.open_round import OpenRound

SHAPES = {"model.q": (12, 16), "model.v": (8, 16)}
PUBLISHED = Adapter(
    base="base",
    task="causal-lm",
    modules={
        name: LowRankFactors(
            a=np.zeros((0, d_in), np.float32), b=np.zeros((d_out, 0), np.float32), scaling=1.0
        )
        for name, (d_out, d_in) in SHAPES.items()
    },
)
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
    target_modules=tuple(sorted(SHAPES)),
)

OPEN = OpenRound(
    number=3,
    broadcast=Broadcast(encode_adapter(PUBLISHED), "float32"),
    exact=None,
    assignments={1: ASSIGNMENT},
)


def trained() -> Adapter:
    generator = np.random.default_rng(0)
    start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
    return replace(
        start,
        modules={
            name: replace(f, b=generator.standard_normal(f.b.shape).astype(np.float32))
            for name, f in start.modules.items()
        },
    )


def manifest(encoded: EncodedAdapter, **changes) -> UpdateManifest:
    values = {
        "run": "run-1",
        "round": 3,
        "client": "site-a",
        "nonce": "n" * 32,
        "base_digest": "sha256:base",
        "start_digest": "sha256:start",
        "task": "causal-lm",
        "target_modules": tuple(sorted(SHAPES)),
        "rank": 4,
        "lora_alpha": 8.0,
        "use_rslora": False,
        "number_of_examples": 17,
        "shard_digest": "sha256:shard",
        "tensors_digest": bytes_digest(encoded.tensors),
    }
    return UpdateManifest(**{**values, **changes})


def received(adapter: Adapter | None = None, **changes) -> ReceivedUpdate:
    encoded = encode_adapter(adapter or trained())
    return ReceivedUpdate(manifest=manifest(encoded, **changes).to_json(), adapter=encoded)


def with_module(change: Callable[[LowRankFactors], LowRankFactors]) -> Adapter:
    adapter = trained()
    name = min(adapter.modules)
    return replace(adapter, modules={**adapter.modules, name: change(adapter.modules[name])})


def refusal(update: ReceivedUpdate, assignment: TrainAssignment = ASSIGNMENT) -> RefusedUpdate:
    with pytest.raises(RefusedUpdate) as caught:
        admit(update, assignment, OPEN)
    assert "\n" not in str(caught.value)
    assert "site-a" in str(caught.value)
    return caught.value


def test_a_right_update_is_admitted_and_weighs_its_examples():
    update = admit(received(), ASSIGNMENT, OPEN)
    start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
    weighted = update.weighted(start)
    assert weighted.weight == 17.0 and weighted.factor == 1.0
    assert update.weighted(start, max_examples=5).weight == 5.0
    assert update.weighted(start, max_examples=500).weight == 17.0
    assert set(weighted.start.modules) == set(SHAPES)
    for name, factors in trained().modules.items():
        assert np.array_equal(weighted.trained.modules[name].b, factors.b)


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("wrong-run", {"run": "run-2"}),
        ("wrong-client", {"client": "site-b"}),
        ("stale-round", {"round": 2}),
        ("wrong-nonce", {"nonce": "m" * 32}),
        ("wrong-base", {"base_digest": "sha256:other"}),
        ("wrong-start", {"start_digest": "sha256:other"}),
        ("wrong-task", {"task": "sequence-classification"}),
        ("wrong-shape", {"rank": 8}),
        ("wrong-shape", {"target_modules": ("model.q",)}),
        ("no-examples", {"number_of_examples": 0}),
        ("damaged", {"tensors_digest": "sha256:" + "0" * 64}),
    ],
)
def test_a_manifest_that_does_not_fit_the_assignment_is_refused(reason, change):
    assert refusal(received(**change)).reason == reason


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_factors_that_are_not_finite_are_refused(value):
    def spoil(factors: LowRankFactors) -> LowRankFactors:
        b = factors.b.copy()
        b[0, 0] = value
        return replace(factors, b=b)

    assert refusal(received(with_module(spoil))).reason == "not-finite"


def test_finite_factors_with_an_infinite_product_are_refused():
    huge = with_module(lambda f: replace(f, a=f.a * np.float32(1e30), b=f.b * np.float32(1e30)))
    assert refusal(received(huge)).reason == "not-finite"


def test_other_shapes_ranks_and_modules_are_refused():
    narrow = with_module(lambda f: replace(f, a=f.a[:, :8]))
    assert refusal(received(narrow)).reason == "wrong-shape"
    low = with_module(lambda f: replace(f, a=f.a[:2], b=f.b[:, :2]))
    assert refusal(received(low)).reason == "wrong-shape"
    adapter = trained()
    fewer = replace(adapter, modules={"model.q": adapter.modules["model.q"]})
    assert refusal(received(fewer)).reason == "wrong-shape"


def test_a_subset_of_the_modules_is_right_where_it_was_assigned():
    some = replace(ASSIGNMENT, target_modules=("model.q",))
    fewer = replace(trained(), modules={"model.q": trained().modules["model.q"]})
    update = admit(received(fewer, target_modules=("model.q",)), some, OPEN)
    assert set(update.adapter.modules) == {"model.q"}
    assert refusal(received(target_modules=("model.q",)), some).reason == "wrong-shape"


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_other_precisions_are_admitted_and_close(precision):
    start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
    encoded = encode_update(trained(), start, precision)
    update = admit(
        ReceivedUpdate(manifest=manifest(encoded).to_json(), adapter=encoded), ASSIGNMENT, OPEN
    )
    for name, factors in trained().modules.items():
        found = update.adapter.modules[name].product()
        assert np.linalg.norm(found - factors.product()) < 0.02 * np.linalg.norm(factors.product())
    assert encoded.size < encode_adapter(trained()).size


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("sent", ["a", "b"])
def test_factors_that_are_not_trained_need_not_travel(precision, sent):
    half = replace(ASSIGNMENT, trained_factors=sent)
    start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
    encoded = encode_update(trained(), start, precision, factors=sent)
    update = admit(
        ReceivedUpdate(manifest=manifest(encoded).to_json(), adapter=encoded), half, OPEN
    )
    other = {"a": "b", "b": "a"}[sent]
    for name, factors in start.modules.items():
        kept = getattr(update.adapter.modules[name], other)
        assert np.array_equal(kept, getattr(factors, other))
    assert refusal(received(), half).reason == "malformed"


@pytest.mark.parametrize("factor", [np.inf, np.nan])
def test_int8_scales_that_are_not_finite_are_refused(factor):
    start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
    encoded = encode_update(trained(), start, "int8")
    length = int.from_bytes(encoded.tensors[:8], "little")
    header = json.loads(encoded.tensors[8 : 8 + length])
    begin = 8 + length + header["model.q.lora_B.scales"]["data_offsets"][0]
    bad = np.array([factor], "<f4").tobytes()
    tensors = encoded.tensors[:begin] + bad + encoded.tensors[begin + 4 :]
    broken = replace(encoded, tensors=tensors)
    update = ReceivedUpdate(manifest=manifest(broken).to_json(), adapter=broken)
    assert refusal(update).reason == "not-finite"


def test_who_changes_nothing_adds_nothing_in_any_precision():
    for precision in ("float32", "bfloat16", "int8"):
        start = client_start(PUBLISHED, rank=4, scaling=2.0, seed=0).trainable
        encoded = encode_update(start, start, precision)
        update = admit(
            ReceivedUpdate(manifest=manifest(encoded).to_json(), adapter=encoded),
            ASSIGNMENT,
            OPEN,
        )
        for name, factors in start.modules.items():
            assert np.array_equal(update.adapter.modules[name].product(), factors.product())


def test_a_scaling_that_was_not_assigned_is_refused():
    other = with_module(lambda f: replace(f, scaling=200.0))
    assert refusal(received(other)).reason == "wrong-scaling"


def test_an_update_larger_than_its_rank_needs_is_refused_before_it_is_decoded():
    update = received()
    bloated = EncodedAdapter(configuration=update.adapter.configuration, tensors=b"\0" * (1 << 20))
    assert refusal(replace(update, adapter=bloated)).reason == "too-large"


def test_a_manifest_that_is_no_manifest_is_refused():
    update = received()
    assert refusal(replace(update, manifest=b"{")).reason == "malformed"
    values = json.loads(update.manifest)
    values["number_of_examples"] = "many"
    assert refusal(replace(update, manifest=json.dumps(values).encode())).reason == "malformed"
    values["number_of_examples"] = 17
    values["surprise"] = 1
    assert refusal(replace(update, manifest=json.dumps(values).encode())).reason == "malformed"


def test_truncated_tensors_are_refused():
    update = received()
    cut = update.adapter.tensors[:-8]
    encoded = EncodedAdapter(configuration=update.adapter.configuration, tensors=cut)
    broken = ReceivedUpdate(manifest=manifest(encoded).to_json(), adapter=encoded)
    assert refusal(broken).reason == "damaged"


def test_a_variant_that_is_not_bilinear_is_refused():
    update = received()
    configuration = json.loads(update.adapter.configuration) | {"use_dora": True}
    encoded = replace(update.adapter, configuration=json.dumps(configuration).encode())
    assert refusal(replace(update, adapter=encoded)).reason == "malformed"


SPEND = PrivacySpend(
    unit="example",
    noise_multiplier=1.0,
    sample_rate=0.1,
    steps=10,
    max_grad_norm=1.0,
    delta=1e-5,
    epsilon=2.0,
)
PRIVATE = replace(ASSIGNMENT, privacy=PrivacyParameters(unit="example"))


def test_private_training_with_the_spend_that_was_asked_for_is_admitted():
    assert admit(received(privacy=SPEND), PRIVATE, OPEN).manifest.privacy == SPEND


@pytest.mark.parametrize(
    "spend",
    [
        None,
        replace(SPEND, unit="client"),
        replace(SPEND, noise_multiplier=0.0),
        replace(SPEND, sample_rate=1.5),
        replace(SPEND, steps=0),
        replace(SPEND, max_grad_norm=100.0),
        replace(SPEND, delta=0.5),
    ],
)
def test_private_training_without_a_plausible_spend_is_refused(spend):
    assert refusal(received(privacy=spend), PRIVATE).reason == "not-private"
