"""A process that runs one cell after another; :mod:`run` starts it and says which.

Each line on standard input is a cell as JSON, each line on standard output what came of it. The
result itself is written to the home here, so that a finished cell stays finished whoever dies. When
standard input ends, because the driver is done or was killed, so does the process.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from cells import CellError, run_cell
from finished import cell_file
from intarsia_client.errors import IntarsiaError
from intarsia_client.files import write_bytes
from study import Cell


def main() -> None:
    """Answer until there are no more lines."""
    home, shared = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    for line in sys.stdin:
        cell = Cell.from_mapping(json.loads(line))
        try:
            result = run_cell(cell, shared)
        except (IntarsiaError, CellError) as error:
            answer: dict[str, object] = {"error": str(error)}
        else:
            told = {"cell": asdict(cell), "result": result}
            write_bytes(cell_file(home, cell), json.dumps(told, indent=1).encode() + b"\n")
            answer = {"result": result}
        try:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # The driver was killed; nobody is there to read what Python would still flush.
            os._exit(1)


if __name__ == "__main__":
    main()
