"""Processes that run a study's cells: the driver's side, and theirs.

A cell is sent as a line of JSON, and what came of it is a line of JSON again. The result itself is
written to the study's home by the worker, so that a finished cell stays finished whoever dies. When
a worker's input ends, because the driver is done or was killed, so does the worker.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from intarsia_client.errors import IntarsiaError
from kept_cells import Cell, write_result

C = TypeVar("C", bound=Cell)


def say(line: str) -> None:
    """Tell whoever waits.

    Args:
        line: What.
    """
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def answer_cells(home: Path, read: Callable[[Any], C], run: Callable[[C], dict[str, Any]]) -> None:
    """Run one cell after another until there are no more lines, on one thread.

    Args:
        home: The study's home, where results are kept.
        read: Makes a cell of what JSON made of it.
        run: Runs it; an :class:`IntarsiaError` fails this cell alone.
    """
    torch.set_num_threads(1)
    for line in sys.stdin:
        cell = read(json.loads(line))
        try:
            result = run(cell)
        except IntarsiaError as error:
            answer: dict[str, object] = {"error": str(error)}
        else:
            write_result(home, cell, result)
            answer = {"result": result}
        try:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # The driver was killed; nobody is there to read what Python would still flush.
            os._exit(1)


class Workers:
    """Some processes that take cells from one queue.

    Args:
        command: A worker's script and its arguments.
        count: How many processes.
        total: Cells of the whole study, for the progress.
        shown: What is said of a result.
    """

    def __init__(
        self,
        command: Sequence[object],
        count: int,
        total: int,
        shown: Callable[[Any, Mapping[str, Any]], str] = lambda cell, result: "",
    ) -> None:
        self.results: dict[str, dict[str, Any]] = {}
        self.failed: list[str] = []
        self._total = total
        self._shown = shown
        self._lock = threading.Lock()
        self._seconds: defaultdict[tuple[object, ...], list[float]] = defaultdict(list)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(count)
        ]

    def run(self, cells: Sequence[Cell], later: Sequence[Cell] = ()) -> None:
        """Run cells until all of them are finished or failed.

        Args:
            cells: What to run now.
            later: What will be run after, for the time to go.
        """
        queue, rest = deque(cells), deque(later)
        threads = [
            threading.Thread(target=self._serve, args=(process, queue, rest), daemon=True)
            for process in self._processes
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.failed += [f"{cell.title}: no worker is left" for cell in queue]

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
                process.stdin.write(json.dumps(asdict(cell)) + "\n")  # type: ignore[call-overload]
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = ""
            told = json.loads(line) if line else {"error": "the worker ended"}
            with self._lock:
                self._note(cell, told, time.monotonic() - begun, [*queue, *rest])
            if not line:
                return

    def _note(
        self, cell: Cell, told: Mapping[str, Any], seconds: float, to_go: Sequence[Cell]
    ) -> None:
        if "error" in told:
            self.failed.append(f"{cell.title}: {told['error']}")
            say(f"FAILED {self.failed[-1]}")
            return
        self.results[cell.key] = told["result"]
        self._seconds[cell.cost_class].append(seconds)
        shown = self._shown(cell, told["result"])
        say(
            f"[{self._total - len(to_go)}/{self._total}] {cell.title}: "
            f"{shown + ', ' if shown else ''}{seconds:.1f} s; "
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
