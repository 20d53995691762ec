"""How good a retriever is, and how much it tells: the figures of docs/retrieval.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from intarsia_continual.retrieval import Choice


def top_k_accuracy(rankings: Sequence[Sequence[str]], truth: Sequence[str], k: int) -> float:
    """Share of queries whose own group is among the first k.

    Args:
        rankings: For each query the groups, best first; fewer than k where fewer were found.
        truth: For each query its own group.
        k: How many of them count.

    Returns:
        The share, 0 to 1.
    """
    hits = [own in list(found)[:k] for found, own in zip(rankings, truth, strict=True)]
    return float(np.mean(hits))


def membership_auc(members: ArrayLike, others: ArrayLike) -> float:
    """How well scores tell texts that were fitted on from texts that were not.

    Args:
        members: Scores of the former.
        others: Scores of the latter.

    Returns:
        The probability that a member scores above another, ties counting half: 0.5 for nothing
        told, 1 for everything (the area under the curve of Yeom et al. 2018, arXiv:1709.01604).
    """
    inside, outside = np.sort(np.asarray(members, float)), np.asarray(others, float)
    below = np.searchsorted(inside, outside, side="left")
    at_most = np.searchsorted(inside, outside, side="right")
    above = len(inside) - (below + at_most) / 2
    return float(above.mean() / len(inside))


def total_variation(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How far two mixtures are apart.

    Args:
        one: Weights by adapter; what is missing to 1 is the base's.
        other: Likewise.

    Returns:
        Half the sum of the absolute differences, the base's included: 0 for equal, 1 for disjoint.
    """
    differences = [one.get(d, 0.0) - other.get(d, 0.0) for d in {*one, *other}]
    base = sum(one.values()) - sum(other.values())
    return (sum(map(abs, differences)) + abs(base)) / 2


def brier_score(choices: Sequence[Sequence[Choice]], truth: Sequence[str]) -> float:
    """How far weights are from the right ones (Brier 1950), the base counting as wrong.

    Args:
        choices: For each query what was chosen.
        truth: For each query its own group's adapter.

    Returns:
        The mean squared distance from weight 1 on the own adapter: 0 at best, 2 at worst.
    """
    losses = []
    for chosen, own in zip(choices, truth, strict=True):
        weights = {one.digest: one.weight for one in chosen}
        base = 1.0 - sum(weights.values())
        missed = (1.0 - weights.pop(own, 0.0)) ** 2
        losses.append(missed + base**2 + sum(weight**2 for weight in weights.values()))
    return float(np.mean(losses))
