"""The learning rates that follow from finished tuning cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study import Row, Study


def best_rates(
    study: Study, results: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, Row], float]:
    """Choose each row's learning rate by its tuning cells.

    Args:
        study: The study.
        results: From cells' keys to what they gave.

    Returns:
        From data set's name and row to the rate; a row with an unfinished tuning cell is absent.
        Of a row that cannot run on a data set, the first rate.
    """
    found: dict[tuple[str, Row], list[tuple[float, float]]] = {}
    missing: set[tuple[str, Row]] = set()
    for cell in study.tuning_cells():
        place = (cell.dataset.name, cell.row)
        told = results.get(cell.key)
        if told is None:
            missing.add(place)
            continue
        worse = told.get(cell.dataset.measure, float("inf"))
        if cell.dataset.measure == "accuracy":
            worse = -told.get("accuracy", 0.0)
        found.setdefault(place, []).append((worse, cell.learning_rate))
    return {place: min(tried)[1] for place, tried in found.items() if place not in missing}
