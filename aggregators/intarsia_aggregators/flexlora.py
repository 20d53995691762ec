"""The weighted sum of full adapters, cut to the largest client's rank (FlexLoRA).

    W = sum_i p_i s_i B_i A_i,    G' = the best approximation of W of the largest client rank

and a client starts from the leading r_i directions of G'. The paper forms W densely and takes its
full singular value decomposition; the one here comes from the stacked factors, equal up to
rounding.

Known failure, kept as published: W averages *whole* adapters, of which a client of rank r_i has the
leading r_i directions only. A direction that clients of the weight m_j hold shrinks by m_j in a
round in which nobody trains, and with low ranks in the majority the higher ones fade away (Rank
collapse). The ledger adds differences instead.

Formal guarantee: relative Frobenius error of at most 1e-6 against the float64 sum before the cut;
the share that is cut is reported.

Reference:
    Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
    Resources, 2024, arXiv:2402.11505.
"""

from __future__ import annotations

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.factors import Term, decompose, stack, truncated, without_rounding


def sum_and_cut(module: ModuleRound) -> ModuleOutcome:
    """Sum one module's full adapters and cut the sum to the largest client rank.

    Args:
        module: What the round brought.

    Returns:
        The leading directions; the rest is lost.
    """
    trained = [Term(weight=one.share, factors=one.trained) for one in module.contributions]
    rank = module.settings.rank or max(term.factors.rank for term in trained)
    whole = without_rounding(decompose(*stack(trained)))
    squares = whole.sigma.square()
    return ModuleOutcome(
        exact=truncated(whole, rank).balanced(),
        energy=float(squares.sum()),
        cut=float(squares[rank:].sum()),
    )
