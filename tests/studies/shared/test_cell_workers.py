"""Cells run by real processes, one of which fails, dies or is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from cell_workers import Workers  # noqa: E402
from kept_cells import cell_file, keep_results, read_results, take_results, write_result  # noqa: E402

WORKER = f"""
import os, signal, sys
sys.path.append({str(HERE)!r})
from pathlib import Path
from cell_workers import answer_cells
from test_cell import Sum
from intarsia_client.errors import InputError

def run(cell):
    if cell.number == 13:
        raise InputError("number", 13, "choose another")
    if cell.number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"sum": cell.number + 1}}

answer_cells(Path(sys.argv[1]), lambda told: Sum(**told), run)
"""

CELL = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Sum:
    number: int
    key = property(lambda self: f"sum-{self.number}")
"""


@dataclass(frozen=True)
class Sum:
    number: int

    @property
    def key(self) -> str:
        return f"sum-{self.number}"

    @property
    def title(self) -> str:
        return f"the sum of {self.number}"

    @property
    def cost_class(self) -> tuple[object, ...]:
        return ()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "test_cell.py").write_text(CELL)
    (tmp_path / "worker.py").write_text(WORKER)
    return tmp_path / "worker.py"


def test_every_cell_is_run_and_kept_and_those_that_fail_are_told(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    workers = Workers((script, home), 2, 7, lambda cell, result: f"{cell.number}+1={result['sum']}")
    try:
        workers.run([Sum(1), Sum(13), Sum(3)], later=[Sum(4)])
        assert workers.failed == ["the sum of 13: number: 13; choose another"]
        workers.run([Sum(4)])
    finally:
        workers.close()
    assert workers.results == read_results(home) == {f"sum-{n}": {"sum": n + 1} for n in (1, 3, 4)}
    told = capsys.readouterr().err
    assert "[7/7] the sum of 4: 4+1=5, " in told
    assert "min to go" in told


def test_a_dead_worker_takes_one_cell_with_it_and_the_last_one_leaves_the_rest(
    script: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    workers = Workers((script, home), 1, 3)
    try:
        workers.run([Sum(1), Sum(99), Sum(2)])
    finally:
        workers.close()
    assert workers.failed == ["the sum of 99: the worker ended", "the sum of 2: no worker is left"]
    assert read_results(home) == {"sum-1": {"sum": 2}}


def test_a_worker_ends_with_its_driver_and_keeps_what_is_finished(
    script: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with subprocess.Popen(
        [sys.executable, script, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        # Nobody reads the answer.
        worker.stdout.close()
        worker.stdin.write(json.dumps({"number": 5}) + "\n")
        worker.stdin.close()
        assert worker.wait(60) == 1
    assert read_results(home) == {"sum-5": {"sum": 6}}


def test_finished_cells_travel_in_one_file(tmp_path: Path) -> None:
    cells = [Sum(1), Sum(2), Sum(3)]
    for cell in cells:
        write_result(tmp_path / "one", cell, {"loss": cell.number / 3})
    archive = tmp_path / "finished.jsonl"
    assert keep_results(tmp_path / "one", archive) == 3
    assert take_results(archive, tmp_path / "two") == 3
    assert read_results(tmp_path / "two") == read_results(tmp_path / "one")
    write_result(tmp_path / "two", cells[0], {"loss": 7.0})
    assert take_results(archive, tmp_path / "two") == 0
    assert read_results(tmp_path / "two")["sum-1"] == {"loss": 7.0}
    assert take_results(archive, tmp_path / "three", only={"sum-2"}) == 1
    assert set(read_results(tmp_path / "three")) == {"sum-2"}
    assert cell_file(tmp_path / "three", "sum-2").is_file()
