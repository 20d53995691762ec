"""From what the clients have to their ranks and modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from intarsia_aggregators.catalog import CatalogEntry, find_method
from intarsia_client.base_model import BaseModel
from intarsia_client.batches import tokenise
from intarsia_client.errors import InputError
from intarsia_client.records import Record
from intarsia_client.shards import load_shard

from intarsia_platform.configuration import SimulationConfiguration
from intarsia_platform.configuration_tables import AUTO
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.planning.client_plan import RankPlan
from intarsia_platform.planning.costs import CostModel, Exchange, Workload
from intarsia_platform.planning.importance import LARGEST_RANK
from intarsia_platform.planning.planner import PlannedClient, ranks_for
from intarsia_platform.planning.profile import BaseProfile, profile_base
from intarsia_platform.planning.schedule import RankPlanning
from intarsia_platform.simulation.preparation import PreparedData

_Item = TypeVar("_Item")

# What a record is like is read from so many clients, and so many records of each.
_SAMPLED_CLIENTS = 32
_SAMPLED_RECORDS = 32


def prepare_ranks(
    configuration: SimulationConfiguration,
    plan: FederationPlan,
    data: PreparedData,
    base: BaseModel,
) -> tuple[FederationPlan, RankPlanning | None]:
    """Plan the clients' ranks and modules, where the configuration asks for it.

    Clients are planned for twice: once with a broadcast of twice the largest rank that there is,
    which bounds what anybody can afford, then with the broadcast that follows from that bound.

    Args:
        configuration: The simulation.
        plan: The federation's plan.
        data: The split records.
        base: The base model.

    Returns:
        The plan with the ranks that clients may have, and what plans the rounds; the plan as it
        was and None where ranks are given.

    Raises:
        InputError: If the method cannot do with unequal ranks, or nothing fits any client.
    """
    if configuration.lora.ranks != AUTO:
        return plan, None
    method = find_method(configuration.federation.method)
    _check_method(method)
    given = replace(plan, broadcast_rank=configuration.federation.broadcast_rank)
    profile, clients = profile_base(base), _clients(configuration, data, base)

    def planned(largest_rank: int) -> tuple[FederationPlan, RankPlanning, RankPlan]:
        ranks = ranks_for(list(plan.target_modules.values()), largest_rank)
        bounded = replace(given, ranks=ranks).using(method)
        planning = RankPlanning(
            clients=clients,
            costs=_costs(bounded, method, profile),
            round_seconds=configuration.resources.round_seconds,
            replan_rounds=configuration.lora.replan_rounds,
            all_modules=not method.adds_deltas,
            largest_rank=largest_rank,
        )
        first = planning.first()
        return replace(bounded, clients=first.by_client), planning, first

    bounded, planning, first = planned(LARGEST_RANK)
    if not first.largest_rank:
        raise InputError("lora.ranks", f'"{AUTO}"', f"no client can train; {first.notes[0]}")
    if first.largest_rank < bounded.largest_rank:
        bounded, planning, first = planned(first.largest_rank)
    return bounded, planning


def _check_method(method: CatalogEntry) -> None:
    if not method.mixed_ranks:
        raise InputError(
            "lora.ranks", f'"{AUTO}"', f"give one rank to all clients of {method.name}"
        )
    if method.trained_factors(1) == "none":
        raise InputError(
            "lora.ranks", f'"{AUTO}"', f"{method.name} trains heads alone; list one rank"
        )


def _costs(plan: FederationPlan, method: CatalogEntry, profile: BaseProfile) -> CostModel:
    """What training costs under a plan, whichever factors a round trains."""
    trained = {plan.trained_factors(number) for number in (1, 2)}
    received = plan.largest_rank
    if method.name == "ledger":
        received = plan.broadcast_rank
    elif plan.start == "fresh":
        # Every round adds new directions, until the broadcast holds all that there are.
        received = max(min(shape) for shape in plan.target_modules.values())
    return CostModel(
        profile=profile,
        modules=tuple(plan.target_modules),
        exchange=Exchange(
            broadcast_rank=received,
            start=plan.start,
            upload=plan.upload,
            download=plan.download,
            sent=trained.pop() if len(trained) == 1 else "both",
        ),
    )


def _clients(
    configuration: SimulationConfiguration, data: PreparedData, base: BaseModel
) -> list[PlannedClient]:
    """The clients with what they have and how much they train on."""
    training, privacy = configuration.train, configuration.privacy
    records = _sampled(data)
    sequences = tokenise(
        base, records, max_length=training.max_length, one_each=privacy.unit != "none"
    )
    tokens = float(sequences.lengths.sum()) / len(records)
    return [
        PlannedClient(
            name=name,
            resources=configuration.resources.of(turn),
            workload=Workload.of(
                training,
                privacy,
                records=data.train[name].count,
                tokens_per_record=tokens,
                sequences_per_record=max(len(sequences), 1) / len(records),
            ),
        )
        for turn, name in enumerate(sorted(data.train))
    ]


def _sampled(data: PreparedData) -> list[Record]:
    """Records of all kinds of clients: evenly chosen clients, and evenly chosen records of each."""
    chosen: list[Record] = []
    for name in _evenly(sorted(data.train), _SAMPLED_CLIENTS):
        chosen += _evenly(load_shard(name, data.train[name]).records, _SAMPLED_RECORDS)
    return chosen


def _evenly(items: Sequence[_Item], count: int) -> list[_Item]:
    step = max(1.0, len(items) / count)
    return [items[int(place * step)] for place in range(min(count, len(items)))]
