"""From finished cells to figures: a number for each seed, means and standard errors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterswap_parts import (
    BASE,
    CHOSEN,
    CHRONOLOGICAL,
    LEARNERS,
    ONE_FOR_ALL,
    OWN,
    RETRIEVERS,
    ROUTED,
    WAYS,
)
from adapterswap_study import ACCESS, CONTINUAL, DELETION, RETRIEVAL, Dataset, Study
from intarsia_continual.continual_metrics import (
    average_at_end,
    averages_over_arrivals,
    backward_transfer,
    forgetting,
    forward_transfer,
)

_FEWEST_TO_CHOOSE = 4

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of one data set.

    Args:
        part: Which part it is of.
        data: The data set's name.
        row: Whose it is: a way of answering, a retriever, a learner.
        name: What it is.
        unit: What it is counted in.
        values: One for each finished seed.
        expected: How many seeds there should be.
    """

    part: str
    data: str
    row: str
    name: str
    unit: str
    values: tuple[float, ...]
    expected: int

    @property
    def mean(self) -> float:
        """Mean over the finished seeds; there must be one."""
        return statistics.fmean(self.values)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for fewer than two seeds."""
        if len(self.values) < 2:
            return None
        return statistics.stdev(self.values) / math.sqrt(len(self.values))


Numbers = Iterator[tuple[str, str, str, float]]
"""Row, name, unit and value of one seed."""


def shown(dataset: Dataset, values: Sequence[float]) -> float:
    """What the tables show of several groups' values, each group counting alike.

    Args:
        dataset: The data set.
        values: Mean log-likelihoods of a token, or accuracies.

    Returns:
        The perplexity of their mean, or the mean accuracy.
    """
    mean = statistics.fmean(values)
    return mean if dataset.measure == "accuracy" else math.exp(min(-mean, 700.0))


def figures(study: Study, results: Results) -> list[Figure]:
    """Every figure of the study.

    Args:
        study: The study.
        results: From cells' keys to their results.

    Returns:
        The figures of all parts and data sets; those without a finished seed are not there.
    """
    readers = {
        ACCESS: _of_access,
        RETRIEVAL: _of_retrieval,
        CONTINUAL: _of_continual,
        DELETION: _of_deletion,
    }
    found = []
    for part in study.parts:
        for dataset in study.datasets:
            seen: dict[tuple[str, str, str], list[float]] = {}
            for told in finished(study, results, dataset, part):
                for row, name, unit, value in readers[part](dataset, told):
                    seen.setdefault((row, name, unit), []).append(value)
            found += [
                Figure(
                    part=part,
                    data=dataset.name,
                    row=row,
                    name=name,
                    unit=unit,
                    values=tuple(values),
                    expected=len(study.seeds),
                )
                for (row, name, unit), values in seen.items()
            ]
    return found


def finished(
    study: Study, results: Results, dataset: Dataset, part: str
) -> list[Mapping[str, Any]]:
    """The results of a part on a data set, one for each finished seed."""
    keys = [study.cell(dataset, part, seed).key for seed in study.seeds]
    return [results[key] for key in keys if key in results]


def mean_curves(study: Study, results: Results, dataset: Dataset) -> dict[str, list[float]]:
    """After each arrival the mean over the groups that have come, by learner.

    Args:
        study: The study.
        results: From cells' keys to their results.
        dataset: The data set.

    Returns:
        What the tables show, mean over the finished seeds; empty where none is finished. The base
        alone is there too, over the same groups.
    """
    told = finished(study, results, dataset, CONTINUAL)
    curves: dict[str, list[float]] = {}
    for learner in (*LEARNERS, BASE) if told else ():
        rows = []
        for one in told:
            matrix = one[learner] if learner != BASE else [one[BASE]] * len(one[BASE])
            rows.append([shown(dataset, [value]) for value in averages_over_arrivals(matrix)])
        curves[learner] = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    return curves


def is_had(way: str, dataset: Dataset) -> bool:
    """Whether a data set's base can be asked so: a router divides no classification heads."""
    return dataset.measure != "accuracy" or way not in ROUTED.values()


def _of_access(dataset: Dataset, told: Mapping[str, Any]) -> Numbers:
    values = told["values"]
    for way in (way for way in WAYS if is_had(way, dataset)):
        yield way, dataset.measure, dataset.measure, shown(dataset, list(values[way].values()))
    for way, share in sorted(told["alone"].items()):
        yield way, "base alone", "share", share


def _of_retrieval(dataset: Dataset, told: Mapping[str, Any]) -> Numbers:
    del dataset
    # In their own order: a file of finished cells has them in another one.
    for retriever in RETRIEVERS:
        found = told["retrievers"][retriever]
        for name in ("top-1", "top-2", "top-3"):
            yield retriever, name, "share", found[name]
        # Who may use half of fewer groups may use one, and there is nothing to choose.
        if told["groups"] >= _FEWEST_TO_CHOOSE:
            yield retriever, "changed", "share", found["changed"]
    for k in (1, 2, 3):
        yield "chance", f"top-{k}", "share", min(1.0, k / told["groups"])


def _of_continual(dataset: Dataset, told: Mapping[str, Any]) -> Numbers:
    unit = "share" if dataset.measure == "accuracy" else "nats"
    for learner in LEARNERS:
        matrix = told[learner]
        at_end = shown(dataset, [average_at_end(matrix)])
        yield learner, "at end", dataset.measure, at_end
        fresh = [row[place] for place, row in enumerate(matrix)]
        yield learner, "when it came", dataset.measure, shown(dataset, fresh)
        yield learner, "backward transfer", unit, backward_transfer(matrix)
        yield learner, "forgetting", unit, forgetting(matrix)
    for learner in (CHOSEN, CHRONOLOGICAL):
        value = forward_transfer(told[learner], told[BASE])
        yield learner, "forward transfer", unit, value


def _of_deletion(dataset: Dataset, told: Mapping[str, Any]) -> Numbers:
    cost, values = told["cost"], told["values"]
    for which in (OWN, ONE_FOR_ALL):
        yield which, "seconds", "CPU s", cost[which]["seconds"]
        yield which, "steps", "steps", cost[which]["steps"]
        for when in ("before", "after"):
            for asked, value in sorted(values[f"{which}, {when}"].items()):
                yield which, f"{asked}, {when}", dataset.measure, shown(dataset, [value])
    for asked, value in sorted(values[BASE].items()):
        yield BASE, f"{asked}, before", dataset.measure, shown(dataset, [value])
    for name in ("seconds", "steps"):
        ratio = cost[ONE_FOR_ALL][name] / cost[OWN][name]
        yield "ratio", name, "times", ratio
    yield OWN, "describing", "CPU s", told["describing"]
    yield OWN, "removed", "records", told["removed"]
