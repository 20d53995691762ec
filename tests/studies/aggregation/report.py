"""Writes the study's tables and plots into its home."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import figures
import tables
from intarsia_client.files import write_bytes
from learning_rates import best_rates
from study import Study
from summary import Setting, summarise


def write_report(study: Study, results: Mapping[str, Mapping[str, Any]], home: Path) -> None:
    """Write ``table.csv``, ``table.json``, ``table.md`` and the plots; say how much is missing.

    Args:
        study: The study.
        results: From cells' keys to their results.
        home: The study's home.
    """
    settings = summarise(study, results, best_rates(study, results))
    texts = {
        "table.csv": tables.as_csv(settings),
        "table.json": tables.as_json(settings),
        "table.md": tables.as_markdown(settings),
    }
    for name, text in texts.items():
        write_bytes(home / name, text.encode())
    for path in [*(home / name for name in texts), *figures.draw(settings, home / "plots")]:
        sys.stdout.write(f"{path}\n")
    missing = _missing(settings)
    if missing:
        sys.stdout.write(f"{missing} figures lack some or all of their seeds\n")


def _missing(settings: list[Setting]) -> int:
    return sum(
        not (entry.complete or entry.refused) for setting in settings for entry in setting.entries
    )
