"""The aggregation study: every method in every setting, with a table and plots.

    python tests/studies/aggregation/run.py [--reduced] [--home DIR] [--shared ../shared/data]

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

from intarsia_client.errors import InputError
from learning_rates import best_rates, nearby_cells, wide_rates
from study import Cell, Dataset, Study, read_study
from texts import base_path, read_texts

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "shared"))

from cell_workers import Workers, say  # noqa: E402
from kept_cells import keep_results, read_results, take_results  # noqa: E402

FINISHED = HERE / "finished.jsonl"


def shown(cell: Cell, result: Mapping[str, Any]) -> str:
    """A result's one figure."""
    measure = cell.dataset.measure
    return f"{measure} {result[measure]:.4g}" if measure in result else "refused"


def unfinished(cells: Sequence[Cell], results: Mapping[str, Any]) -> list[Cell]:
    """The cells without a result."""
    return [cell for cell in cells if cell.key not in results]


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose title has all the words."""
    return [cell for cell in cells if all(word in cell.title for word in only)]


def stages(study: Study, results: Mapping[str, Any], only: Sequence[str]) -> list[list[Cell]]:
    """What has to be run, in the order in which it has to be.

    Args:
        study: The study.
        results: What is finished.
        only: Words that the titles of the figures' cells have.

    Returns:
        The cells that learning rates are chosen by in one federation, in the others and on other
        splits, and the figures' cells; with some rate where it is not known before the others are
        finished.
    """
    wide = {(cell.dataset.name, cell.row): cell.learning_rate for cell in study.tuning_cells()}
    wide |= wide_rates(study, results)
    rates = {
        (name, row, federation, partition): rate
        for (name, row), rate in wide.items()
        for federation in study.federations
        for partition in study.partitions
    }
    figures = chosen(study.cells(rates | best_rates(study, results)), only)
    rows = {(cell.dataset.name, cell.row) for cell in figures}
    places = {(cell.dataset.name, cell.row, cell.federation, cell.partition) for cell in figures}
    return [
        [cell for cell in study.tuning_cells() if (cell.dataset.name, cell.row) in rows],
        [
            cell
            for cell in nearby_cells(study, wide)
            if (cell.dataset.name, cell.row, cell.federation, cell.partition) in places
        ],
        figures,
    ]


def run(study: Study, options: argparse.Namespace) -> list[str]:
    """Run what is not finished.

    Args:
        study: The study.
        options: The command line.

    Returns:
        What failed, a line each.
    """
    study, absent = with_data(study, options.shared)
    results = read_results(options.home)
    planned = stages(study, results, options.only)
    *tuning, figures = (len(unfinished(cells, results)) for cells in planned)
    say(f"{sum(tuning)} cells to choose learning rates by, {figures} for the figures")
    if not sum(tuning) and not figures:
        return absent
    command = (HERE / "worker.py", options.home, options.shared)
    workers = Workers(command, options.workers, sum(map(len, planned)), shown)
    try:
        for stage in range(len(tuning)):
            now, *later = stages(study, results, options.only)[stage:]
            rest = [cell for cells in later for cell in unfinished(cells, results)]
            workers.run(unfinished(now, results), rest)
            results |= workers.results
        # Where a cell failed that decides a rate, its figures are left out.
        last = chosen(study.cells(best_rates(study, results)), options.only)
        workers.run(unfinished(last, results))
    finally:
        workers.close()
    return [*absent, *workers.failed]


def with_data(study: Study, shared: Path) -> tuple[Study, list[str]]:
    """The study on the data sets that are there.

    Args:
        study: The study.
        shared: The folder of shared data.

    Returns:
        The study, and a line for each data set that is not there.
    """
    there: list[Dataset] = []
    absent: list[str] = []
    for dataset in study.datasets:
        try:
            read_texts(dataset, shared)
            base_path(dataset, shared)
        except InputError as error:
            absent.append(str(error))
            say(f"{dataset.name} is left out: {error}")
        else:
            there.append(dataset)
    return replace(study, datasets=tuple(there)), absent


def main() -> int:
    """Run the study and write what it found; 1 where something failed or data is absent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(".intarsia/studies/aggregation"))
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--configuration", type=Path, default=HERE / "study.toml")
    parser.add_argument(
        "--reduced",
        action="store_true",
        help="one federation and split, two seeds, no variants, learning rates of finished cells",
    )
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
    if options.reduced:
        tuned = {cell.key for cell in study.tuning_cells()}
        say(f"{take_results(FINISHED, options.home, only=tuned)} learning rates' cells taken")
    failed = [] if options.report else run(study, options)
    from report import write_report

    write_report(study, read_results(options.home), options.home)
    if options.keep:
        say(f"{keep_results(options.home, options.keep)} cells kept in {options.keep}")
    for line in failed:
        say(f"FAILED {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
