"""Answers with kept beginnings of prompts are those without, to the bit, and nobody else's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.registry.epoch import bump
from intarsia_platform.serving.runner import Shapes, all_shapes
from intarsia_platform.serving.streams import Finish

ROW = 640


def _tokens(seed: int, length: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).integers(4, 290, size=length)]


def _engine(here: Any, *, alone: bool = True, **more: Any) -> Any:
    shapes = Shapes(rows=(), visible=all_shapes(1, ROW).visible) if alone else None
    return here.engine(row_tokens=ROW, **({"shapes": shapes} if alone else {}), **more)


@contextmanager
def _recorded(engine: Any) -> Iterator[dict[Any, list[bytes]]]:
    """The bits of every row's logits, by stream."""
    found: dict[Any, list[bytes]] = {}
    true_take = engine._take

    def take(row: Any, logits: np.ndarray) -> None:
        found.setdefault(row.stream, []).append(logits.tobytes())
        true_take(row, logits)

    engine._take = take
    try:
        yield found
    finally:
        del engine._take


def _bits(engine: Any, requests: Sequence[Any]) -> list[tuple[Any, list[bytes]]]:
    """Answers and logits of requests sent together."""
    with _recorded(engine) as found:
        streams = [engine.submit(request) for request in requests]
        return [(stream.read(), found[stream]) for stream in streams]


def _figures(engine: Any) -> tuple[int, int]:
    found = engine.statistics
    return found.prefix_hits, found.prefix_misses


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_answers_are_the_same_to_the_bit_with_and_without(
    world: Callable[..., Any], threads: int
) -> None:
    """Prompts that share beginnings of any length, repeated, under adapters and mixtures."""
    here = world("long")
    here.add("r3", "red", rank=3)
    here.add("r5", "red", rank=5)
    mixtures = ((), ("r3",), (("r3", 0.5), ("r5", 0.25)))
    lengths = st.sampled_from((1, 127, 128, 129, 130, 200, 255, 256, 257, 300, 511, 512, 513, 530))
    torch.set_num_threads(threads)
    try:
        without, kept = _engine(here, prefix_bytes=0), _engine(here)

        @settings(
            deadline=None,
            max_examples=8,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(st.tuples(lengths, st.integers(0, 2)), min_size=1, max_size=3),
            st.integers(0, 2),
            st.integers(1, 40),
        )
        def same(shared: list[tuple[int, int]], mixture: int, own: int) -> None:
            prompts = [_tokens(9, length) + _tokens(100 + seed, own) for length, seed in shared]

            def asked() -> list[Any]:
                names = mixtures[mixture]
                return [here.request("ann", one, *names, max_tokens=2) for one in prompts]

            assert _bits(kept, asked()) == _bits(without, asked())

        same()
        hits, misses = _figures(kept)
        assert hits > 3
        assert misses > 0
        assert _figures(without) == (0, 0)
        assert without.statistics.prefix_bytes == 0
        assert kept.statistics.calls < without.statistics.calls
    finally:
        torch.set_num_threads(1)


def test_pieces_are_copied_and_not_computed(world: Callable[..., Any]) -> None:
    here = world("long")
    engine = _engine(here)
    prompt = _tokens(1, 520)
    asked = [here.request("ann", prompt, max_tokens=1) for _ in range(3)]
    first = engine.submit(asked[0]).read()
    assert (engine.statistics.calls, _figures(engine)) == (4, (0, 3))
    assert engine.submit(asked[1]).read() == first
    assert (engine.statistics.calls, _figures(engine)) == (5, (3, 3))
    # The last piece is computed also where it is whole and kept: a token is chosen from it.
    whole = here.request("ann", prompt[:512], max_tokens=1)
    engine.submit(whole).read()
    assert (engine.statistics.calls, _figures(engine)) == (6, (5, 3))
    layers, heads, width, numbers = 2, 2, 8, 4
    assert engine.statistics.prefix_bytes == 512 * layers * 2 * heads * width * numbers


def test_another_principals_prompts_are_neither_found_nor_felt(world: Callable[..., Any]) -> None:
    here = world("long")
    here.add("both", "red", "blue")
    prompts = [_tokens(3, 300), _tokens(3, 280) + _tokens(4, 100)]

    def asked(who: str) -> list[Any]:
        return [
            here.request(who, prompt, *names, max_tokens=3, temperature=1.0, seed=5)
            for prompt in prompts
            for names in ((), ("both",))
        ]

    alone = _bits(_engine(here), asked("ann"))
    engine = _engine(here, alone=False)
    among = _bits(engine, asked("ann"))
    assert among == alone
    own = _figures(engine)

    beside = _engine(here)
    _bits(beside, asked("eve"))
    found = _bits(beside, [*asked("ann"), *asked("eve")])
    assert found[:4] == alone
    # Twice what one has by itself, and all that eve asked again: no hit is of the others.
    hits, misses = _figures(beside)
    assert misses == 2 * own[1]
    assert hits == 2 * own[0] + sum(own)


def test_what_an_adapter_was_part_of_goes_with_it(world: Callable[..., Any]) -> None:
    here = world("long")
    here.add("one", "red")
    here.add("two", "red")
    engine = _engine(here)
    prompt = _tokens(5, 200)
    for names in ((), ("one",), ("two",), ("one", "two")):
        engine.submit(here.request("ann", prompt, *names, max_tokens=1)).read()
    held = engine.statistics.prefix_bytes
    tensors = [one for entry in engine._prefixes._entries.values() for one in entry.tensors]
    here.bank.drop(here.digests["one"])
    assert engine.statistics.prefix_bytes == held // 2
    here.bank.drop(here.digests["two"])
    assert engine.statistics.prefix_bytes == held // 4
    assert [bool(one.any()) for one in tensors] == [True] * 4 + [False] * 12


def test_an_adapter_dropped_while_its_prompt_is_computed_is_not_kept(
    world: Callable[..., Any],
) -> None:
    here = world("long")
    here.add("one", "red")
    engine = _engine(here)
    true_prompt = engine._runner.prompt

    def prompt(*rest: Any) -> Any:
        here.bank.drop(here.digests["one"])
        return true_prompt(*rest)

    engine._runner.prompt = prompt
    answer = engine.submit(here.request("ann", _tokens(6, 300), "one", max_tokens=1)).read()
    assert answer.finish is not Finish.FAILED
    assert engine.statistics.prefix_bytes == 0


def test_another_epoch_purges_while_nothing_runs_and_before_anything_is_found(
    world: Callable[..., Any],
) -> None:
    here = world("long")
    engine = _engine(here)
    prompt = _tokens(7, 300)

    def ask() -> Any:
        return engine.submit(here.request("ann", prompt, max_tokens=2)).read()

    first = ask()
    assert engine.statistics.prefix_bytes > 0
    with here.database.begin() as connection:
        bump(connection)
    assert ask() == first
    assert _figures(engine)[0] == 0

    keys = ApiKeys(here.database)
    keys.revoke(keys.create("bob")[0])
    until = time.monotonic() + 30
    while engine.statistics.prefix_bytes and time.monotonic() < until:
        time.sleep(0.05)
    assert engine.statistics.prefix_bytes == 0


def test_closing_leaves_nothing(world: Callable[..., Any]) -> None:
    here = world("long")
    engine = _engine(here)
    engine.submit(here.request("ann", _tokens(8, 300), max_tokens=2)).read()
    tensors = [one for entry in engine._prefixes._entries.values() for one in entry.tensors]
    assert any(bool(one.any()) for one in tensors)
    engine.close()
    assert engine.statistics.prefix_bytes == 0
    assert not any(bool(one.any()) for one in tensors)


def test_less_memory_than_a_piece_changes_no_answer(world: Callable[..., Any]) -> None:
    here = world("long")
    prompt = _tokens(2, 400)
    answers = [
        _bits(engine, [here.request("ann", prompt, max_tokens=2)])
        for engine in (_engine(here, prefix_bytes=100), _engine(here))
        for _ in range(2)
    ]
    assert all(answer == answers[0] for answer in answers)
