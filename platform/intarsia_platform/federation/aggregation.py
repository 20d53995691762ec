"""One round's sum: admitted updates, the robust rule, the method, and what clients will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intarsia_aggregators.base import AggregationSettings, WeightedUpdate
from intarsia_aggregators.catalog import CatalogEntry
from intarsia_client.wire import Adapter

from intarsia_platform.federation.broadcast import as_received
from intarsia_platform.federation.guard import RobustGuard
from intarsia_platform.federation.open_round import OpenRound
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.results import RuleDecision


@dataclass(frozen=True, kw_only=True)
class RoundAggregate:
    """What a round ends with.

    Args:
        published: The new global adapter, as the clients will decode it.
        exact: What the server keeps beside it; None where the published adapter is all there is.
        cut_energy: Share of the squared Frobenius norm that was lost for good.
        residual_energy: Share of it that is held back from the clients.
        decisions: What the robust rule did to those whom it did not leave as they were.
    """

    published: Adapter
    exact: Adapter | None
    cut_energy: float
    residual_energy: float
    decisions: tuple[RuleDecision, ...]


def aggregate_round(
    open_round: OpenRound,
    updates: Sequence[WeightedUpdate],
    *,
    plan: FederationPlan,
    method: CatalogEntry,
    guard: RobustGuard | None,
) -> RoundAggregate:
    """Add a round's admitted updates up.

    Args:
        open_round: The round.
        updates: In a fixed order; equal orders give equal bytes. Their modules are read one at a
            time, so that updates that lie on disk are never in memory together.
        plan: The federation's plan.
        method: How to add up.
        guard: What judges the updates first; None takes them as they are.

    Returns:
        The new global adapter and what was done to make it.

    Raises:
        InputError: If the method or the guard cannot do with these updates.
    """
    decisions: tuple[RuleDecision, ...] = ()
    if guard is not None:
        updates, decisions = guard.judge(open_round, updates, plan)
    settings = AggregationSettings(
        broadcast_rank=plan.broadcast_rank,
        residual_rank=plan.residual_rank,
        round_number=open_round.number,
        rank=plan.largest_rank,
    )
    aggregation = method.method(open_round.state, settings)
    for update in updates:
        aggregation.accumulate(update)
    result = aggregation.finalize()
    exact = result.state.exact
    if exact is None and plan.download != "float32":
        # What the way to the clients rounds off is kept, so that no round's rounding is lost.
        exact = result.state.published
    return RoundAggregate(
        published=as_received(result.state.published, plan.download),
        exact=exact,
        cut_energy=result.cut_energy,
        residual_energy=result.residual_energy,
        decisions=decisions,
    )
