"""Zero-padding to the largest rank, clients weighted by how much they learned (HetLoRA).

With r the largest rank of the round, each client's factors are padded with zero rows of A and
zero columns of B to r, and averaged apart:

    A' = sum_i w_i pad(A_i),    B' = sum_i w_i pad(s_i B_i)

The paper weights client i by the Frobenius norm of its product over the sum of these norms, so
that clients whose higher directions are nearly empty count less ("sparsity-weighted"). Here the
norms multiply the shares p_i, module by module:

    w_i = p_i ||s_i B_i A_i|| / sum_j p_j ||s_j B_j A_j||

and where all products are zero, w_i = p_i. The scaling s_i is folded into B, so that clients of
unequal alpha or rank average what they mean. A client starts from the leading r_i directions. The
paper's self-pruning of ranks happens in the clients' training and is not part of this.

Known failure, kept as published: padding dilutes. Direction j counts only by the weight m_j of the
clients that hold it, in A and in B, so that its product shrinks by m_j squared in a round in which
nobody trains; and what no client of a round holds is gone.

Formal guarantee: the formula in float64, rounded once to float32; no bound on the distance to the
weighted sum of the products.

Reference:
    Cho et al., Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models, 2024,
    arXiv:2401.06432.
"""

from __future__ import annotations

import math

import numpy as np
from intarsia_client.wire import LowRankFactors

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.factors import product_norm
from intarsia_aggregators.fedavg import weighted_sum


def average_padded(module: ModuleRound) -> ModuleOutcome:
    """Pad one module's factors with zeros and average them by share and norm.

    Args:
        module: What the round brought.

    Returns:
        The means at the largest rank, with scaling 1.
    """
    weights = _weights(module)
    trained = [one.trained for one in module.contributions]
    rank = max(factors.rank for factors in trained)
    d_out, d_in = module.published.shape
    a = weighted_sum((rank, d_in), zip(weights, (one.a for one in trained), strict=True))
    b = weighted_sum(
        (d_out, rank),
        ((weight * one.scaling, one.b) for weight, one in zip(weights, trained, strict=True)),
    )
    return ModuleOutcome(
        exact=LowRankFactors(a=a.astype(np.float32), b=b.astype(np.float32), scaling=1.0)
    )


def _weights(module: ModuleRound) -> list[float]:
    shares = [one.share for one in module.contributions]
    weights = [one.share * product_norm(one.trained) for one in module.contributions]
    total = math.fsum(weights)
    return [weight / total for weight in weights] if total > 0.0 else shares
