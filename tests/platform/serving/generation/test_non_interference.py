"""Whatever others own, add, hide, delete or ask, a caller's answers stay the same to the byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from intarsia_client.errors import AccessError

PROMPTS = 200
_WORDS = ("one", "two", "fox", "house", "door", "quick", "lazy", "blue", "sky", "seven")


def _prompts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(_WORDS, size=generator.integers(1, 9))) for _ in range(count)]


def _asked(here: Any, who: str, name: str, numbers: Sequence[int]) -> list[Any]:
    """Requests of one caller: the base, an adapter or a mixture; greedy and seeded in turn."""
    prompts = _prompts(PROMPTS)
    mixtures = ((), (f"{name}-1",), ((f"{name}-1", 0.5), (f"{name}-2", 0.5)))
    settings = ({}, {"temperature": 1.3, "top_p": 0.9, "seed": 7})
    return [
        here.request(
            who,
            prompts[number],
            *mixtures[number % 3],
            max_tokens=3 + number % 7,
            **settings[number % 2],
        )
        for number in numbers
    ]


def _answers(engine: Any, requests: Sequence[Any], beside: Sequence[Any] = ()) -> list[Any]:
    """Answers of some requests, with those of others sent in between."""
    streams, others = [], []
    for number, request in enumerate(requests):
        others += [engine.submit(other) for other in beside[2 * number : 2 * number + 2]]
        streams.append(engine.submit(request))
    found = [stream.read() for stream in streams]
    for stream in others:
        stream.read()
    return found


def _own_world(world: Callable[..., Any], kind: str) -> Any:
    here = world(kind)
    here.add("red-1", "red", rank=5)
    here.add("red-2", "red", rank=3)
    return here


@pytest.mark.parametrize("kind", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_hidden_added_and_deleted_adapters_and_batch_mates_change_no_byte(
    world: Callable[..., Any], kind: str
) -> None:
    here = _own_world(world, kind)
    engine = here.engine(max_rows=16)
    numbers = range(PROMPTS)
    alone = []
    # By itself at first: one request at a time, nobody else there.
    for request in _asked(here, "ann", "red", range(0, PROMPTS, 5)):
        alone += _answers(engine, [request])
    among_own = _answers(engine, _asked(here, "ann", "red", numbers))
    assert among_own[::5] == alone
    assert len({answer.tokens for answer in among_own}) > PROMPTS // 2

    here.add("blue-1", "blue", rank=7)
    here.add("blue-2", "blue", rank=1, scale=3.0)
    assert _answers(engine, _asked(here, "ann", "red", numbers[:40])) == among_own[:40]

    others = _asked(here, "bob", "blue", [number % PROMPTS for number in range(2 * PROMPTS)])
    beside = _answers(engine, _asked(here, "ann", "red", numbers), others)
    assert beside == among_own

    here.set_people(ann=("red",), bob=(), eve=(), zoe=())
    assert _answers(engine, _asked(here, "ann", "red", numbers[:40])) == among_own[:40]
    here.remove("blue-1")
    assert _answers(engine, _asked(here, "ann", "red", numbers[:40])) == among_own[:40]
    here.remove("blue-2")
    assert _answers(engine, _asked(here, "ann", "red", numbers[40:80])) == among_own[40:80]


def test_a_mate_with_numbers_that_overflow_changes_no_byte(world: Callable[..., Any]) -> None:
    here = _own_world(world, "llama")
    here.add("blue-1", "blue", scale=1e37)
    engine = here.engine()
    requests = 24
    alone = _answers(engine, _asked(here, "ann", "red", range(requests)))
    wild = [here.request("bob", prompt, "blue-1") for prompt in _prompts(2 * requests)]
    assert _answers(engine, _asked(here, "ann", "red", range(requests)), wild) == alone


def test_errors_tell_nothing_of_what_is_there(world: Callable[..., Any]) -> None:
    here = _own_world(world, "llama")
    engine = here.engine()
    hidden = "sha256:" + "7" * 64

    def words(digest: str) -> str:
        here.digests["asked"] = digest
        with pytest.raises(AccessError) as caught:
            engine.submit(here.request("ann", "one", "asked"))
        return f"{type(caught.value)} {caught.value}".replace(digest, "DIGEST")

    before = words(hidden)
    assert words(here.add("blue-1", "blue")) == before
    here.remove("blue-1")
    assert words(hidden) == before
