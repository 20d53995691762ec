"""Writes the study's tables and plots into its home."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from adapterswap_plots import draw
from adapterswap_study import Study
from adapterswap_summary import Results, figures
from adapterswap_tables import as_csv, as_json, as_markdown
from intarsia_client.files import write_bytes


def write_report(
    study: Study, results: Results, home: Path, absent: Sequence[str] = ()
) -> list[Path]:
    """Write ``table.csv``, ``table.json``, ``table.md`` and the plots; say how much is missing.

    Args:
        study: The study.
        results: From cells' keys to their results.
        home: The study's home.
        absent: A line for each data set that was left out.

    Returns:
        The files.
    """
    found = figures(study, results)
    texts = {
        "table.csv": as_csv(found),
        "table.json": as_json(study, results, found),
        "table.md": as_markdown(study, found, absent),
    }
    for name, text in texts.items():
        write_bytes(home / name, text.encode())
    written = [*(home / name for name in texts), *draw(study, results, found, home / "plots")]
    for path in written:
        sys.stdout.write(f"{path}\n")
    missing = sum(cell.key not in results for cell in study.cells())
    if missing:
        sys.stdout.write(f"{missing} cells are not finished\n")
    return written
