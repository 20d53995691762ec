"""The aggregation study: every method in every setting, with a table and plots.

    python tests/studies/aggregation/run.py [--reduced] [--home DIR] [--shared ../shared/data]

Runs what is not finished in the home, then writes the tables and plots there. Killed anywhere, it
goes on where it stopped. ``--report`` only writes the tables and plots of what is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finished import best_rates, keep_results, read_results, take_results
from intarsia_client.errors import InputError
from study import (
    Cell,
    Dataset,
    Row,
    Study,
    read_study,
)
from texts import base_path, read_texts

HERE = Path(__file__).parent
FINISHED = HERE / "finished.jsonl"


class Workers:
    """Some processes that take cells from one queue.

    Args:
        count: How many processes.
        home: Where results are kept.
        shared: The folder of shared data.
        results: From keys to results; what is finished is added.
        total: Cells of the whole study.
    """

    def __init__(
        self, count: int, home: Path, shared: Path, results: dict[str, Any], total: int
    ) -> None:
        self._results = results
        self._total = total
        self._lock = threading.Lock()
        self._seconds: defaultdict[tuple[object, ...], list[float]] = defaultdict(list)
        self.failed: list[str] = []
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._processes = [
            subprocess.Popen(
                [sys.executable, HERE / "worker.py", home, shared],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(count)
        ]

    def run(self, cells: Sequence[Cell], later: Sequence[Cell]) -> None:
        """Run cells until all of them are finished or failed.

        Args:
            cells: What to run now.
            later: What will be run after, for the time to go.
        """
        queue = deque(cells)
        rest = deque(later)
        threads = [
            threading.Thread(target=self._serve, args=(process, queue, rest))
            for process in self._processes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def close(self) -> None:
        """Let every process end; one that is in the middle of a cell is stopped."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def _serve(self, process: subprocess.Popen[str], queue: deque[Cell], rest: deque[Cell]) -> None:
        if process.stdin is None or process.stdout is None:
            return
        while True:
            with self._lock:
                if not queue:
                    return
                cell = queue.popleft()
            begun = time.monotonic()
            try:
                process.stdin.write(json.dumps(asdict(cell)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            with self._lock:
                told = json.loads(line) if line else {"error": "the worker ended"}
                self._note(cell, told, time.monotonic() - begun, [*queue, *rest])
            if not line:
                return

    def _note(
        self, cell: Cell, told: Mapping[str, Any], seconds: float, to_go: Sequence[Cell]
    ) -> None:
        if "error" in told:
            self.failed.append(f"{cell.title}: {told['error']}")
            _say(f"FAILED {self.failed[-1]}")
            return
        result = told["result"]
        self._results[cell.key] = result
        self._seconds[cell.cost_class].append(seconds)
        measure = cell.dataset.measure
        value = f"{measure} {result[measure]:.4g}" if measure in result else "refused"
        done = self._total - len(to_go)
        _say(
            f"[{done}/{self._total}] {cell.title}: {value}, {seconds:.1f} s; "
            f"about {self._to_go(to_go) / 60:.0f} min to go"
        )

    def _to_go(self, cells: Sequence[Cell]) -> float:
        everything = [one for seconds in self._seconds.values() for one in seconds]
        overall = sum(everything) / len(everything)
        total = 0.0
        for cell in cells:
            seen = self._seconds.get(cell.cost_class, [])
            total += sum(seen) / len(seen) if seen else overall
        return total / len(self._processes)


def unfinished(cells: Sequence[Cell], results: Mapping[str, Any]) -> list[Cell]:
    """The cells without a result."""
    return [cell for cell in cells if cell.key not in results]


def chosen(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells whose title has all the words."""
    return [cell for cell in cells if all(word in cell.title for word in only)]


def needed_for_tuning(study: Study, only: Sequence[str]) -> list[Cell]:
    """The tuning cells of the rows that are run at all."""
    any_rate = {(cell.dataset.name, cell.row): cell.learning_rate for cell in study.tuning_cells()}
    wanted: set[tuple[str, Row]] = {
        (cell.dataset.name, cell.row) for cell in chosen(study.cells(any_rate), only)
    }
    return [cell for cell in study.tuning_cells() if (cell.dataset.name, cell.row) in wanted]


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
    tuning = needed_for_tuning(study, options.only)
    guessed = {(cell.dataset.name, cell.row): cell.learning_rate for cell in tuning}
    guessed |= best_rates(study, results)
    figures = chosen(study.cells(guessed), options.only)
    now, later = unfinished(tuning, results), unfinished(figures, results)
    _say(f"{len(now)} cells to choose learning rates by, {len(later)} for the figures")
    if not now and not later:
        return absent
    workers = Workers(
        options.workers, options.home, options.shared, results, len(tuning) + len(figures)
    )
    try:
        workers.run(now, later)
        figures = chosen(study.cells(best_rates(study, results)), options.only)
        workers.run(unfinished(figures, results), [])
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
            _say(f"{dataset.name} is left out: {error}")
        else:
            there.append(dataset)
    return replace(study, datasets=tuple(there)), absent


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


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
        _say(f"{take_results(options.take, options.home)} cells taken from {options.take}")
    study = read_study(options.configuration, reduced=options.reduced)
    if options.reduced:
        tuned = {cell.key for cell in study.tuning_cells()}
        _say(f"{take_results(FINISHED, options.home, only=tuned)} learning rates' cells taken")
    failed = [] if options.report else run(study, options)
    from report import write_report

    write_report(study, read_results(options.home), options.home)
    if options.keep:
        _say(f"{keep_results(options.home, options.keep)} cells kept in {options.keep}")
    for line in failed:
        _say(f"FAILED {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
