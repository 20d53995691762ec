"""AdapterSwap's tables: access, retrieval, groups one after the other, deletion.

    python tests/studies/adapterswap/run.py [--reduced] [--home DIR] [--shared ../shared/data]

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

from adapterswap_cells import keep_results, read_results, take_results
from adapterswap_data import base_path, draw_groups
from adapterswap_study import Cell, Study, read_study
from intarsia_client.errors import IntarsiaError

HERE = Path(__file__).parent


class Workers:
    """Some processes that take cells from one queue.

    Args:
        count: How many processes.
        home: Where results are kept.
        shared: The folder of shared data.
    """

    def __init__(self, count: int, home: Path, shared: Path) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self._done = self._total = 0
        self.failed: list[str] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, HERE / "adapterswap_worker.py", home, shared],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(count)
        ]

    def run(self, cells: Sequence[Cell]) -> None:
        """Run cells until all of them are finished or failed."""
        queue = deque(cells)
        self._total = len(queue)
        threads = [
            threading.Thread(target=self._serve, args=(process, queue), daemon=True)
            for process in self._processes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for cell in queue:
            self.failed.append(f"{cell.title}: no worker is left")

    def close(self) -> None:
        """Let every process end; one that is in the middle of a cell is stopped."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()

    def _serve(self, process: subprocess.Popen[str], queue: deque[Cell]) -> None:
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
            told = json.loads(line) if line else {"error": "the worker ended"}
            with self._lock:
                self._note(cell, told, time.monotonic() - begun, queue)
            if not line:
                return

    def _note(
        self, cell: Cell, told: Mapping[str, Any], seconds: float, to_go: Sequence[Cell]
    ) -> None:
        self._done += 1
        if "error" in told:
            self.failed.append(f"{cell.title}: {told['error']}")
            say(f"FAILED {self.failed[-1]}")
            return
        self._seconds[cell.cost_class].append(seconds)
        say(
            f"[{self._done}/{self._total}] {cell.title}: {seconds:.0f} s; "
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
    workers = Workers(min(options.workers, len(cells)), options.home, options.shared)
    try:
        workers.run(cells)
    finally:
        workers.close()
    return workers.failed


def say(line: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


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
