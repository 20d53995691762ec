"""Means of the factors train on, and what they miss of the mean product lies frozen (FedEx-LoRA).

With M = s B~ A~ the product of the means of the factors,

    A~ = sum_i p_i A_i,  B~ = sum_i p_i B_i,  G' = G + sum_i p_i c_i (s B_i A_i - S),  rest = G' - M

clients go on from the means (the leading r directions of what is published) with the rest frozen
underneath (the start ``residual``). The paper adds the rest to the base's weights; here it is a
part of the adapter, so that a quantised base is never rewritten. It is recompressed without loss
and not bounded: its rank grows from round to round, up to the smaller side of the layer.

A client that a factor bounds counts in the means by start + c_i (trained - start).

Formal guarantee: relative Frobenius error of G' of at most 1e-6 a module against the float64 sum.

Reference:
    Singhal et al., Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models
    (FedEx-LoRA), 2024, arXiv:2410.09432.
"""

from __future__ import annotations

import math

import numpy as np
from intarsia_client.wire import LowRankFactors

from intarsia_aggregators.base import Contribution, ModuleOutcome, ModuleRound
from intarsia_aggregators.factors import NUMERICAL_ZERO, Decomposition, product_norm, truncated
from intarsia_aggregators.fedavg import weighted_sum
from intarsia_aggregators.ledger import new_sum


def average_with_rest(module: ModuleRound) -> ModuleOutcome:
    """Average one module's factors, and put behind them what the means miss.

    Args:
        module: What the round brought, all of one rank and scaling.

    Returns:
        The means first, at the clients' scaling; then the rest, largest first.
    """
    if not module.contributions:
        return ModuleOutcome(exact=module.exact)
    means = _means(module.contributions)
    total = new_sum(module)
    total.add(-1.0, means)
    rest = _above_rounding(total.decomposed(), product_norm(means)).balanced()
    return ModuleOutcome(
        exact=LowRankFactors(
            a=np.concatenate([means.a, rest.a]),
            b=np.concatenate([means.b, rest.b / np.float32(means.scaling)], axis=1),
            scaling=means.scaling,
        )
    )


def _means(contributions: tuple[Contribution, ...]) -> LowRankFactors:
    """The mean of ``start + c_i (trained - start)``; clients without the module count as starts."""
    start = contributions[0].start
    weights = [one.weight for one in contributions]
    kept = 1.0 - math.fsum(weights)
    trained = [one.trained for one in contributions]
    a = weighted_sum(
        start.a.shape,
        [(kept, start.a), *zip(weights, (one.a for one in trained), strict=True)],
    )
    b = weighted_sum(
        start.b.shape,
        [(kept, start.b), *zip(weights, (one.b for one in trained), strict=True)],
    )
    return LowRankFactors(
        a=a.astype(np.float32), b=b.astype(np.float32), scaling=trained[0].scaling
    )


def _above_rounding(rest: Decomposition, beside: float) -> Decomposition:
    """The directions that are more than rounding beside a product of the given norm."""
    tail = rest.sigma.square().flip(0).cumsum(0).flip(0).sqrt()
    return truncated(rest, int((tail > NUMERICAL_ZERO * beside).sum()))
