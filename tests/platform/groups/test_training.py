from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from intarsia_client.base_model import load_base
from intarsia_client.errors import InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.peft_files import adapter_digest
from intarsia_client.records import Record
from intarsia_platform.groups.rows import GroupSettings
from intarsia_platform.groups.tasks import task_of
from intarsia_platform.groups.training import classes_of, settled, train_group

QUICK = GroupSettings(rank=3, epochs=2, learning_rate=5e-3)


@pytest.fixture
def base(llama):
    return load_base(llama, task="causal-lm")


def test_equal_records_settings_and_seed_give_the_same_adapter(base, records):
    torch.manual_seed(1)
    first = train_group(base, records, QUICK)
    torch.manual_seed(2)
    assert adapter_digest(train_group(base, records, QUICK)) == adapter_digest(first)
    for change in ({"seed": 1}, {"rank": 2}, {"epochs": 1}):
        other = train_group(base, records, dataclasses.replace(QUICK, **change))
        assert adapter_digest(other) != adapter_digest(first)
    assert adapter_digest(train_group(base, records[1:], QUICK)) != adapter_digest(first)


def test_it_learns_and_leaves_the_base_as_it_was(base, records):
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    adapter = train_group(base, records, dataclasses.replace(QUICK, epochs=12, learning_rate=2e-2))
    after = base.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    plain = evaluate(base, records, adapter=None, max_length=64)
    trained = evaluate(base, records, adapter=adapter, max_length=64)
    assert trained.loss < 0.9 * plain.loss


def test_the_scaling_is_alpha_over_rank(base, records):
    adapter = train_group(base, records, dataclasses.replace(QUICK, alpha_over_rank=1.5))
    assert {factors.scaling for factors in adapter.modules.values()} == {1.5}
    assert {factors.rank for factors in adapter.modules.values()} == {3}


def test_only_the_named_modules_are_trained(base, records):
    settings = dataclasses.replace(QUICK, target_modules=("q_proj", "down_proj"))
    names = set(train_group(base, records, settings).modules)
    assert {name.rpartition(".")[2] for name in names} == {"q_proj", "down_proj"}
    assert len(names) == 4


def test_every_step_is_told(base, records):
    told = []
    settings = dataclasses.replace(QUICK, batch_size=4)
    train_group(base, records, settings, tell=lambda done, total: told.append((done, total)))
    assert told == [(step, 6) for step in range(1, 7)]
    assert not base.model._forward_hooks


def test_telling_changes_nothing(base, records):
    told = train_group(base, records, QUICK, tell=lambda *_: None)
    assert adapter_digest(told) == adapter_digest(train_group(base, records, QUICK))


def test_what_is_left_open_is_settled_by_the_base_once(base):
    chosen = settled(GroupSettings(), base)
    assert chosen.learning_rate == 8e-3 and chosen.max_length == 64
    assert settled(chosen, base) == chosen
    wide = dataclasses.replace(base, model=_OfWidth(1024))
    assert settled(GroupSettings(), wide).learning_rate == pytest.approx(0.5 / 1024)


class _OfWidth:
    def __init__(self, width):
        self.config = type("Configuration", (), {"hidden_size": width})()


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0},
        {"rank": 1000},
        {"seed": -1},
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -1.0},
        {"max_length": 65},
        {"target_modules": ("moon",)},
    ],
)
def test_settings_that_cannot_be_are_refused(base, records, change):
    with pytest.raises(InputError):
        train_group(base, records, dataclasses.replace(QUICK, **change), tell=lambda *_: None)


def test_a_classifier_brings_its_head(bert):
    words = {"animal": ("fox", "dog", "a fox"), "colour": ("red", "green", "a red")}
    records = [Record(text=text, label=name) for name, texts in words.items() for text in texts]
    base = load_base(bert, task=task_of(bert), labels=classes_of(records))
    settings = dataclasses.replace(QUICK, epochs=25, learning_rate=2e-2)
    adapter = train_group(base, records, settings)
    assert adapter.dense and adapter.task == "sequence-classification"
    assert all(np.isfinite(tensor).all() for tensor in adapter.dense.values())
    assert evaluate(base, records, adapter=adapter, max_length=32).accuracy == 1.0
    assert settled(QUICK, base).classes == ("animal", "colour")


def test_what_a_base_is_for_is_what_it_was_saved_as(llama, bert, tmp_path):
    assert (task_of(llama), task_of(bert)) == ("causal-lm", "sequence-classification")
    assert task_of(str(tmp_path / "nowhere")) == "causal-lm"


def test_classes_are_the_records_or_those_that_are_given():
    records = [Record(text="a", label="x"), Record(text="b", label="w")]
    assert classes_of(records) == ("w", "x")
    assert classes_of(records, ["x", "y", "w"]) == ("x", "y", "w")
    for given in (["x"], ["x", "w", "w"]):
        with pytest.raises(InputError):
            classes_of(records, given)
    with pytest.raises(InputError, match="classes"):
        classes_of(records[:1])
