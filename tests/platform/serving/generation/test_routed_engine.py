"""Requests whose tokens are divided among their adapters layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from intarsia_client.errors import InputError
from intarsia_platform.serving.mixture import mixture_of

ROUTERS = pytest.mark.parametrize("routing", ["arrow", "lag"])


def _library(here: Any) -> tuple[str, ...]:
    names = ("one", "two", "three")
    for rank, name in enumerate(names, start=2):
        here.add(name, "red", rank=rank, scale=0.6)
    return names


def _routed(here: Any, routing: str, prompt: Any, *names: Any, **sampling: Any) -> Any:
    return replace(here.request("ann", prompt, *names, **sampling), routing=routing)


def _greedy(here: Any, routing: str, prompt: list[int], count: int) -> list[int]:
    """Each token chosen by a run over the whole text, without a cache."""
    lease = here.bank.lease(sorted(here.digests.values()))
    plan = here.served.plan([mixture_of([(one, 1.0) for one in lease.adapters], routing)])
    tokens = list(prompt)
    for _ in range(count):
        with here.served.using(plan) as model, torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@ROUTERS
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_answers_are_those_of_whole_runs_in_company_too(
    world: Callable[..., Any], kind: str, routing: str
) -> None:
    here = world(kind)
    names = _library(here)
    engine = here.engine()
    prompt = [int(one) for one in np.random.default_rng(3).integers(4, 290, size=20)]
    requests = [
        _routed(here, routing, prompt, *names),
        here.request("ann", prompt, "one"),
        here.request("ann", prompt, ("one", 0.5), ("two", 0.5)),
        here.request("zoe", prompt),
    ]
    answers = [list(stream.read().tokens) for stream in [engine.submit(one) for one in requests]]
    expected = _greedy(here, routing, prompt, 12)
    length = len(answers[0])
    assert answers[0] == expected[:length]
    assert length == 12 or expected[length - 1] == 3
    assert len({tuple(answer) for answer in answers}) == 4


def test_kept_beginnings_are_of_one_router(world: Callable[..., Any]) -> None:
    here = world("long")
    names = _library(here)
    engine = here.engine(row_tokens=640)
    prompt = [int(one) for one in np.random.default_rng(5).integers(4, 290, size=300)]
    first, hits = {}, 0
    for routing in ("", "arrow", "lag"):
        first[routing] = engine.submit(_routed(here, routing, prompt, *names)).read()
        assert engine.statistics.prefix_hits == hits
        again = engine.submit(_routed(here, routing, prompt, *names)).read()
        assert again == first[routing]
        assert engine.statistics.prefix_hits > hits
        hits = engine.statistics.prefix_hits
    assert len({answer.tokens for answer in first.values()}) == 3


def test_an_unknown_router_is_refused_and_nothing_held(world: Callable[..., Any]) -> None:
    here = world("llama")
    names = _library(here)
    engine = here.engine()
    with pytest.raises(InputError, match="routing: best"):
        engine.submit(_routed(here, "best", "one two", *names))
    assert engine.statistics.running == engine.statistics.waiting == 0
    for name in names:
        here.bank.drop(here.digests[name])
    # What is leased would stay.
    assert not here.bank.digests
