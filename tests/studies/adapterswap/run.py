"""AdapterSwap's tables: access, retrieval, groups one after the other, deletion.

    python tests/studies/adapterswap/run.py [--reduced] [--home DIR] [--shared ../shared/data]

Runs what is not finished in the home, then writes the tables and plots there. Killed anywhere, it
goes on where it stopped. ``--report`` only writes the tables and plots of what is finished.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterswap_data import base_path, draw_groups
from adapterswap_study import Cell, Study, read_study
from intarsia_client.errors import IntarsiaError

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))

from cell_workers import Workers, say  # noqa: E402
from kept_cells import keep_results, read_results, take_results  # noqa: E402


def with_data(study: Study, shared: Path) -> tuple[Study, list[str]]:
    """The study on the data sets that are there.

    Args:
        study: The study.
        shared: The folder of shared data.

    Returns:
        The study, and a line for each data set that is not there.
    """
    there, absent = [], []
    for dataset in study.datasets:
        try:
            draw_groups(dataset, shared, study.seeds[0])
            base_path(dataset, shared)
        except IntarsiaError as error:
            absent.append(f"{dataset.name} is left out: {error}")
        else:
            there.append(dataset)
    return replace(study, datasets=tuple(there)), absent


def unfinished(study: Study, results: Mapping[str, Any], only: Sequence[str]) -> list[Cell]:
    """The cells without a result whose title has all the words."""
    return [
        cell
        for cell in study.cells()
        if cell.key not in results and all(word in cell.title for word in only)
    ]


def run(study: Study, options: argparse.Namespace) -> list[str]:
    """Run what is not finished; give what failed, a line each."""
    cells = unfinished(study, read_results(options.home), options.only)
    say(f"{len(cells)} cells to run, {len(study.cells())} in all")
    if not cells:
        return []
    command = (HERE / "adapterswap_worker.py", options.home, options.shared)
    workers = Workers(command, min(options.workers, len(cells)), len(study.cells()))
    try:
        workers.run(cells)
    finally:
        workers.close()
    return workers.failed


def main() -> int:
    """Run the study and write what it found; 1 where something failed or data is absent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(".intarsia/studies/adapterswap"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--configuration", type=Path, default=HERE / "study.toml")
    parser.add_argument("--reduced", action="store_true", help="fewer groups, records and seeds")
    parser.add_argument("--report", action="store_true", help="only write tables and plots")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--take", type=Path, help="a file of finished cells to go on from")
    parser.add_argument("--keep", type=Path, help="write all finished cells into this file")
    parser.add_argument(
        "--only", nargs="*", default=[], help="only cells whose title has these words"
    )
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    if options.take:
        say(f"{take_results(options.take, options.home)} cells taken from {options.take}")
    study = read_study(options.configuration, reduced=options.reduced)
    absent: list[str] = []
    failed: list[str] = []
    if not options.report:
        there, absent = with_data(study, options.shared)
        failed = [*absent, *run(there, options)]
    from adapterswap_report import write_report

    write_report(study, read_results(options.home), options.home, absent)
    if options.keep:
        say(f"{keep_results(options.home, options.keep)} cells kept in {options.keep}")
    for line in failed:
        say(f"FAILED {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
