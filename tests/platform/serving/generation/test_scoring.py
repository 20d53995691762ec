from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from intarsia_client.errors import AccessError, InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from intarsia_platform.serving.mixture import BASE
from intarsia_platform.serving.scoring import score, score_for_ticket

TEXTS = (
    "the quick brown fox jumps over the lazy dog",
    "a red house, a green door and a blue sky above the quiet town " * 6,
    "one",
    "records never leave the site, only what was learned from them does",
    "seven eight nine ten eleven twelve",
)


def _records(kind: str) -> list[Record]:
    labels = ("animal", "colour", "number")
    return [
        Record(text=text, label=labels[number % 3] if kind == "bert" else None)
        for number, text in enumerate(TEXTS)
    ]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_each_record_scores_as_an_evaluation_of_it_alone(
    world: Callable[..., Any], kind: str
) -> None:
    here = world(kind)
    names = ["", "r2", "r9", "r2", "r9"]
    digests = [here.add("r2", "red", rank=2), here.add("r9", "red", rank=9)]
    records = _records(kind)
    with here.bank.lease(digests) as adapters:
        by_name = {"": BASE, "r2": ((adapters[0], 1.0),), "r9": ((adapters[1], 1.0),)}
        found = score(here.served, records, [by_name[name] for name in names], max_length=40)
    for record, name, one in zip(records, names, found.records, strict=True):
        adapter = here.adapters.get(name)
        expected = evaluate(here.base, [record], adapter=adapter, max_length=40)
        assert math.isclose(one.loss, expected.loss, rel_tol=2e-5)
        assert one.tokens == expected.tokens
        assert one.correct == (None if expected.accuracy is None else expected.accuracy == 1)
    weights = [one.tokens or 1 for one in found.records]
    mean = np.average([one.loss for one in found.records], weights=weights)
    assert math.isclose(found.loss, mean, rel_tol=1e-9)
    if kind == "bert":
        assert found.perplexity is None
        assert found.accuracy == np.mean([one.correct for one in found.records])
    else:
        assert found.accuracy is None
        assert found.perplexity == math.exp(found.loss)
        assert found.records[1].tokens > 40


def test_all_through_one_adapter_is_the_evaluation(world: Callable[..., Any]) -> None:
    here = world("llama")
    digest = here.add("one", "red")
    records = _records("llama")
    with here.bank.lease([digest]) as (adapter,):
        mixtures = [((adapter, 1.0),)] * len(records)
        found = score(here.served, records, mixtures, max_length=32, batch_size=2)
    expected = evaluate(here.base, records, adapter=here.adapters["one"], max_length=32)
    assert math.isclose(found.loss, expected.loss, rel_tol=2e-5)
    assert sum(one.tokens for one in found.records) == expected.tokens


def test_a_ticket_scores_with_what_it_grants(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("red", "red")
    here.add("blue", "blue")
    records = _records("llama")
    parts = (here.served, here.bank, here.authorizer)

    def run(who: str, *names: str) -> Any:
        ticket = here.authorizer.authorize(who)
        chosen = [here.choices(*names)] * len(records)
        return score_for_ticket(*parts, ticket, records, chosen, max_length=64)

    with here.bank.lease([here.digests["red"]]) as (adapter,):
        direct = score(here.served, records, [((adapter, 1.0),)] * len(records), max_length=64)
    assert run("ann", "red") == direct
    with pytest.raises(AccessError, match="is not one that you may use"):
        run("ann", "blue")
    ticket = here.authorizer.authorize("ann")
    chosen = [here.choices("red")] * len(records)
    score_for_ticket(*parts, ticket, records, chosen, max_length=64)
    with pytest.raises(AccessError, match="ticket"):
        score_for_ticket(*parts, ticket, records, chosen, max_length=64)


def test_a_right_taken_away_ends_scoring(world: Callable[..., Any]) -> None:
    here = world("llama")
    here.add("red", "red")
    ticket = here.authorizer.authorize("ann")
    epochs = []

    class Admission:
        """The real authoriser; rights change while the second batch is prepared."""

        admit = staticmethod(here.authorizer.admit)
        standing = staticmethod(here.authorizer.standing)

        @staticmethod
        def epoch() -> int:
            epochs.append(here.authorizer.epoch())
            if len(epochs) == 2:
                here.set_people(ann=(), bob=(), eve=(), zoe=())
            return int(here.authorizer.epoch())

    chosen = [here.choices("red")] * len(TEXTS)
    arguments = (here.served, here.bank, Admission(), ticket, _records("llama"), chosen)
    with pytest.raises(AccessError, match="ticket"):
        score_for_ticket(*arguments, max_length=32, batch_size=1)
    assert len(epochs) == 2


def test_what_cannot_be_scored_is_refused(world: Callable[..., Any]) -> None:
    here = world("llama")
    records = _records("llama")
    with pytest.raises(InputError, match="one for each"):
        score(here.served, records, [BASE], max_length=32)
    with pytest.raises(InputError, match="scoring"):
        score(here.served, [], [], max_length=32)
    with pytest.raises(InputError, match="max_length"):
        score(here.served, records, [BASE] * 5, max_length=1000)
    digest = here.add("wild", "red", scale=1e37)
    with here.bank.lease([digest]) as (adapter,), pytest.raises(InputError, match="loss"):
        score(here.served, records, [((adapter, 1.0),)] * 5, max_length=32)
