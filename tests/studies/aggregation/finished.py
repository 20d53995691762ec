"""Finished cells: where they lie, how they travel, the learning rates that follow from them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from intarsia_client.files import canonical_json, write_bytes
from study import Cell, Row, Study


def cell_file(home: Path, cell: Cell) -> Path:
    """Where a finished cell lies.

    Args:
        home: The study's home.
        cell: The cell.

    Returns:
        A JSON file's path.
    """
    return home / "cells" / f"{cell.key}.json"


def read_results(home: Path) -> dict[str, dict[str, Any]]:
    """What is finished.

    Args:
        home: The study's home.

    Returns:
        From cells' keys to their results.
    """
    return {key: told["result"] for key, told in _finished(home).items()}


def keep_results(home: Path, archive: Path) -> int:
    """Write everything that is finished into one file, a line a cell in the order of their keys.

    Args:
        home: The study's home.
        archive: The file.

    Returns:
        How many cells.
    """
    found = _finished(home)
    lines = [canonical_json({"key": key, **told}) for key, told in found.items()]
    write_bytes(archive, b"".join(line + b"\n" for line in lines))
    return len(lines)


def take_results(archive: Path, home: Path, *, only: Collection[str] | None = None) -> int:
    """Put an archive's cells into a home; those that are there already stay.

    Args:
        archive: A file of :func:`keep_results`.
        home: The study's home.
        only: The keys of those to put there, None for all.

    Returns:
        How many cells were put there.
    """
    taken = 0
    for line in archive.read_text().splitlines():
        told = json.loads(line)
        key = told.pop("key")
        path = home / "cells" / f"{key}.json"
        if not path.exists() and (only is None or key in only):
            write_bytes(path, canonical_json(told) + b"\n")
            taken += 1
    return taken


def _finished(home: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((home / "cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


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
