"""A process of the study: reads a cell a line, runs it, keeps it, and answers with a line.

    python tests/studies/adapterswap/adapterswap_worker.py HOME SHARED

The driver starts it; a driver that is gone closes its input, and it ends.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from adapterswap_cells import run_cell, write_result
from adapterswap_study import Cell
from intarsia_client.errors import IntarsiaError


def main() -> None:
    """Answer until there are no more lines."""
    home, shared = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    for line in sys.stdin:
        cell = Cell.from_mapping(json.loads(line))
        try:
            result = run_cell(cell, home, shared)
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


if __name__ == "__main__":
    main()
