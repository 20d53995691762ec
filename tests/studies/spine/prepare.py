"""Prepares the studies' data: Shakespeare's speakers as clients, one record a turn.

python tests/studies/spine/prepare.py [--shared ../shared/data] [--out tests/studies/spine/data]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections import defaultdict
from pathlib import Path

from intarsia_client.files import write_bytes

TEST_SHARE = 0.15
SHORTEST = 20


def turns(text: str) -> dict[str, list[str]]:
    """Each speaker's turns, in order.

    Args:
        text: Blocks between blank lines, each a name with a colon and what is said below it.

    Returns:
        From speaker to turns of at least :data:`SHORTEST` characters.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for block in text.split("\n\n"):
        name, _, said = block.strip().partition(":\n")
        if said and len(name) < 30 and len(said) >= SHORTEST:
            found[name].append(said)
    return dict(found)


def is_held_out(speaker: str, turn: str) -> bool:
    """Whether a turn is held out; depends on nothing but the turn itself."""
    digest = hashlib.sha256(f"{speaker}\n{turn}".encode()).digest()
    return int.from_bytes(digest[:8]) < TEST_SHARE * 2**64


def prepare_shakespeare(source: Path, out: Path, speakers: int) -> dict[str, tuple[int, int]]:
    """Write ``shakespeare-train.jsonl`` and ``shakespeare-test.jsonl``.

    Args:
        source: tinyshakespeare's ``input.txt``.
        out: The folder to write to.
        speakers: How many, those with the most text first.

    Returns:
        From speaker to the numbers of training and held-out turns.
    """
    found = turns(source.read_text())
    largest = sorted(found, key=lambda name: (-sum(map(len, found[name])), name))[:speakers]
    lines: dict[bool, list[bytes]] = {False: [], True: []}
    counts = {}
    for name in sorted(largest):
        parts = [is_held_out(name, turn) for turn in found[name]]
        counts[name] = (parts.count(False), parts.count(True))
        for held_out, turn in zip(parts, found[name], strict=True):
            lines[held_out].append(json.dumps({"text": turn, "client": name}).encode() + b"\n")
    write_bytes(out / "shakespeare-train.jsonl", b"".join(lines[False]))
    write_bytes(out / "shakespeare-test.jsonl", b"".join(lines[True]))
    return counts


def main() -> int:
    """Prepare what the arguments name; 1 where the shared data is absent."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--speakers", type=int, default=8)
    options = parser.parse_args()
    source = options.shared / "tinyshakespeare" / "input.txt"
    if not source.is_file():
        sys.stderr.write(f"{source}: not there; name the data's folder with --shared\n")
        return 1
    counts = prepare_shakespeare(source, options.out, options.speakers)
    for name, (train, test) in counts.items():
        sys.stdout.write(f"{name}: {train} turns to train on, {test} held out\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
