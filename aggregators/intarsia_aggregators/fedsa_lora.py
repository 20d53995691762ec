"""Only A is shared; every client keeps its own B (FedSA-LoRA).

    A' = sum_i p_i A_i

Clients train both factors and send A alone; B stays with them from round to round. There is no
global model: what is published has the mean A and a zero B, adds nothing to the base by itself,
and means something only together with a client's own B.

Formal guarantee: the mean of A in float64, rounded once to float32.

Reference:
    Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, 2024,
    arXiv:2410.01463.
"""

from __future__ import annotations

import numpy as np
from intarsia_client.wire import LowRankFactors

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.fedavg import weighted_sum


def average_a(module: ModuleRound) -> ModuleOutcome:
    """Average one module's A by share.

    Args:
        module: What the round brought, all of one rank; whatever B is in it does not count.

    Returns:
        The mean of A with B = 0.
    """
    first = module.contributions[0].trained
    a = weighted_sum(first.a.shape, ((one.share, one.trained.a) for one in module.contributions))
    return ModuleOutcome(
        exact=LowRankFactors(
            a=a.astype(np.float32), b=np.zeros_like(first.b), scaling=first.scaling
        )
    )
