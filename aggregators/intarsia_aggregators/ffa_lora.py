"""A is frozen and the same everywhere; only B is trained (FFA-LoRA).

A client's rows of A are the first r_i of one list that follows from the federation's seed, so that
all products lie in the same rows and their sum is a sum over B:

    B' = B + sum_i p_i c_i s_i pad(B_i - start B_i),    A' = A

The paper has one rank for all. With nested rows unequal ranks fit too, and since differences are
added and not factors averaged, a client of lower rank dilutes nothing. Only the sum of what clients
send is needed, and noise on B is noise on the product to the first order.

Formal guarantee: relative Frobenius error of at most 1e-6 a module against the float64 sum of the
products, where what was published travelled in float32. Where it was rounded on the way, clients
trained against rounded rows; what they added is added to the exact rows, and is off by that
rounding (about 0.2 % of an update with bfloat16, 0.6 % with int8).

Reference:
    Sun et al., Improving LoRA in Privacy-preserving Federated Learning, 2024, arXiv:2403.12313.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from intarsia_client.errors import InputError
from intarsia_client.start import held_directions
from intarsia_client.wire import FloatArray, LowRankFactors

from intarsia_aggregators.base import Contribution, ModuleOutcome, ModuleRound
from intarsia_aggregators.factors import product_norm
from intarsia_aggregators.fedavg import weighted_sum


def only_b(round_number: int) -> str:
    """B is trained, whatever the round."""
    return "b"


def add_to_b(module: ModuleRound) -> ModuleOutcome:
    """Add what one module's clients added to B, in the rows of A that they share.

    Args:
        module: What the round brought; nobody's A has changed.

    Returns:
        The module with the same A, longer where a client had more rows, with scaling 1.

    Raises:
        InputError: If a client's rows are not the shared ones.
    """
    held, outcome = shared_directions(module)
    rows = _shared_rows(module, held)
    parts = [(held.scaling, held.b.astype(np.float64))]
    for one in module.contributions:
        added = one.trained.scaling * one.trained.b.astype(np.float64)
        added -= one.start.scaling * one.start.b.astype(np.float64)
        parts.append((one.weight, added))
    b = weighted_sum((held.shape[0], len(rows)), parts)
    return outcome(held_directions(LowRankFactors(a=rows, b=b.astype(np.float32), scaling=1.0)))


def shared_directions(
    module: ModuleRound,
) -> tuple[LowRankFactors, Callable[[LowRankFactors], ModuleOutcome]]:
    """The server's directions that clients were sent.

    Where the way to the clients rounded a direction's B to zero, they did not get it and trained a
    fresh one in its place; such a direction is let go.

    Args:
        module: What the round brought.

    Returns:
        The directions, and a function that makes an outcome of new factors, with what was let go
        counted as cut.
    """
    count = held_directions(module.published).rank
    exact = held_directions(module.exact)
    held = LowRankFactors(a=exact.a[:count], b=exact.b[:, :count], scaling=exact.scaling)
    lost = LowRankFactors(a=exact.a[count:], b=exact.b[:, count:], scaling=exact.scaling)
    cut = product_norm(lost) ** 2 if lost.rank else 0.0

    def outcome(factors: LowRankFactors) -> ModuleOutcome:
        return ModuleOutcome(exact=factors, energy=product_norm(factors) ** 2 + cut, cut=cut)

    return held, outcome


def _shared_rows(module: ModuleRound, held: LowRankFactors) -> FloatArray:
    """The server's rows, and beyond them the longest client's."""
    longest = max(
        (one.start.a for one in module.contributions), key=len, default=module.published.a[:0]
    )
    for one in module.contributions:
        _check_rows(module, one, longest, held.rank)
    rows: FloatArray = np.concatenate([held.a, longest[held.rank :]])
    return rows


def _check_rows(module: ModuleRound, one: Contribution, longest: FloatArray, held: int) -> None:
    rows = one.start.a
    sent = min(held, len(rows))
    shared = np.array_equal(rows[:sent], module.published.a[:sent])
    if not (shared and np.array_equal(rows[held:], longest[held : len(rows)])):
        raise InputError(
            f"factor A of {module.name} of {one.client}",
            "is not the shared one",
            "start clients from what is published, with one seed",
        )
