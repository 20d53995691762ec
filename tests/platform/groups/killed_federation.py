"""Federates a group, each time in a process that SIGKILLs itself.

    python killed_federation.py BASE

Reads jobs from standard input, one JSON object a line: ``home``, ``study`` and ``point``; answers
each with the exit code.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from deadly import after, answer_jobs, die
from intarsia_platform.configuration import read_configuration
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.groups import federating, federation_work, publishing, workspace
from intarsia_platform.groups.federating import FederationOrder, open_federated_groups
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.home import Home
from intarsia_platform.registry.journal import RunJournal


def arm(point: str) -> None:
    """Set the trap."""
    if point == "first-update":
        RunJournal.accept = after(RunJournal.accept)
    elif point == "between-rounds":
        RunJournal.publish = after(RunJournal.publish)
    elif point == "aggregating":
        RunJournal.mark_aggregating = after(RunJournal.mark_aggregating, 2)
    elif point == "federated":
        federation_work.simulate = after(federation_work.simulate)
    elif point == "describing":
        # Whatever is sent after the rounds, whose messages are pushed and pulled one by one.
        InProcessGrid.send_and_receive = after(InProcessGrid.send_and_receive)
    elif point == "rows":
        publishing.insert_group = after(publishing.insert_group)
    elif point == "after-commit":
        PendingBlobs.sweep = die
    elif point == "half-cleared":
        workspace.shutil = type("Shutil", (), {"rmtree": staticmethod(after(shutil.rmtree))})


def run(job: dict[str, Any]) -> None:
    order = FederationOrder(
        name="wards",
        configuration=read_configuration(Path(job["study"])),
        clients=["north", "south"],
        labels=["medical"],
        encoder="base",
    )
    with open_federated_groups(Home.open(Path(job["home"]))) as (_, federated):
        arm(job["point"])
        federated.federate(order, observer=Deaf())


class Deaf:
    """An observer that hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


if __name__ == "__main__":
    answer_jobs(sys.argv[1], run, "model_signing", "matplotlib.pyplot", federating.__name__)
