"""From one row's logits to its next token.

Each request has a generator of its own, takes one number from it a token, and is computed by
itself in float64. So a row's choice is a function of its own logits, settings and seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from intarsia_client.errors import InputError
from numpy.typing import NDArray

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a request's tokens are chosen and when its answer ends.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token (greedy).
        top_p: Keep the likeliest tokens whose probabilities reach this sum (nucleus sampling,
            Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
        top_k: Keep this many of the likeliest (Fan et al. 2018, arXiv:1805.04833), and those as
            likely as the last of them; 0 keeps all.
        seed: Equal seeds give equal answers; None takes one from the operating system.
        max_tokens: Longest answer.
        stop: The answer ends before the first of these texts.

    Raises:
        InputError: If a value makes no sense.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int = 128
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check every value."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError("temperature", self.temperature, "use a finite number from 0")
        if not 0 < self.top_p <= 1:
            raise InputError("top_p", self.top_p, "use a number above 0 and at most 1")
        if self.top_k < 0:
            raise InputError("top_k", self.top_k, "use a whole number from 0")
        if self.seed is not None and not 0 <= self.seed < 1 << 64:
            raise InputError("seed", self.seed, "use a whole number from 0 to 2**64 - 1")
        if self.max_tokens < 1:
            raise InputError("max_tokens", self.max_tokens, "use a whole number from 1")
        if len(self.stop) > MAX_STOPS:
            raise InputError("stop", f"{len(self.stop)} texts", f"give at most {MAX_STOPS}")
        if not all(0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop):
            raise InputError("stop", "a text", f"give 1 to {MAX_STOP_CHARACTERS} characters each")


class Sampler:
    """Chooses one request's tokens.

    Formal guarantee: the tokens are a function of the logits given so far, the settings and the
    seed. With temperature 0 a tie goes to the lowest token.

    Args:
        sampling: The request's settings.
    """

    def __init__(self, sampling: Sampling) -> None:
        """Seed the generator."""
        self._sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)

    def choose(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token.

        Args:
            logits: Shape (vocabulary,); no NaN, and the largest of them finite.

        Returns:
            The token.
        """
        if self._sampling.temperature == 0:
            return int(np.argmax(logits))
        tokens, probabilities = kept(logits, self._sampling)
        sums = np.cumsum(probabilities)
        drawn = self._generator.random() * sums[-1]
        # A probability of 0 leaves the sum as it is, and "right" steps over it.
        at = int(np.searchsorted(sums, drawn, side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def kept(
    logits: NDArray[np.float32], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn.

    Args:
        logits: Shape (vocabulary,).
        sampling: Temperature above 0, top_k and top_p, applied in this order.

    Returns:
        The tokens in ascending order and their probabilities, which sum to 1 but for rounding.
    """
    with np.errstate(over="ignore"):
        scaled = (logits.astype(np.float64) - float(logits.max())) / sampling.temperature
    tokens = np.arange(len(scaled), dtype=np.int64)
    if 0 < sampling.top_k < len(scaled):
        least = np.partition(scaled, -sampling.top_k)[-sampling.top_k]
        tokens = tokens[scaled >= least]
    weights = np.exp(scaled[tokens])
    probabilities = weights / weights.sum()
    if sampling.top_p < 1:
        # Tokens this unlikely cannot be among the kept ones: together they lack less than 1-top_p.
        likely = probabilities >= (1 - sampling.top_p) / len(probabilities)
        tokens, probabilities = tokens[likely], probabilities[likely]
        order = np.argsort(-probabilities, kind="stable")
        before = np.cumsum(probabilities[order]) - probabilities[order]
        chosen = np.sort(order[before < sampling.top_p])
        tokens, probabilities = tokens[chosen], probabilities[chosen]
        probabilities = probabilities / probabilities.sum()
    return tokens, probabilities
