"""From finished cells to figures: means, standard errors, the best method of every setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from study import CENTRAL, LOCAL, Cell, Dataset, Federation, Rates, Row, Study

LEDGER = "ledger"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row in one setting.

    Args:
        row: The row.
        rate: Its learning rate; None where that is not chosen yet.
        values: The measure of each finished seed, in the order of the seeds.
        seeds: The finished seeds.
        expected: How many seeds there should be.
        refused: Why the method cannot be had here; empty where it can.
        curve: From rounds to the mean measure, only of rounds that all finished seeds have.
        down: Mean bytes that a client is sent in each round.
        up: Mean bytes that a client sends in each round.
        held_back: Mean share of the global adapter's energy not published at the end.
    """

    row: Row
    rate: float | None
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    expected: int = 0
    refused: str = ""
    curve: tuple[tuple[int, float], ...] = ()
    down: tuple[float, ...] = ()
    up: tuple[float, ...] = ()
    held_back: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every seed is there."""
        return len(self.values) == self.expected and bool(self.values)

    @property
    def mean(self) -> float:
        """Mean over the finished seeds; there must be one."""
        return statistics.fmean(self.values)

    @property
    def error(self) -> float | None:
        """Standard error of the mean; None for fewer than two seeds."""
        return standard_error(self.values)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How the ledger does beside the best method.

    Args:
        best: The best method of the catalogue.
        gap: How much better the best is, in the measure's units; 0 where it is the ledger.
        in_errors: ``gap`` in standard errors of the best method's mean.
        paired: Mean and standard error over the seeds of how much better the best is; seeds share
            split, test set and head, so that much of their variation falls out.
    """

    best: Entry
    gap: float
    in_errors: float | None
    paired: tuple[float, float | None]

    @property
    def within_one(self) -> bool | None:
        """Whether the ledger is the best or within one standard error; None where unknown."""
        if self.gap == 0.0:
            return True
        return None if self.in_errors is None else self.in_errors <= 1.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All rows in one setting.

    Args:
        dataset: The data.
        federation: Over whom.
        partition: How it is split.
        entries: Central, the rows in the order of the tables, local.
    """

    dataset: Dataset
    federation: Federation
    partition: str
    entries: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """What the tables say."""
        split = self.partition.replace("iid", "IID").replace("dirichlet:", "Dirichlet ")
        return f"{self.federation.title}, {split}"

    def entry(self, name: str) -> Entry:
        """The entry of a row by its name."""
        return next(entry for entry in self.entries if entry.row.name == name)

    @property
    def verdict(self) -> Verdict | None:
        """How the ledger does; None before it and at least one other method are complete."""
        methods = [
            entry for entry in self.entries if entry.complete and entry.row.name == entry.row.method
        ]
        found = {entry.row.name: entry for entry in methods if entry.row not in (CENTRAL, LOCAL)}
        if LEDGER not in found or len(found) < 2:
            return None
        ledger, best = found[LEDGER], max(found.values(), key=self.goodness)
        better = [
            self.sign * (one - other) for one, other in zip(best.values, ledger.values, strict=True)
        ]
        gap = statistics.fmean(better)
        return Verdict(
            best=best,
            gap=gap,
            in_errors=gap / best.error if best.error else None,
            paired=(gap, standard_error(better)),
        )

    @property
    def sign(self) -> float:
        """1 where more is better, -1 where less is."""
        return 1.0 if self.dataset.measure == "accuracy" else -1.0

    def goodness(self, entry: Entry) -> float:
        """Larger is better."""
        return self.sign * entry.mean


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) / math.sqrt(len(values))


def summarise(
    study: Study,
    results: Mapping[str, Mapping[str, Any]],
    rates: Rates,
) -> list[Setting]:
    """Gather the finished cells.

    Args:
        study: The study.
        results: From cells' keys to their results.
        rates: The chosen learning rates.

    Returns:
        Every setting, with every row; what is not finished is visibly so.
    """
    return [
        Setting(
            dataset=dataset,
            federation=federation,
            partition=partition,
            entries=tuple(
                _entry(study, results, rates, (dataset, row, federation, partition))
                for row in (CENTRAL, *study.rows, LOCAL)
            ),
        )
        for dataset in study.datasets
        for federation in study.federations
        for partition in study.partitions
    ]


def _entry(
    study: Study,
    results: Mapping[str, Mapping[str, Any]],
    rates: Rates,
    place: tuple[Dataset, Row, Federation, str],
) -> Entry:
    dataset, row, federation, partition = place
    rate = rates.get((dataset.name, row, federation, partition))
    if not study.is_run(row, federation):
        return Entry(row=row, rate=rate, refused="variants are not run here")
    if rate is None:
        return Entry(row=row, rate=None, expected=len(study.seeds))
    cells: dict[int, Cell] = {
        seed: study.cell(dataset, row, federation, partition, seed, rate) for seed in study.seeds
    }
    found = {seed: results[cell.key] for seed, cell in cells.items() if cell.key in results}
    refusals = [told["refused"] for told in found.values() if "refused" in told]
    done = {seed: told for seed, told in found.items() if "refused" not in told}
    return Entry(
        row=row,
        rate=rate,
        values=tuple(told[dataset.measure] for told in done.values()),
        seeds=tuple(done),
        expected=len(study.seeds),
        refused=refusals[0] if refusals else "",
        curve=_mean_curve([told["curve"] for told in done.values()]),
        down=_mean_of([told.get("down", []) for told in done.values()]),
        up=_mean_of([told.get("up", []) for told in done.values()]),
        held_back=(_mean_of([told.get("residual_energy", []) for told in done.values()]) or (0.0,))[
            -1
        ],
    )


def _mean_curve(curves: Sequence[Sequence[Mapping[str, float]]]) -> tuple[tuple[int, float], ...]:
    points = [{int(point["round"]): point["measure"] for point in curve} for curve in curves]
    common = sorted(set.intersection(*map(set, points))) if points else []
    return tuple((number, statistics.fmean(point[number] for point in points)) for number in common)


def _mean_of(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(statistics.fmean(column) for column in zip(*lists, strict=True)) if lists else ()
