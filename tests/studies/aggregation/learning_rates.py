"""The learning rates of the figures, and the cells that they are chosen by.

All rates of a row are tried in one federation on one split. How far a rate takes a federation
follows from the steps that a client makes in a round, from how many are averaged and from how much
they agree, so everywhere else the best one there is tried again beside its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from study import CENTRAL, LOCAL, Cell, Federation, Place, Rates, Row, Study

Results = Mapping[str, Mapping[str, Any]]
"""From cells' keys to what they gave."""


def wide_rates(study: Study, results: Results) -> dict[tuple[str, Row], float]:
    """Choose each row's learning rate in the federation where all are tried.

    Args:
        study: The study.
        results: What is finished.

    Returns:
        From data set's name and row to the rate; a row with an unfinished cell is absent. Of a
        row that cannot run on a data set, the first rate.
    """
    cells: dict[tuple[str, Row], list[Cell]] = {}
    for cell in study.tuning_cells():
        cells.setdefault((cell.dataset.name, cell.row), []).append(cell)
    return {
        place: rate for place, tried in cells.items() if (rate := _best(tried, results)) is not None
    }


def nearby_cells(study: Study, wide: Mapping[tuple[str, Row], float]) -> list[Cell]:
    """The cells that rates are chosen by in the other federations and on the other splits.

    Args:
        study: The study.
        wide: As :func:`wide_rates` gives them; rows that it lacks are left out.

    Returns:
        The cells, each once.
    """
    found = [cell for cells in _nearby(study, wide).values() for cell in cells]
    return list({cell.key: cell for cell in found}.values())


def best_rates(study: Study, results: Results) -> Rates:
    """Choose each row's learning rate in each federation on each split.

    Args:
        study: The study.
        results: What is finished.

    Returns:
        The rates; absent where a cell that decides it is not finished. Central training knows
        neither federation nor split and has one, and the head alone has none that matters.
    """
    wide = wide_rates(study, results)
    found: Rates = {}
    for (name, row), rate in wide.items():
        for federation in study.federations:
            for partition in study.partitions:
                if row == CENTRAL or row.head_alone or _wide(study, federation, partition):
                    found[name, row, federation, partition] = rate
    for place, tried in _nearby(study, wide).items():
        if (rate := _best(tried, results)) is not None:
            found[place] = rate
    return found


def _wide(study: Study, federation: Federation, partition: str) -> bool:
    """Whether all rates are tried here."""
    return (federation, partition) == (study.tuning_federation, study.tuning_partition)


def _nearby(study: Study, wide: Mapping[tuple[str, Row], float]) -> dict[Place, list[Cell]]:
    return {
        (dataset.name, row, federation, partition): [
            study.cell(dataset, row, federation, partition, study.tuning_seed, rate, tuning=True)
            for rate in _neighbours(dataset.learning_rates, wide[dataset.name, row])
        ]
        for dataset in study.datasets
        for federation in study.federations
        for partition in study.partitions
        if not _wide(study, federation, partition)
        for row in (LOCAL, *study.rows)
        if (dataset.name, row) in wide and study.is_run(row, federation) and not row.head_alone
    }


def _neighbours(rates: Iterable[float], middle: float) -> list[float]:
    ordered = sorted(rates)
    place = ordered.index(middle)
    return ordered[max(0, place - 1) : place + 2]


def _best(tried: Iterable[Cell], results: Results) -> float | None:
    """The rate of the best of some cells, the smaller of equal ones; None before all are there."""
    worst: list[tuple[float, float]] = []
    for cell in tried:
        told = results.get(cell.key)
        if told is None:
            return None
        worse = told.get(cell.dataset.measure, float("inf"))
        if cell.dataset.measure == "accuracy":
            worse = -told.get("accuracy", 0.0)
        worst.append((worse, cell.learning_rate))
    return min(worst)[1]
