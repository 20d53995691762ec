"""The wire types: their algebra, and manifests that come from anyone."""

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_client.wire import (
    Adapter,
    ComputedModules,
    LowRankFactors,
    PrivacySpend,
    UpdateManifest,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
whole = st.integers(-(2**63), 2**63 - 1)
number = st.floats(allow_nan=False, allow_infinity=False)
spends = st.builds(
    PrivacySpend, unit=text, noise_multiplier=number, sample_rate=number, steps=whole,
    max_grad_norm=number, delta=number, epsilon=number,
)  # fmt: skip
manifests = st.builds(
    UpdateManifest, run=text, round=whole, client=text, nonce=text, base_digest=text,
    start_digest=text, task=text, target_modules=st.lists(text, max_size=4).map(tuple),
    rank=whole, lora_alpha=number, use_rslora=st.booleans(), number_of_examples=whole,
    shard_digest=text, tensors_digest=text, metrics=st.dictionaries(text, number, max_size=3),
    privacy=st.none() | spends,
)  # fmt: skip


def manifest(**changes: object) -> dict[str, Any]:
    """A sound manifest's JSON object, changed as asked."""
    sound = UpdateManifest(
        run="run", round=1, client="north", nonce="n", base_digest="sha256:b",
        start_digest="sha256:s", task="causal-lm", target_modules=("q", "v"), rank=4,
        lora_alpha=8.0, use_rslora=False, number_of_examples=10, shard_digest="sha256:d",
        tensors_digest="sha256:t", metrics={"loss": 1.5},
        privacy=PrivacySpend(
            unit="example", noise_multiplier=1.1, sample_rate=0.1, steps=9, max_grad_norm=1.0,
            delta=1e-5, epsilon=2.0,
        ),
    )  # fmt: skip
    value: dict[str, Any] = {**json.loads(sound.to_json()), **changes}
    return value


def test_a_product_is_scaling_times_b_times_a_in_float64() -> None:
    generator = np.random.default_rng(0)
    a = generator.normal(size=(3, 5)).astype(np.float32)
    b = generator.normal(size=(4, 3)).astype(np.float32)
    factors = LowRankFactors(a=a, b=b, scaling=0.5)
    expected = [
        [0.5 * math.fsum(float(b[i, k]) * float(a[k, j]) for k in range(3)) for j in range(5)]
        for i in range(4)
    ]
    assert (factors.rank, factors.shape) == (3, (4, 5))
    assert factors.product().dtype == np.float64
    np.testing.assert_allclose(factors.product(), expected, rtol=1e-14)


def test_an_adapter_counts_ranks_and_numbers() -> None:
    def factors(rank: int) -> LowRankFactors:
        return LowRankFactors(
            a=np.zeros((rank, 5), np.float32), b=np.zeros((4, rank), np.float32), scaling=1.0
        )

    adapter = Adapter(
        base="b", task="causal-lm", modules={"x": factors(2), "y": factors(3), "z": factors(0)},
        dense={"score.weight": np.zeros((2, 7), np.float32)},
    )  # fmt: skip
    assert adapter.rank == 3
    assert adapter.number_of_parameters == 2 * 9 + 3 * 9 + 14
    assert dataclasses.replace(adapter, modules={}, dense={}).rank == 0


@settings(deadline=None)
@given(manifests)
def test_a_manifest_reads_back_what_it_wrote(written: UpdateManifest) -> None:
    data = written.to_json()
    read = UpdateManifest.from_json(data)
    assert read == written
    assert read.to_json() == data


def test_whole_numbers_may_stand_for_floats() -> None:
    read = UpdateManifest.from_json(json.dumps(manifest(lora_alpha=8)).encode())
    assert read.lora_alpha == 8.0
    assert isinstance(read.lora_alpha, float)


SPEND = manifest()["privacy"]
REFUSED: list[tuple[object, str]] = [
    ([], "update manifest: list"),
    ("text", "update manifest: str"),
    (manifest(format_version=2), "update manifest format_version: 2"),
    (manifest(format_version=None), "update manifest format_version: None"),
    (manifest(format_version=True), "update manifest format_version: True"),
    (manifest(extra=1), "update manifest field: extra"),
    ({k: v for k, v in manifest().items() if k != "nonce"}, "update manifest field: nonce"),
    (manifest(round="1"), "update manifest round: '1'"),
    (manifest(round=1.0), "update manifest round: 1.0"),
    (manifest(round=True), "update manifest round: True"),
    (manifest(client=5), "update manifest client: 5"),
    (manifest(client="x" * 5000), "update manifest client: 'xxx"),
    (manifest(use_rslora=1), "update manifest use_rslora: 1"),
    (manifest(lora_alpha=math.nan), "update manifest lora_alpha: nan"),
    (manifest(lora_alpha=math.inf), "update manifest lora_alpha: inf"),
    (manifest(lora_alpha=True), "update manifest lora_alpha: True"),
    (manifest(target_modules="q"), "update manifest target_modules: 'q'"),
    (manifest(target_modules=[1]), "update manifest target_modules: [1]"),
    (manifest(metrics={"loss": math.nan}), "update manifest metrics: {'loss': nan}"),
    (manifest(metrics=[1.0]), "update manifest metrics: [1.0]"),
    (manifest(privacy=3), "update manifest privacy: 3"),
    (manifest(privacy={}), "update manifest field: delta"),
    (manifest(privacy={**SPEND, "epsilon": math.nan}), "update manifest epsilon: nan"),
    (manifest(privacy={**SPEND, "steps": 1.5}), "update manifest steps: 1.5"),
    (manifest(privacy={**SPEND, "more": 1}), "update manifest field: more"),
]


@pytest.mark.parametrize(("value", "expected"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_no_manifest_is_refused_by_field(value: object, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        UpdateManifest.from_json(json.dumps(value).encode())
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"run": "\xff"}', b"[" * 200_000, b'{"round": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="update manifest: "):
        UpdateManifest.from_json(data)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(InputError):
        UpdateManifest.from_json(data)


@pytest.mark.parametrize(
    "value",
    [
        manifest(lora_alpha=10**400),
        manifest(metrics={"loss": 10**400}),
        manifest(privacy={**SPEND, "epsilon": 10**400}),
    ],
    ids=["lora_alpha", "metrics", "epsilon"],
)
def test_a_number_beyond_floating_point_is_refused(value: object) -> None:
    with pytest.raises(InputError):
        UpdateManifest.from_json(json.dumps(value).encode())


@pytest.mark.parametrize("field", ["round", "rank", "number_of_examples"])
def test_a_whole_number_that_no_database_holds_is_refused(field: str) -> None:
    with pytest.raises(InputError):
        UpdateManifest.from_json(json.dumps(manifest(**{field: 10**400})).encode())


@pytest.mark.parametrize(
    "changes",
    [{"client": "\ud800"}, {"target_modules": ["\ud800"]}, {"metrics": {"\ud800": 1.0}}],
    ids=["client", "target_modules", "metrics"],
)
def test_half_of_a_surrogate_pair_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        UpdateManifest.from_json(json.dumps(manifest(**changes)).encode())


def test_computed_modules_compute_at_each_access_and_only_then() -> None:
    asked: list[str] = []

    def compute(name: str) -> LowRankFactors:
        asked.append(name)
        return LowRankFactors(
            a=np.full((len(name), 2), len(asked), np.float32),
            b=np.zeros((3, len(name)), np.float32),
            scaling=1.0,
        )

    modules = ComputedModules(iter(["qq", "v"]), compute)
    assert list(modules) == ["qq", "v"] and len(modules) == 2
    assert "v" in modules and "k" not in modules and 3 not in modules
    assert asked == []
    assert modules["v"].a[0, 0] == 1 and modules["v"].a[0, 0] == 2
    with pytest.raises(KeyError):
        modules["k"]
    assert modules.get("k") is None
    assert asked == ["v", "v"]
    adapter = Adapter(base="b", task="causal-lm", modules=modules)
    assert adapter.rank == 2
    assert adapter.number_of_parameters == 2 * 5 + 1 * 5
