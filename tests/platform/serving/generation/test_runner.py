from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from intarsia_client.errors import InputError
from intarsia_platform.serving.invariance import agreeing_shapes
from intarsia_platform.serving.mixture import BASE
from intarsia_platform.serving.runner import Runner, Shapes, all_shapes
from intarsia_platform.serving.served_base import ServedBase

PROMPTS = ([2, 7, 9, 30, 4], [2, 5], [2, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [2])


def _plain(base: Any, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return base.model(input_ids=torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_prompts_in_pieces_and_rows_of_unequal_length_are_the_model(
    load: Callable[[str], Any], kind: str
) -> None:
    base = load(kind)
    with ServedBase(base) as served:
        runner = Runner(served, max_rows=4, capacity=96)
        rows = {}
        for tokens in PROMPTS:
            slot = runner.cache.acquire()
            rows[slot] = list(tokens)
            for begin in range(0, len(tokens), 3):
                found = runner.prompt(slot, tokens[begin : begin + 3], BASE)
            np.testing.assert_allclose(found, _plain(base, rows[slot])[-1], atol=2e-5)
        for step in range(4):
            last = {slot: 20 + 3 * slot + step for slot in rows}
            if step == 2:
                runner.cache.release(1)
                del rows[1], last[1]
            found = runner.tokens(last, dict.fromkeys(last, BASE))
            for slot, token in last.items():
                rows[slot].append(token)
                np.testing.assert_allclose(found[slot], _plain(base, rows[slot])[-1], atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "threads"),
    [
        ("llama", 1),
        ("gpt2", 1),
        pytest.param("stories", 1, marks=pytest.mark.slow),
        pytest.param("stories", 2, marks=pytest.mark.slow),
        pytest.param("gpt2", 2, marks=pytest.mark.slow),
    ],
)
def test_a_rows_bits_do_not_depend_on_its_mates(
    world: Callable[..., Any], kind: str, threads: int
) -> None:
    """The measured shapes hold: other slots, mates, lengths and adapters change no bit."""
    here = world(kind)
    names = [(f"n{rank}", rank) for rank in (1, 3, 8, 5)]
    digests = [here.add(name, "red", rank=rank) for name, rank in names]
    torch.set_num_threads(threads)
    try:
        runner = Runner(here.served, max_rows=16, capacity=96)
        runner.shapes = agreeing_shapes(runner)
        with here.bank.lease(digests) as adapters:
            mixtures = [
                BASE,
                *[((one, 1.0),) for one in adapters],
                ((adapters[0], 0.5), (adapters[2], 0.25)),
            ]
            for own, mixture in enumerate(mixtures):
                alone = _answer(runner, mixture, [])
                for seed in range(2):
                    others = np.random.default_rng(seed + 10 * own).permutation(14)[: 4 + 9 * seed]
                    mates = [mixtures[other % len(mixtures)] for other in others]
                    beside = _answer(runner, mixture, mates)
                    assert all(map(np.array_equal, alone, beside))
    finally:
        torch.set_num_threads(1)


def _answer(runner: Runner, mixture: Any, mates: list[Any]) -> list[np.ndarray]:
    """Logits of a prompt and five tokens, beside mates who join before it and while it runs."""
    rows: dict[int, Any] = {}

    def join(place: int, what: Any) -> int:
        slot = runner.cache.acquire()
        prompt = [2, *((7 * place + number) % 90 + 4 for number in range(4 * place % 60))]
        runner.prompt(slot, prompt, what)
        rows[slot] = what
        return slot

    half = len(mates) // 2
    for place, mate in enumerate(mates[:half]):
        join(place, mate)
    own = runner.cache.acquire()
    rows[own] = mixture
    found = [runner.prompt(own, [2, 9, 30, 41, 17], mixture)]
    for step in range(5):
        if half + step < len(mates):
            join(half + step, mates[half + step])
        if step == 3 and own > 0:
            runner.cache.release(0)
            del rows[0]
        tokens = {slot: (11 * slot + step) % 80 + 4 for slot in rows}
        tokens[own] = 50 + step
        found.append(runner.tokens(tokens, rows)[own])
    for slot in list(rows):
        runner.cache.release(slot)
    runner.forget_plan()
    return found


def test_measuring_leaves_zeros_and_keeps_the_largest_shapes(load: Callable[[str], Any]) -> None:
    with ServedBase(load("llama")) as served:
        runner = Runner(served, max_rows=20, capacity=80)
        shapes = agreeing_shapes(runner)
        assert shapes.rows[-1] == 32
        assert shapes.visible[-1] == 128
        assert set(shapes.rows) <= set(all_shapes(32, 128).rows)
        assert not any(bool(layer.keys.any()) for layer in runner.cache.layers)
        assert runner.cache.free == 32


@pytest.mark.parametrize("kind", ["place", "mates", "shape"])
def test_a_machine_that_mixes_rows_is_noticed(load: Callable[[str], Any], kind: str) -> None:
    """Last bits that depend on place, mates or shape, as other machines may give them."""
    with ServedBase(load("llama")) as served:
        runner = Runner(served, max_rows=16, capacity=64)
        true_step = runner.raw_step

        def mixing(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
            logits = true_step(tokens, *rest)
            if kind == "place":
                logits[3] += 1e-6
            if kind == "mates":
                logits[0] += 1e-9 * float(tokens.sum())
            if kind == "shape" and len(logits) == 8:
                logits += 1e-6
            return logits

        runner.raw_step = mixing  # type: ignore[method-assign]
        rows = agreeing_shapes(runner).rows
        assert rows == ((4, 16) if kind == "shape" else ())


def test_without_agreeing_rows_each_is_computed_by_itself(load: Callable[[str], Any]) -> None:
    base = load("llama")
    with ServedBase(base) as served:
        runner = Runner(served, max_rows=4, capacity=64)
        runner.shapes = Shapes(rows=(), visible=(64,))
        for tokens in PROMPTS:
            runner.prompt(runner.cache.acquire(), tokens, BASE)
        found = runner.tokens({0: 8, 2: 9}, {0: BASE, 2: BASE})
        for slot, token in ((0, 8), (2, 9)):
            expected = _plain(base, [*PROMPTS[slot], token])[-1]
            np.testing.assert_allclose(found[slot], expected, atol=2e-5)


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("bert", {}, "causal language model"),
        ("llama", {"max_rows": 0}, "max_rows"),
        ("llama", {"capacity": 97}, "2 to 96"),
    ],
)
def test_what_cannot_be_served_is_refused(
    load: Callable[[str], Any], kind: str, more: dict[str, int], words: str
) -> None:
    with ServedBase(load(kind)) as served, pytest.raises(InputError, match=words):
        Runner(served, **{"max_rows": 4, "capacity": 64, **more})
