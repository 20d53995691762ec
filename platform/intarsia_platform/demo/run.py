"""The demo: eight departments, each with its own texts, make one adapter together.

The departments are libraries that this installation brings anyway; their documentation is what
they may not share. The base model knows the standard library's documentation only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from intarsia_client.files import write_bytes

from intarsia_platform.configuration import SimulationConfiguration, read_configuration
from intarsia_platform.demo.corpus import DEPARTMENTS, Record, department_records, write_jsonl
from intarsia_platform.home import Home
from intarsia_platform.results import SimulationResult
from intarsia_platform.simulation.observer import SimulationObserver
from intarsia_platform.simulation.run import ReportWords, simulate

BASE = Path(__file__).parent / "base"
CONFIGURATION = Path(__file__).parent / "demo.toml"

# Little text at each site: too little to learn from alone, which is why they federate.
TRAIN_CHARACTERS = 24_000
PASSAGES_PER_FILE = 4

WORDS = ReportWords(
    title="Eight departments, one adapter",
    introduction=(
        "Each department keeps its texts to itself and trains a low-rank adapter of the rank it "
        "can afford. The table shows how well each department's held-out texts are predicted by "
        "the base model alone, by the department's own adapter, and by the adapter that all of "
        "them made together."
    ),
)


def demo_configuration(home: Home, overrides: Sequence[str] = ()) -> SimulationConfiguration:
    """The demo's configuration, its data prepared in the home.

    Args:
        home: Where the departments' texts are written.
        overrides: ``table.key=value`` each.

    Returns:
        The configuration.

    Raises:
        InputError: If an override is wrong.
        StorageError: If the home cannot be written.
    """
    folder = home.path / "demo"
    # Written out, so that a person can read it, change it and run it with `intarsia simulate`.
    written = folder / CONFIGURATION.name
    text = CONFIGURATION.read_text().replace('base = "base"', f"base = {json.dumps(str(BASE))}")
    write_bytes(written, text.encode())
    read_configuration(written, overrides)  # a wrong override is told before anything is read
    parts: dict[str, list[Record]] = {"train": [], "test": []}
    for name in DEPARTMENTS:
        train, test = department_records(
            name, seed=0, train_characters=TRAIN_CHARACTERS, passages_per_file=PASSAGES_PER_FILE
        )
        parts["train"] += train
        parts["test"] += test
    for part, records in parts.items():
        write_jsonl(folder / f"{part}.jsonl", records)
    return read_configuration(written, overrides)


def run_demo(
    *,
    home: Home,
    overrides: Sequence[str] = (),
    resume: bool = False,
    observer: SimulationObserver,
) -> SimulationResult:
    """Run the demo.

    Args:
        home: Where everything it leaves is kept.
        overrides: ``table.key=value`` each, in the place of what the demo says.
        resume: Go on with an unfinished demo.
        observer: Is told what happens.

    Returns:
        The result.

    Raises:
        IntarsiaError: As :func:`intarsia_platform.simulation.simulate`.
    """
    observer.stage("reading the departments' documentation")
    configuration = demo_configuration(home, overrides)
    return simulate(configuration, home=home, resume=resume, observer=observer, words=WORDS)
