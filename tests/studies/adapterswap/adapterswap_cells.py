"""Cells: run one, keep what is finished, carry it elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapterswap_data import base_path, draw_groups
from adapterswap_parts import Workplace, run_part
from adapterswap_study import Cell
from adapterswap_training import Workshop
from intarsia_client.base_model import BaseModel, load_base
from intarsia_client.files import canonical_json, write_bytes
from intarsia_continual.encoders import BaseModelEncoder, MiniLMEncoder, TextEncoder
from retrieval_figures import RememberingEncoder

_encoders: dict[str, tuple[TextEncoder, TextEncoder]] = {}


def run_cell(cell: Cell, home: Path, shared: Path) -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: The cell.
        home: The study's home; trained adapters are kept there.
        shared: The folder of shared data.

    Returns:
        What the part found, and ``seconds`` of processor time.

    Raises:
        InputError: If data is absent.
    """
    begun = time.process_time()
    dataset = cell.dataset
    groups = draw_groups(dataset, shared, cell.seed)
    base = load_base(
        base_path(dataset, shared), task=dataset.task, labels=groups.labels, seed=cell.seed
    )
    remembering, plain = _encoder(cell.encoder, base)
    here = Workplace(
        groups=groups,
        workshop=Workshop(base, dataset.settings(cell.seed), home / "adapters"),
        encoder=remembering,
        plain_encoder=plain,
        seed=cell.seed,
        removed=dataset.removed,
    )
    found = run_part(cell.part, here)
    return {**found, "seconds": round(time.process_time() - begun, 2)}


def cell_file(home: Path, cell: Cell) -> Path:
    """Where a finished cell lies."""
    return home / "cells" / f"{cell.key}.json"


def write_result(home: Path, cell: Cell, result: Mapping[str, Any]) -> None:
    """Keep a finished cell, whole or not at all."""
    told = {"cell": asdict(cell), "result": result}
    write_bytes(cell_file(home, cell), json.dumps(told, indent=1).encode() + b"\n")


def read_results(home: Path) -> dict[str, dict[str, Any]]:
    """What is finished, from cells' keys to their results."""
    return {key: told["result"] for key, told in _finished(home).items()}


def keep_results(home: Path, archive: Path) -> int:
    """Write everything that is finished into one file, a line a cell; give their number."""
    found = _finished(home)
    lines = [canonical_json({"key": key, **told}) + b"\n" for key, told in found.items()]
    write_bytes(archive, b"".join(lines))
    return len(lines)


def take_results(archive: Path, home: Path) -> int:
    """Put an archive's cells into a home, but for those that are there; give their number."""
    taken = 0
    for line in archive.read_text().splitlines():
        told = json.loads(line)
        path = home / "cells" / f"{told.pop('key')}.json"
        if not path.exists():
            write_bytes(path, canonical_json(told) + b"\n")
            taken += 1
    return taken


def _finished(home: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((home / "cells").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def _encoder(name: str, base: BaseModel) -> tuple[TextEncoder, TextEncoder]:
    """An encoder that remembers what this process has encoded, and one that does not."""
    key = name if name == "minilm" else base.digest
    if key not in _encoders:
        plain: TextEncoder = MiniLMEncoder() if name == "minilm" else BaseModelEncoder(base)
        _encoders[key] = (RememberingEncoder(plain), plain)
    return _encoders[key]
