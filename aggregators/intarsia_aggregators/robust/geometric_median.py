"""The geometric median, as weights on updates (RFA).

The median is the point of least weighted distance to all that was added, with ``a`` the shares of
the weights that came:

    v = argmin sum_i a_i |v - D_i|

It lies among the updates: ``v = sum_i b_i D_i`` with b at least 0 and summing to 1. Weiszfeld's
steps, smoothed so that nothing is divided by 0, need inner products G alone:

    d_i^2 = G_ii - 2 (G b)_i + b^T G b,        b_i  <-  a_i / max(nu, d_i), over its sum

``nu`` is 1e-6 of the smallest median distance from one update to all, and not below what rounding
leaves of a distance (1.5e-8 of the median norm); both medians are weighted, so that less than half
of the weight cannot raise them at will. The first ``b_i`` is ``a_i`` over the update's median
distance to all: the sum is convex, so that the start decides only how many steps it takes. It ends
when a step moves less than 1e-10 of the weight, or after 1,000 steps.

Assumption: less than half of the weight is dishonest. Weights follow declared numbers of records,
so cap them.

Formal guarantee: if a share r < 1/2 of the weight is dishonest, wherever it lies, the median is
within ``(1 - r) / sqrt(1 - 2 r)`` times the radius of any ball that holds all honest updates from
that ball's centre (Minsker 2015), up to what the tolerance leaves.

Reference:
    Pillutla et al., Robust Aggregation for Federated Learning, 2019, arXiv:1912.13445.
    Minsker, Geometric Median and Robust Estimation in Banach Spaces, 2015, arXiv:1308.1334.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from intarsia_aggregators.base import WeightedUpdate
from intarsia_aggregators.gram import distances, norms
from intarsia_aggregators.robust.base import RobustSettings, RuleOutcome, outcome_of
from intarsia_aggregators.robust.geometry import FloatMatrix, gram_matrix

TOLERANCE = 1e-10
"""Share of the weight that the last step moves at most."""
MOST_STEPS = 1000
_SMOOTHING = 1e-6
_ROUNDING = math.sqrt(np.finfo(np.float64).eps)
# Where the median norm is 0, a positive number whose square still is one.
_SMALLEST = 1e-150


@dataclass(frozen=True, kw_only=True)
class Median:
    """A geometric median among given points.

    Args:
        weights: Its weights over the points, shape (n,), at least 0 and summing to 1.
        distances: The points' distances from it, shape (n,).
        steps: Weiszfeld steps taken.
        moved: Share of the weight that the last step moved.
    """

    weights: FloatMatrix
    distances: FloatMatrix
    steps: int
    moved: float


def geometric_median(
    updates: Sequence[WeightedUpdate],
    settings: RobustSettings,
    root: WeightedUpdate | None = None,
) -> RuleOutcome:
    """Weigh updates as their median does; see :class:`intarsia_aggregators.robust.base.Rule`.

    Args:
        updates: The round's admitted updates.
        settings: Not used.
        root: Not used.

    Returns:
        All updates with the median's weights, which sum to 1. Each score is the distance from
        the median.

    Raises:
        InputError: If an update cannot be.
    """
    del settings, root
    gram = gram_matrix(updates)
    weights = np.array([one.weight for one in updates])
    median = weiszfeld(gram, weights / weights.sum())
    return outcome_of(
        updates,
        weights=median.weights,
        factors=[1.0] * len(updates),
        norms=norms(gram).numpy(),
        scores=median.distances,
        measures={"steps": float(median.steps), "moved": median.moved},
    )


def weiszfeld(gram: torch.Tensor, shares: FloatMatrix) -> Median:
    """The geometric median of points of which only inner products are known.

    Args:
        gram: Their inner products, shape (n, n), float64.
        shares: Their weights, shape (n,), positive and summing to 1.

    Returns:
        The median.
    """
    central = np.array([_median(row, shares) for row in distances(gram).numpy()])
    smallest = max(
        _SMOOTHING * float(central.min()),
        _ROUNDING * _median(norms(gram).numpy(), shares),
        _SMALLEST,
    )
    weights = _normalised(shares, central, smallest)
    products, moved, steps = gram.numpy(), 1.0, 0
    while moved > TOLERANCE and steps < MOST_STEPS:
        following = _normalised(shares, _distances(products, weights), smallest)
        moved = float(np.abs(following - weights).sum()) / 2.0
        weights, steps = following, steps + 1
    return Median(
        weights=weights, distances=_distances(products, weights), steps=steps, moved=moved
    )


def _normalised(shares: FloatMatrix, distances: FloatMatrix, smallest: float) -> FloatMatrix:
    pulls = shares * (smallest / np.maximum(distances, smallest))
    return np.asarray(pulls / pulls.sum())


def _distances(gram: FloatMatrix, weights: FloatMatrix) -> FloatMatrix:
    products = gram @ weights
    squares = np.diagonal(gram) - 2.0 * products + weights @ products
    return np.sqrt(np.maximum(squares, 0.0))


def _median(values: FloatMatrix, shares: FloatMatrix) -> float:
    """The smallest value below or at which half of the weight lies."""
    order = np.argsort(values, kind="stable")
    half = np.searchsorted(np.cumsum(shares[order]), 0.5)
    return float(values[order[min(int(half), len(values) - 1)]])
