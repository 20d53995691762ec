"""Ranks and modules for clients of unequal means, by exact integer programming.

At each rank the modules to train are those that hold the most expected energy within the client's
memory and the round's time. The best rank is the one whose modules hold the most.

References:
    Fang et al., Automated Federated Pipeline for Parameter-Efficient Fine-Tuning of Large Language
    Models, 2024, arXiv:2404.06448 (FedPipe), which chooses the weights to train by the singular
    values of their adapters, and ranks by a mixed-integer linear program under each client's
    budget. What differs here is said in ``docs/rank-planning.md``.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import lil_array

from intarsia_platform.planning.client_plan import ClientPlan, RankPlan
from intarsia_platform.planning.costs import ClientCost, CostModel, LinearCost, Workload
from intarsia_platform.planning.importance import LARGEST_RANK, Energy
from intarsia_platform.planning.resources import MEGABYTE, ClientResources

# The solver keeps constraints and whole numbers to within 1e-6; budgets are scaled to 1.
_TOLERANCE = 1e-5
# It also stops within 1e-6 of the best value; scaled so, that is 1e-10 of all energy.
_VALUE_SCALE = 1e4
# Work is rounded up to steps of this size, so that clients alike share one solution.
_STEP = 1.05


@dataclass(frozen=True, kw_only=True)
class PlannedClient:
    """A client to plan for.

    Args:
        name: Its name.
        resources: What it has.
        workload: What it has to train on.
    """

    name: str
    resources: ClientResources
    workload: Workload


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """Modules at a rank, and what they cost."""

    rank: int
    modules: tuple[str, ...]
    energy: float
    cost: ClientCost


def ranks_for(
    shapes: Collection[tuple[int, int]], largest_rank: int = LARGEST_RANK
) -> tuple[int, ...]:
    """The ranks that a planner chooses among.

    Args:
        shapes: The modules' (d_out, d_in).
        largest_rank: No larger one, :data:`LARGEST_RANK` at most.

    Returns:
        Powers of two up to ``largest_rank`` and the largest module's smaller side.
    """
    side = max((min(shape) for shape in shapes), default=0)
    powers = [1 << exponent for exponent in range(LARGEST_RANK.bit_length())]
    return tuple(rank for rank in powers if rank <= min(side, largest_rank))


def plan_clients(
    clients: Sequence[PlannedClient],
    costs: CostModel,
    energy: Mapping[str, Energy],
    *,
    round_number: int = 1,
    round_seconds: float = 0.0,
    all_modules: bool = False,
    largest_rank: int = LARGEST_RANK,
) -> RankPlan:
    """Plan for all clients of a federation.

    Formal guarantee: by the cost model no client exceeds its memory, nor ``round_seconds`` where
    that is given; no choice of one rank and a set of modules within these bounds holds more
    expected energy; and so a client with more memory, speed or link, all else equal, is never
    given less energy. With ``all_modules`` it is never given a smaller rank either. The same
    arguments give the same plan.

    Args:
        clients: The clients.
        costs: What training costs.
        energy: As :func:`intarsia_platform.planning.importance.expected_energy` gives it.
        round_number: The first round that the plan is for.
        round_seconds: Longest time that a round may take a client; 0 for the time that the median
            client takes where only memory bounds it. A client that cannot keep the median's time
            gets what takes it least; one that cannot keep a given time gets nothing.
        all_modules: Train every module at every client, for methods that ask for it.
        largest_rank: No client is given a larger rank.

    Returns:
        The plan, its clients in the order of their names.
    """
    planner = _Planner(
        costs=costs, energy=energy, all_modules=all_modules, largest_rank=largest_rank
    )
    ordered = sorted(clients, key=lambda client: client.name)
    timed = any(client.resources.timed for client in ordered)
    limit = round_seconds or math.inf
    if timed and not round_seconds:
        times = [
            choice.cost.seconds(client.resources)
            for client in ordered
            if (choice := planner.best(client, math.inf)) is not None
        ]
        limit = statistics.median(times) if times else math.inf
    return RankPlan(
        round=round_number,
        round_seconds=limit if math.isfinite(limit) else None,
        modules=len(costs.trainable),
        clients=tuple(
            planner.plan(client, limit, strict=round_seconds > 0.0) for client in ordered
        ),
    )


class _Planner:
    """Plans client by client; clients alike are solved once."""

    def __init__(
        self,
        *,
        costs: CostModel,
        energy: Mapping[str, Energy],
        all_modules: bool,
        largest_rank: int,
    ) -> None:
        self._costs = costs
        self._all_modules = all_modules
        shapes = [one.shape for one in costs.trainable.values()]
        self._ranks = ranks_for(shapes, largest_rank)
        self._held = {name: np.concatenate([[0.0], np.cumsum(energy[name])]) for name in energy}
        self._whole = math.fsum(float(values.sum()) for values in energy.values())
        self._solved: dict[tuple[ClientResources, Workload, float], _Choice | None] = {}

    def plan(self, client: PlannedClient, limit: float, *, strict: bool) -> ClientPlan:
        """One client's plan within a time."""
        choice, note = self.best(client, limit), ""
        if choice is None and math.isfinite(limit) and not strict:
            choice = self._fastest(client)
            if choice is not None:
                taken = choice.cost.seconds(client.resources)
                note = (
                    f"{client.name}: takes {taken:.3g} s at the least, the median client "
                    f"{limit:.3g} s; raise its speed or its link, or expect it to be late"
                )
        if choice is None:
            note = self._refusal(client, limit)
        return self._written(client, choice, note)

    def best(self, client: PlannedClient, limit: float) -> _Choice | None:
        """What holds the most energy within memory and time; None where nothing fits."""
        key = (client.resources, _rounded_up(client.workload), limit)
        if key not in self._solved:
            self._solved[key] = self._solve(client.resources, key[1], limit)
        return self._solved[key]

    def _solve(
        self, resources: ClientResources, workload: Workload, limit: float
    ) -> _Choice | None:
        found: _Choice | None = None
        for rank in reversed(self._ranks):
            worth = self._worth(rank)
            if found is not None and math.fsum(worth.values()) <= found.energy:
                continue
            costs = self._costs.at(rank, workload)
            names = self._chosen(costs, worth, resources, limit)
            if not names:
                continue
            energy = math.fsum(worth[name] for name in names)
            if found is None or energy > found.energy:
                cost = costs.of(names, self._costs.stage_of)
                found = _Choice(rank=rank, modules=names, energy=energy, cost=cost)
        return found

    def _worth(self, rank: int) -> dict[str, float]:
        """What each module that can hold the rank is worth at it."""
        return {
            name: float(self._held[name][rank])
            for name, module in self._costs.trainable.items()
            if rank <= min(module.shape)
        }

    def _chosen(
        self,
        costs: LinearCost,
        worth: Mapping[str, float],
        resources: ClientResources,
        limit: float,
    ) -> tuple[str, ...]:
        every = tuple(sorted(worth))
        if self._all_modules and len(worth) < len(self._costs.trainable):
            return ()
        if every and _fits(costs.of(every, self._costs.stage_of), resources, limit):
            return every
        if self._all_modules:
            return ()
        return _knapsack(costs, worth, self._costs.stage_of, resources, limit)

    def _smallest(self, workload: Workload) -> list[_Choice]:
        """The smallest plans there are: of one module, or of all where all are asked for."""
        costs, worth = self._costs.at(1, workload), self._worth(1)
        every = tuple(sorted(worth))
        sets: list[tuple[str, ...]] = [every] if self._all_modules else [(one,) for one in every]
        return [
            _Choice(
                rank=1,
                modules=names,
                energy=math.fsum(worth[name] for name in names),
                cost=costs.of(names, self._costs.stage_of),
            )
            for names in sets
        ]

    def _fastest(self, client: PlannedClient) -> _Choice | None:
        """The smallest plan that takes least time, of those that fit the memory."""
        fitting = [
            choice
            for choice in self._smallest(client.workload)
            if _fits(choice.cost, client.resources, math.inf)
        ]
        return min(fitting, key=lambda choice: choice.cost.seconds(client.resources), default=None)

    def _refusal(self, client: PlannedClient, limit: float) -> str:
        """What a client that fits nothing would need."""
        resources, fastest = client.resources, self._fastest(client)
        if fastest is not None:
            return (
                f"{client.name}: trains nothing: a round takes it "
                f"{fastest.cost.seconds(resources):.3g} s at the least, not {limit:.3g}; raise "
                "resources.round_seconds, its speed or its link"
            )
        needed = min(choice.cost.memory_bytes for choice in self._smallest(client.workload))
        return (
            f"{client.name}: trains nothing: it needs {math.ceil(needed / MEGABYTE)} MB and has "
            f"{resources.memory_mb:g}; raise resources.memory_mb, or lower train.batch_size or "
            "train.max_length"
        )

    def _written(self, client: PlannedClient, choice: _Choice | None, note: str) -> ClientPlan:
        if choice is None:
            return ClientPlan(
                client=client.name, rank=0, target_modules=(), energy=0.0, memory_bytes=0,
                flops=0, bytes_up=0, bytes_down=0, note=note,
            )  # fmt: skip
        costs = self._costs.at(choice.rank, client.workload)
        cost = costs.of(choice.modules, self._costs.stage_of)
        return ClientPlan(
            client=client.name,
            rank=choice.rank,
            target_modules=choice.modules,
            energy=choice.energy / self._whole,
            memory_bytes=math.ceil(cost.memory_bytes),
            flops=math.ceil(cost.flops),
            bytes_up=math.ceil(cost.bytes_up),
            bytes_down=math.ceil(cost.bytes_down),
            seconds=cost.seconds(client.resources) if client.resources.timed else None,
            note=note,
        )


def _rounded_up(workload: Workload) -> Workload:
    """The work rounded up to a step: at most so much too much, and few different ones."""
    if workload.tokens < 1:
        return workload
    steps = math.ceil(math.log(workload.tokens, _STEP) - 1e-9)
    return replace(workload, tokens=max(workload.tokens, math.ceil(_STEP**steps)))


def _fits(cost: ClientCost, resources: ClientResources, limit: float) -> bool:
    return cost.memory_bytes <= resources.memory_bytes and cost.seconds(resources) <= limit


def _knapsack(
    costs: LinearCost,
    worth: Mapping[str, float],
    stage_of: Mapping[str, int],
    resources: ClientResources,
    limit: float,
) -> tuple[str, ...]:
    """The modules that hold the most energy within memory and time; none where nothing fits.

    Variables are 0 or 1: one a module, one a stage that gradients flow through. A module asks for
    its stage, and a stage for the one after it.
    """
    names, stages = list(worth), sorted(costs.stages)
    place = {stage: len(names) + index for index, stage in enumerate(stages)}
    parts = [*(costs.modules[name] for name in names), *(costs.stages[stage] for stage in stages)]
    budgets = _budgets(costs.constant, parts, resources, limit)
    if budgets is None:
        return ()
    linked = [
        (index, place[stage_of[name]])
        for index, name in enumerate(names)
        if stage_of[name] in place
    ]
    linked += [(place[one], place[after]) for one, after in itertools.pairwise(stages)]
    matrix = lil_array((len(budgets) + len(linked), len(parts)))
    bounds = np.zeros(len(budgets) + len(linked))
    for row, shares in enumerate(budgets):
        # What exceeds a budget alone cannot be chosen, whatever its excess.
        matrix[row, :] = np.minimum(shares, 2.0)
        bounds[row] = 1.0 - _TOLERANCE
    for row, (one, other) in enumerate(linked, start=len(budgets)):
        matrix[row, one], matrix[row, other] = 1.0, -1.0
    scale = math.fsum(worth.values())
    values = np.zeros(len(parts))
    values[: len(names)] = [-_VALUE_SCALE * worth[name] / scale for name in names]
    solution = milp(
        values,
        constraints=LinearConstraint(matrix.tocsr(), -np.inf, bounds),
        integrality=np.ones(len(parts)),
        bounds=Bounds(0.0, 1.0),
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return ()
    return tuple(sorted(name for name, x in zip(names, solution.x, strict=False) if x > 0.5))


def _budgets(
    constant: ClientCost,
    parts: Sequence[ClientCost],
    resources: ClientResources,
    limit: float,
) -> list[NDArray[np.float64]] | None:
    """Each part's share of what is left of memory and time; None where nothing is left."""
    rows = []
    for left, needed in (
        (resources.memory_bytes - constant.memory_bytes, [one.memory_bytes for one in parts]),
        (limit - constant.seconds(resources), [one.seconds(resources) for one in parts]),
    ):
        if not left > 0.0:
            return None
        if math.isfinite(left):
            rows.append(np.asarray(needed, dtype=np.float64) / left)
    return rows
