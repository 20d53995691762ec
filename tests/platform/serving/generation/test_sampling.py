from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_platform.serving.sampling import Sampler, Sampling, kept
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


def _logits(seed: int, size: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, size).astype(np.float32)


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.01, 1),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = _logits(seed)
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    expected = torch.softmax(scores[0], -1).numpy()
    tokens, probabilities = kept(
        logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    found = np.zeros(len(logits))
    found[tokens] = probabilities
    # Where the sum stands within rounding of top_p, either answer is right.
    if np.count_nonzero(found) == np.count_nonzero(expected):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    else:
        order = np.sort(torch.softmax(scores[0], -1).numpy())
        assert abs(np.count_nonzero(found) - np.count_nonzero(expected)) == 1, order


def test_greedy_takes_the_likeliest_and_the_lowest_of_equals() -> None:
    sampler = Sampler(Sampling())
    assert sampler.choose(np.array([1, 3, 3, 2], dtype=np.float32)) == 1
    assert sampler.choose(np.array([-np.inf, -5], dtype=np.float32)) == 1


def test_draws_follow_the_distribution() -> None:
    logits = _logits(3, 8)
    sampler = Sampler(Sampling(temperature=0.8, top_k=6, seed=11))
    drawn = np.bincount([sampler.choose(logits) for _ in range(6000)], minlength=8)
    tokens, probabilities = kept(logits, Sampling(temperature=0.8, top_k=6))
    assert drawn.sum() == drawn[tokens].sum()
    assert chisquare(drawn[tokens], probabilities * 6000).pvalue > 1e-4


def test_equal_seeds_give_equal_tokens_and_others_do_not() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return [sampler.choose(_logits(step)) for step in range(40)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)
    assert draw(None) != draw(None)


def test_a_tiny_temperature_is_greedy() -> None:
    sampler = Sampler(Sampling(temperature=5e-324, seed=1))
    logits = _logits(2)
    assert {sampler.choose(logits) for _ in range(20)} == {int(np.argmax(logits))}


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"seed": -1},
        {"seed": 1 << 64},
        {"max_tokens": 0},
        {"stop": ("",)},
        {"stop": ("a" * 257,)},
        {"stop": ("a",) * 17},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampling(**wrong)
