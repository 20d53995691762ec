"""Means of the factors apart, for clients of one rank (FedIT, also called Shepherd).

    A' = sum_i p_i A_i,    B' = sum_i p_i B_i

The product of the means is not the mean of the products: cross terms p_i p_j B_i A_j come in, and
grow with how far the clients' factors have turned away from each other. It is what most released
federated LoRA code does, and the baseline that exact methods are compared with.

Formal guarantee: the mean of each factor in float64, rounded once to float32; no bound on the
distance between the product and the weighted sum of the products.

Reference:
    Zhang et al., Towards Building the Federated GPT: Federated Instruction Tuning, 2023,
    arXiv:2305.05644.
"""

from __future__ import annotations

import numpy as np
from intarsia_client.wire import LowRankFactors

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.fedavg import weighted_sum


def average_factors(module: ModuleRound) -> ModuleOutcome:
    """Average one module's factors by share.

    Args:
        module: What the round brought, all of one rank and scaling.

    Returns:
        The means, at that rank and scaling.
    """
    first = module.contributions[0].trained
    a = weighted_sum(first.a.shape, ((one.share, one.trained.a) for one in module.contributions))
    b = weighted_sum(first.b.shape, ((one.share, one.trained.b) for one in module.contributions))
    return ModuleOutcome(
        exact=LowRankFactors(a=a.astype(np.float32), b=b.astype(np.float32), scaling=first.scaling)
    )
