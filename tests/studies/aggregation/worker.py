"""A process that runs one cell after another; :mod:`run` starts it and says which."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from cells import run_cell
from study import Cell

sys.path.append(str(Path(__file__).resolve().parents[1] / "shared"))
from cell_workers import answer_cells

if __name__ == "__main__":
    home, shared = map(Path, sys.argv[1:])
    answer_cells(home, Cell.from_mapping, partial(run_cell, shared=shared))
