"""Assignments travel as JSON and say what scaling a client trains with."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.assignment import (
    PrivacyParameters,
    TrainAssignment,
    TrainingParameters,
    lora_scaling,
)
from intarsia_client.errors import InputError
from peft import LoraConfig, get_peft_model


def assignment(**changes: Any) -> TrainAssignment:
    whole: dict[str, Any] = {
        "run": "run", "round": 2, "rounds": 5, "client": "north", "nonce": "n", "seed": 7,
        "base": "base", "base_digest": "sha256:b", "start_digest": "sha256:s",
        "task": "sequence-classification", "rank": 4, "lora_alpha": 8.0,
        "target_modules": ("q", "v"), "labels": ("no", "yes"), "use_rslora": True,
        "training": TrainingParameters(epochs=3, learning_rate=1e-4),
        "privacy": PrivacyParameters(unit="example", epsilon=2.0),
    }  # fmt: skip
    return TrainAssignment(**{**whole, **changes})


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)
@given(
    text, st.integers(), st.lists(text, max_size=3), st.floats(1e-9, 1e9), st.booleans(),
)  # fmt: skip
def test_an_assignment_reads_back_what_it_wrote(
    client: str, seed: int, labels: list[str], alpha: float, use_rslora: bool
) -> None:
    written = assignment(
        client=client, seed=seed, labels=tuple(labels), lora_alpha=alpha, use_rslora=use_rslora
    )
    assert TrainAssignment.from_json(written.to_json()) == written
    assert TrainAssignment.from_json(written.to_json().decode()) == written
    assert written.as_mapping() == json.loads(written.to_json())


def without(key: str) -> str:
    return json.dumps({k: v for k, v in assignment().as_mapping().items() if k != key})


@pytest.mark.parametrize(
    "data",
    [
        "", "{", "[]", "3", '"text"', "null", "{}", without("target_modules"), without("training"),
        without("rank"), json.dumps({**assignment().as_mapping(), "later": 1}),
        json.dumps({**assignment().as_mapping(), "training": {"later": 1}}),
        json.dumps({**assignment().as_mapping(), "privacy": None}), b"\xff",
    ],
)  # fmt: skip
def test_what_is_no_assignment_is_refused_with_the_likely_cause(data: str | bytes) -> None:
    with pytest.raises(InputError, match="same version of Intarsia at the server and the client"):
        TrainAssignment.from_json(data)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (7, 16), (32, 1)])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scaling_is_pefts(rank: int, alpha: int, use_rslora: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(40, 40))
    config = LoraConfig(r=rank, lora_alpha=alpha, use_rslora=use_rslora, target_modules=["0"])
    layer = get_peft_model(model, config).base_model.model[0]
    expected = layer.scaling["default"]
    assert lora_scaling(alpha, rank, use_rslora) == pytest.approx(expected, rel=1e-15)
    made = assignment(rank=rank, lora_alpha=float(alpha), use_rslora=use_rslora)
    assert made.scaling == lora_scaling(alpha, rank, use_rslora)
    assert lora_scaling(8, 4, True) == 4.0
    assert math.isclose(lora_scaling(8, 4, False), 2.0)


def test_assignments_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        assignment().rank = 8  # type: ignore[misc]


def test_a_deeply_nested_assignment_is_refused() -> None:
    with pytest.raises(InputError):
        TrainAssignment.from_json("[" * 200_000)


def test_assignments_of_before_have_the_usual_start_and_encoding() -> None:
    old = assignment().as_mapping()
    new = {"start", "trained_factors", "shared_factors", "upload", "broadcast_digest"}
    assert new <= set(old)
    read = TrainAssignment.from_json(json.dumps({k: v for k, v in old.items() if k not in new}))
    assert (read.start, read.trained_factors, read.upload) == ("residual", "both", "float32")


@pytest.mark.parametrize(
    ("trained", "shared", "sent"),
    [
        ("both", "both", "both"), ("a", "both", "a"), ("b", "both", "b"), ("none", "both", "none"),
        ("both", "a", "a"), ("a", "a", "a"), ("b", "a", "none"), ("none", "a", "none"),
    ],
)  # fmt: skip
def test_what_is_sent_is_trained_and_shared(trained: str, shared: str, sent: str) -> None:
    made = assignment(trained_factors=trained, shared_factors=shared)
    assert made.sent_factors == sent
    assert TrainAssignment.from_json(made.to_json()) == made
