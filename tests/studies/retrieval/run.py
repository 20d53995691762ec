"""The retrieval study: each descriptor method beside the jointly fitted baseline.

    python tests/studies/retrieval/run.py [--shared ../shared/data] [--reduced] [--json FILE]

Reads three sets of groups (ten domains of questions, one book in eight versions, speeches of
eleven presidents), asks with texts that no group holds, and prints the tables of docs/retrieval.md.
``--base PATH`` measures a base model's own hidden states as encoder instead of MiniLM.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from intarsia_continual.encoders import BaseModelEncoder, MiniLMEncoder, TextEncoder
from retrieval_figures import TEMPERATURES, THRESHOLDS, measure
from retrieval_groups import NAMES, read_groups

KEYS = ("data", "asked with", "retriever")


def main(words: Sequence[str] | None = None) -> None:
    """Run the study and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--data", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--base", help="a causal language model to encode with")
    parser.add_argument("--reduced", action="store_true", help="few texts, to see that it runs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    documents, queries = (24, 6) if options.reduced else (150, 40)
    encoder = _encoder(options.base)
    rows: list[dict[str, Any]] = []
    for name in options.data:
        begun = time.monotonic()
        rows += measure(read_groups(name, options.shared, documents, queries), encoder)
        print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    for text in tables(rows):
        print(text, end="\n\n")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def tables(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The three tables: accuracy and interference, abstention, temperature."""
    figures = ("top-1", "top-2", "top-3", "changed", "shift", "leak")
    described = [row for row in rows if "brier" in row]
    kinds = ("abstains", "own left out", "abstains, own hidden", "abstains, stranger")
    return [
        markdown(
            [*KEYS, *figures], [[*keys(row), *(row.get(f, "") for f in figures)] for row in rows]
        ),
        markdown(
            [*KEYS, "share of", *map(str, THRESHOLDS)],
            [
                [*keys(row), kind, *(row[kind][one] for one in THRESHOLDS)]
                for row in described
                for kind in kinds
                if kind in row
            ],
        ),
        markdown(
            [*KEYS, *map(str, TEMPERATURES)],
            [[*keys(row), *(row["brier"][one] for one in TEMPERATURES)] for row in described],
        ),
    ]


def keys(row: dict[str, Any]) -> list[str]:
    return [row[key] for key in KEYS]


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str | float]]) -> str:
    """A table; shares with three digits."""
    lines = [heads, ["---"] * len(heads)]
    lines += [[one if isinstance(one, str) else f"{one:.3f}" for one in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _encoder(base: str | None) -> TextEncoder:
    if base is None:
        return MiniLMEncoder()
    from intarsia_client.base_model import load_base

    return BaseModelEncoder(load_base(base, task="causal-lm"))


if __name__ == "__main__":
    main()
