"""Runs one cell of the study."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from adapterswap_data import base_path, draw_groups
from adapterswap_parts import Workplace, run_part
from adapterswap_study import Cell
from adapterswap_training import Workshop
from intarsia_client.base_model import BaseModel, load_base
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


def _encoder(name: str, base: BaseModel) -> tuple[TextEncoder, TextEncoder]:
    """An encoder that remembers what this process has encoded, and one that does not."""
    key = name if name == "minilm" else base.digest
    if key not in _encoders:
        plain: TextEncoder = MiniLMEncoder() if name == "minilm" else BaseModelEncoder(base)
        _encoders[key] = (RememberingEncoder(plain), plain)
    return _encoders[key]
