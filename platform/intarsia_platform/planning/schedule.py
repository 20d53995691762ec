"""When a federation is planned: before round 1, and again every so many rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from intarsia_client.wire import Adapter

from intarsia_platform.planning.client_plan import RankPlan
from intarsia_platform.planning.costs import CostModel
from intarsia_platform.planning.importance import LARGEST_RANK, expected_energy
from intarsia_platform.planning.planner import PlannedClient, plan_clients


class RankPlanning:
    """The plans of a federation.

    A plan follows from what does not change over the rounds and from the adapter that was published
    before its first round. A process that takes a federation up again comes to the same plans.

    Args:
        clients: The clients.
        costs: What training costs.
        round_seconds: As :func:`~.planner.plan_clients` takes it.
        replan_rounds: Rounds from one plan to the next; 0 keeps the first.
        all_modules: Train every module at every client.
        largest_rank: No client is given a larger rank.
    """

    def __init__(
        self,
        *,
        clients: Sequence[PlannedClient],
        costs: CostModel,
        round_seconds: float = 0.0,
        replan_rounds: int = 0,
        all_modules: bool = False,
        largest_rank: int = LARGEST_RANK,
    ) -> None:
        """Plan nothing yet."""
        self._clients = tuple(clients)
        self._costs = costs
        self._round_seconds = round_seconds
        self._replan_rounds = replan_rounds
        self._all_modules = all_modules
        self._largest_rank = largest_rank
        self._plans: dict[int, RankPlan] = {}

    def begins(self, round_number: int) -> int:
        """The round before which the plan was made that holds in a round.

        Args:
            round_number: From 1.

        Returns:
            A round up to this one.
        """
        if not self._replan_rounds:
            return 1
        return round_number - (round_number - 1) % self._replan_rounds

    def first(self) -> RankPlan:
        """The plan of round 1, which nothing has to be published for."""
        return self._made(1, None)

    def plan(self, round_number: int, published: Callable[[int], Adapter]) -> RankPlan:
        """The plan that holds in a round.

        Args:
            round_number: From 1.
            published: Gives the adapter that a round left; asked for the round before the one
                that the plan begins with.

        Returns:
            The plan.
        """
        first = self.begins(round_number)
        if first in self._plans:
            return self._plans[first]
        return self._made(first, published(first - 1) if first > 1 else None)

    def plans(self, rounds: int, published: Callable[[int], Adapter]) -> tuple[RankPlan, ...]:
        """The plans of all rounds up to one.

        Args:
            rounds: The last round.
            published: As in :meth:`plan`.

        Returns:
            Each plan once, in order.
        """
        firsts = dict.fromkeys(self.begins(number) for number in range(1, rounds + 1))
        return tuple(self.plan(first, published) for first in firsts)

    def _made(self, first: int, published: Adapter | None) -> RankPlan:
        if first not in self._plans:
            shapes = {name: one.shape for name, one in self._costs.trainable.items()}
            self._plans[first] = plan_clients(
                self._clients,
                self._costs,
                expected_energy(shapes, published),
                round_number=first,
                round_seconds=self._round_seconds,
                all_modules=self._all_modules,
                largest_rank=self._largest_rank,
            )
        return self._plans[first]
