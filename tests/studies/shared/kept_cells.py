"""Finished cells of a study: where they lie, and how they travel to another machine."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from intarsia_client.files import canonical_json, write_bytes


class Cell(Protocol):
    """One run of a study; a frozen dataclass."""

    @property
    def key(self) -> str:
        """Names what the cell is made of."""

    @property
    def title(self) -> str:
        """One line for a person."""

    @property
    def cost_class(self) -> tuple[object, ...]:
        """Cells of one class take about as long."""


def cell_file(home: Path, key: str) -> Path:
    """Where a finished cell lies.

    Args:
        home: The study's home.
        key: The cell's key.

    Returns:
        A JSON file's path.
    """
    return home / "cells" / f"{key}.json"


def write_result(home: Path, cell: Cell, result: Mapping[str, Any]) -> None:
    """Keep a finished cell, whole or not at all.

    Args:
        home: The study's home.
        cell: The cell.
        result: What came of it.
    """
    told = {"cell": asdict(cell), "result": result}  # type: ignore[call-overload]
    write_bytes(cell_file(home, cell.key), json.dumps(told, indent=1).encode() + b"\n")


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
    lines = [canonical_json({"key": key, **told}) + b"\n" for key, told in found.items()]
    write_bytes(archive, b"".join(lines))
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
        path = cell_file(home, key)
        if not path.exists() and (only is None or key in only):
            write_bytes(path, canonical_json(told) + b"\n")
            taken += 1
    return taken


def _finished(home: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((home / "cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}
