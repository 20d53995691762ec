"""Stack and fold: every round's new adapters join the frozen history (FLoRA).

All that was learned so far lies frozen underneath, clients train new directions of their own rank
that add nothing at first (the start ``fresh``), and the server stacks what they send:

    G' = G + sum_i p_i s_i B_i A_i  =  [B_G, p_1 s_1 B_1, ...] [A_G; A_1; ...]

The paper merges the stack into the base's weights. Here it stays an adapter of its own, so that a
quantised base is never rewritten, and is recompressed without loss: by its singular values, of
which only those are dropped that are rounding. Nothing is cut, whatever ``broadcast_rank`` says:
the download grows by the sum of the round's ranks, up to the smaller side of the layer.

The weight sits on one factor, and the scaling is read from each update; the paper's released code
takes one scaling for all.

Formal guarantee: as the ledger's without a bound, a relative Frobenius error of at most 1e-6 a
module against the float64 sum.

Reference:
    Wang et al., FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
    Adaptations, 2024, arXiv:2409.05976.
"""

from __future__ import annotations

from dataclasses import replace

from intarsia_aggregators.base import ModuleOutcome, ModuleRound
from intarsia_aggregators.ledger import add_exactly


def stack_and_fold(module: ModuleRound) -> ModuleOutcome:
    """Add one module's new directions to the history.

    Args:
        module: What the round brought.

    Returns:
        The whole sum; nothing is cut or held back.
    """
    return add_exactly(replace(module, settings=replace(module.settings, broadcast_rank=0)))
