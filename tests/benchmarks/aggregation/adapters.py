"""Adapters on disk for the aggregation benchmarks, written module by module."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from intarsia_client.opened import ModuleLayout
from intarsia_client.wire import Adapter, FloatArray
from intarsia_client.written import AdapterWriter

# FLoRA's mixed ranks (Wang et al. 2024), repeated for more clients.
RANKS = (64, 32, 16, 16, 8, 8, 4, 4, 4, 4)
SCALING = 2.0
SHARED_DIRECTIONS = 128


def module_names(layers: int) -> list[str]:
    """The attention projections of a Llama."""
    return [
        f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(layers) for part in "qkvo"
    ]


def make_adapters(
    folder: Path, count: int, *, layers: int, width: int, kind: str, different: int
) -> list[Path]:
    """Write adapters of one shape and mixed ranks.

    Args:
        folder: Where to; those that are there already are kept.
        count: How many.
        layers: Layers of the model, four modules each.
        width: Both sides of each module.
        kind: ``"independent"`` (every number drawn by itself, the worst case for truncation) or
            ``"shared"`` (all adapters lie mostly in 128 common directions of falling size).
        different: How many are written; the others are hard links to these.

    Returns:
        The folders.
    """
    made = []
    for index in range(count):
        path = folder / f"client-{index:04d}"
        made.append(path)
        if path.exists():
            continue
        temporary = folder / "unfinished"
        temporary.mkdir(parents=True)
        if index < different:
            _write(temporary, index, module_names(layers), width, kind)
        else:
            for file in made[index % different].iterdir():
                os.link(file, temporary / file.name)
        temporary.rename(path)
    return made


def _write(folder: Path, index: int, names: Sequence[str], width: int, kind: str) -> None:
    rank = RANKS[index % len(RANKS)]
    layout = ModuleLayout(rank=rank, shape=(width, width), scaling=SCALING)
    like = Adapter(base="benchmark", task="causal-lm", modules={})
    generator = np.random.default_rng(index)
    with AdapterWriter(folder, like, dict.fromkeys(names, layout)) as writer:
        for number, name in enumerate(names):
            a, b = _factors(generator, number, rank, width, kind)
            writer.write_module(name, a, b)
        writer.finish()


def _factors(
    generator: np.random.Generator, module: int, rank: int, width: int, kind: str
) -> tuple[FloatArray, FloatArray]:
    a = generator.standard_normal((rank, width), dtype=np.float32)
    b = generator.standard_normal((width, rank), dtype=np.float32)
    if kind == "shared":
        common = np.random.default_rng(1_000_000 + module)
        sizes = np.arange(1, SHARED_DIRECTIONS + 1, dtype=np.float32) ** -0.5
        own = [generator.standard_normal((rank, SHARED_DIRECTIONS), dtype=np.float32) for _ in "ab"]
        bases = [common.standard_normal((SHARED_DIRECTIONS, width), dtype=np.float32) for _ in "ab"]
        a = (own[0] * sizes) @ bases[0] + np.float32(0.1) * a
        b = ((own[1] * sizes) @ bases[1]).T + np.float32(0.1) * b
    return a * np.float32(width**-0.5), b * np.float32(0.01)


def main() -> None:
    """Write adapters."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--width", type=int, required=True)
    parser.add_argument("--kind", choices=("independent", "shared"), default="independent")
    parser.add_argument("--different", type=int)
    arguments = parser.parse_args()
    made = make_adapters(
        arguments.folder,
        arguments.count,
        layers=arguments.layers,
        width=arguments.width,
        kind=arguments.kind,
        different=arguments.different or arguments.count,
    )
    print(json.dumps({"adapters": len(made)}))


if __name__ == "__main__":
    main()
