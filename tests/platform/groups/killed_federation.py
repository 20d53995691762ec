"""Federates a group, each time in a process that SIGKILLs itself.

    python killed_federation.py BASE

Reads jobs from standard input, one JSON object a line: ``home``, ``study`` and ``point``; answers
each with the exit code. Each job runs in a forked child, since the libraries take long to import.
The kill comes from inside, so that every point is met exactly.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from intarsia_client.base_model import load_base
from intarsia_platform.configuration import read_configuration
from intarsia_platform.federation.in_process_grid import InProcessGrid
from intarsia_platform.groups import federating, federation_work, publishing, workspace
from intarsia_platform.groups.federating import FederationOrder, open_federated_groups
from intarsia_platform.groups.pending import PendingBlobs
from intarsia_platform.home import Home
from intarsia_platform.registry.journal import RunJournal


def die(*_: object, **__: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any], calls: int = 1) -> Callable[..., Any]:
    """The function, followed by death when it was called so often."""
    made = 0

    def deadly(*arguments: Any, **options: Any) -> Any:
        nonlocal made
        result = function(*arguments, **options)
        made += 1
        if made == calls:
            die()
        return result

    return deadly


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


def main() -> None:
    torch.set_num_threads(1)
    # Every child has it from here.
    load_base(sys.argv[1], task="causal-lm")
    for name in ("model_signing", "matplotlib.pyplot", federating.__name__):
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            try:
                run(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
