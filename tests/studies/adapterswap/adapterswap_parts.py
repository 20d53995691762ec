"""The four parts: access, retrieval, groups one after the other, deletion."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from adapterswap_data import RecordGroups
from adapterswap_scoring import Chooser, Weights, own_adapters, same_for_all, scorer
from adapterswap_study import ACCESS, CONTINUAL, DELETION, RETRIEVAL
from adapterswap_training import Trained, Workshop
from intarsia_client.records import Record
from intarsia_continual.descriptors.catalog import CATALOG, DEFAULT, describe
from intarsia_continual.encoders import TextEncoder
from retrieval_figures import JOINT, Independent, Joint, common_figures
from retrieval_groups import Groups

BASE, OWN, WITHOUT = "base", "own", "without own"
UNIFORM, ONE_FOR_ALL = "uniform", "one for all"
RETRIEVED = {1: "retrieved 1", 2: "retrieved 2", 3: "retrieved 3"}
ROUTED = {"arrow": "routed by arrow", "lag": "routed by lag"}
WAYS = (BASE, OWN, *RETRIEVED.values(), *ROUTED.values(), WITHOUT, UNIFORM, ONE_FOR_ALL)
TOLD, CHOSEN, CHRONOLOGICAL = "told", "retrieved", "chronological"
LEARNERS = (TOLD, CHOSEN, CHRONOLOGICAL)
RETRIEVERS = (*(entry.method.name for entry in CATALOG), JOINT)


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """What a part works with.

    Args:
        groups: The seed's records.
        workshop: Trains adapters.
        encoder: Reads texts for retrieval, each once.
        plain_encoder: The same without a memory, for its time to be measured.
        seed: The seed.
        removed: Share of one group's records that is deleted.
    """

    groups: RecordGroups
    workshop: Workshop
    encoder: TextEncoder
    plain_encoder: TextEncoder
    seed: int
    removed: float

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.workshop.settings.max_length

    def own_adapters(self) -> dict[str, Trained]:
        """Every group's adapter."""
        return {name: self.workshop.kept(found) for name, found in self.groups.train.items()}

    def chooser(self) -> Chooser:
        """The platform's default retrieval over every group."""
        described = {
            name: describe(DEFAULT.method, self.encoder, _texts(found), seed=self.seed)
            for name, found in self.groups.train.items()
        }
        queries = {
            name: self.encoder.encode(_texts(found)) for name, found in self.groups.held_out.items()
        }
        return Chooser(DEFAULT.method, described, queries, self.encoder.digest)


def run_part(part: str, here: Workplace) -> dict[str, Any]:
    """Run one part.

    Args:
        part: One of the study's parts.
        here: What it works with.

    Returns:
        What it found, ready for JSON.
    """
    parts = {
        ACCESS: access,
        RETRIEVAL: retrieval,
        CONTINUAL: continual,
        DELETION: deletion,
    }
    return parts[part](here)


def access(here: Workplace) -> dict[str, Any]:
    """What callers with and without access get.

    Args:
        here: What it works with.

    Returns:
        ``values``: from each of :data:`WAYS` to each group's value, of a classifier without
        :data:`ROUTED`, which divides no heads; ``alone``: from each way that
        retrieves to the share of records that the base answered alone; ``cost``: processor time
        and steps of all the groups' adapters, and of the one for all.
    """
    groups, own = here.groups, here.own_adapters()
    whole = here.workshop.kept(groups.everything)
    chooser, names = here.chooser(), groups.names
    mixtures: dict[str, list[Weights]] = {
        BASE: same_for_all(groups, ()),
        OWN: own_adapters(groups),
        **{way: chooser.choose(_always(names), k) for k, way in RETRIEVED.items()},
        WITHOUT: chooser.choose(lambda mine: [name for name in names if name != mine]),
        UNIFORM: same_for_all(groups, tuple((name, 1 / len(names)) for name in names)),
    }
    base, length = here.workshop.base, here.max_length
    with scorer(base, own, max_length=length) as find:
        values = {way: find(groups.held_out, found) for way, found in mixtures.items()}
        for routing, way in ROUTED.items() if base.task == "causal-lm" else ():
            values[way] = find(groups.held_out, mixtures[UNIFORM], routing)
    with scorer(base, {ONE_FOR_ALL: whole}, max_length=length) as find:
        values[ONE_FOR_ALL] = find(groups.held_out, same_for_all(groups, ((ONE_FOR_ALL, 1.0),)))
    return {
        "values": values,
        "alone": {
            way: float(np.mean([not one for one in mixtures[way]]))
            for way in (*RETRIEVED.values(), WITHOUT)
        },
        "cost": {
            OWN: _cost(list(own.values())),
            ONE_FOR_ALL: _cost([whole]),
        },
    }


def retrieval(here: Workplace) -> dict[str, Any]:
    """How often each retriever finds a held-out text's own group.

    Args:
        here: What it works with.

    Returns:
        ``retrievers``: from each retriever to the figures of the retrieval study, on this study's
        records; ``groups``: how many there are.
    """
    groups = Groups(
        name="",
        documents={name: _texts(found) for name, found in here.groups.train.items()},
        queries={name: _texts(found) for name, found in here.groups.held_out.items()},
    )
    queries = {name: here.encoder.encode(found) for name, found in groups.queries.items()}
    retrievers: list[Independent | Joint] = [
        *(Independent(entry.method, here.encoder, groups) for entry in CATALOG),
        Joint(here.encoder, groups),
    ]
    return {
        "retrievers": {one.name: common_figures(one, queries) for one in retrievers},
        "groups": len(groups.documents),
    }


def continual(here: Workplace) -> dict[str, Any]:
    """Groups come one after the other: a new adapter each, against one that is trained on.

    Args:
        here: What it works with.

    Returns:
        ``order``: the groups as they come; ``base``: each one's value before any; from each of
        :data:`LEARNERS` its matrix, a row after each arrival, a column for each group; ``steps``:
        of all the groups' adapters, and of the one that is trained on.
    """
    groups, base = here.groups, here.workshop.base
    order = [
        groups.names[place] for place in _generator(here, "order").permutation(len(groups.names))
    ]
    own, chooser = here.own_adapters(), here.chooser()

    def in_order(values: Mapping[str, float]) -> list[float]:
        return [values[name] for name in order]

    with scorer(base, own, max_length=here.max_length) as find:
        alone = in_order(find(groups.held_out, same_for_all(groups, ())))
        with_own = in_order(find(groups.held_out, own_adapters(groups)))
        chosen = []
        for number in range(1, len(order) + 1):
            mixtures = chooser.choose(_always(order[:number]))
            chosen.append(in_order(find(groups.held_out, mixtures)))
    told = [with_own[: end + 1] + alone[end + 1 :] for end in range(len(order))]
    chronological, steps = [], 0
    before: Trained | None = None
    for name in order:
        records = groups.train[name]
        # The first group's is that group's own adapter: both begin in the same way.
        before = (
            here.workshop.kept(records)
            if before is None
            else here.workshop.continued(before.adapter, records)
        )
        steps += before.steps
        with scorer(base, {name: before}, max_length=here.max_length) as find:
            found = find(groups.held_out, same_for_all(groups, ((name, 1.0),)))
        chronological.append(in_order(found))
    return {
        "order": order,
        "base": alone,
        TOLD: told,
        CHOSEN: chosen,
        CHRONOLOGICAL: chronological,
        "steps": {OWN: sum(one.steps for one in own.values()), CHRONOLOGICAL: steps},
    }


def deletion(here: Workplace) -> dict[str, Any]:
    """Some records of one group have to go: one adapter again, or the one for all again.

    Args:
        here: What it works with.

    Returns:
        ``group``, ``removed`` records, ``cost`` of training each again, the seconds of describing
        the group again, and ``values``: of the group's held-out and of the removed records with
        each adapter before and after, and with the base alone.
    """
    groups, workshop = here.groups, here.workshop
    generator = _generator(here, "deletion")
    name = groups.names[int(generator.integers(len(groups.names)))]
    records = groups.train[name]
    count = max(1, round(here.removed * len(records)))
    places = set(generator.permutation(len(records))[:count].tolist())
    gone = [one for place, one in enumerate(records) if place in places]
    rest = [one for place, one in enumerate(records) if place not in places]
    left = {**groups.train, name: rest}
    everything = [one for found in left.values() for one in found]
    after = {OWN: workshop.trained(rest), ONE_FOR_ALL: workshop.trained(everything)}
    begun = time.process_time()
    describe(DEFAULT.method, here.plain_encoder, _texts(rest), seed=here.seed)
    describing = time.process_time() - begun
    adapters = {
        f"{OWN}, before": workshop.kept(records),
        f"{ONE_FOR_ALL}, before": workshop.kept(groups.everything),
        **{f"{which}, after": one for which, one in after.items()},
    }
    asked: dict[str, Sequence[Record]] = {"held out": groups.held_out[name], "removed": gone}
    total = sum(map(len, asked.values()))
    with scorer(workshop.base, adapters, max_length=here.max_length) as find:
        values = {way: find(asked, [((way, 1.0),)] * total) for way in adapters} | {
            BASE: find(asked, [()] * total)
        }
    return {
        "group": name,
        "removed": count,
        "cost": {which: _cost([one]) for which, one in after.items()},
        "describing": describing,
        "values": values,
    }


def _always(names: Sequence[str]) -> Callable[[str], Sequence[str]]:
    """Who may use the same groups whatever the record."""
    return lambda _: names


def _cost(trained: Sequence[Trained]) -> dict[str, float]:
    return {
        "seconds": sum(one.seconds for one in trained),
        "steps": sum(one.steps for one in trained),
    }


def _texts(records: Sequence[Record]) -> list[str]:
    return [record.text for record in records]


def _generator(here: Workplace, purpose: str) -> np.random.Generator:
    return np.random.default_rng([here.seed, *purpose.encode()])
