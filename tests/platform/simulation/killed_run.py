"""Runs simulations, each of which kills itself as soon as a round has reached a state.

    python killed_run.py BASE

Reads jobs from standard input, one JSON object a line: ``configuration`` and ``overrides``,
``home``, ``state``, ``round`` and ``environment``, which the run's own processes inherit; answers
each with the exit code. What dies is a real process, with whatever it had in memory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from deadly import answer_jobs, die
from intarsia_platform.configuration import read_configuration
from intarsia_platform.home import Home
from intarsia_platform.registry.journal import RunJournal
from intarsia_platform.simulation.run import simulate

TRANSITIONS = {
    "planned": "plan_round",
    "sent": "mark_sent",
    "collecting": "mark_collecting",
    "accepted": "accept",
    "aggregating": "mark_aggregating",
    "published": "publish",
}


class Deaf:
    """An observer that hears nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def run(job: dict[str, Any]) -> None:
    os.environ.update(job["environment"])
    name = TRANSITIONS[job["state"]]
    transition = getattr(RunJournal, name)

    def deadly(self: RunJournal, round_number: int, *args: Any, **options: Any) -> Any:
        # Right after the transition is in the database.
        result = transition(self, round_number, *args, **options)
        if round_number == job["round"]:
            die()
        return result

    setattr(RunJournal, name, deadly)
    simulate(
        read_configuration(Path(job["configuration"]), job["overrides"]),
        home=Home.open(Path(job["home"])),
        observer=Deaf(),
    )


if __name__ == "__main__":
    answer_jobs(sys.argv[1], run, "matplotlib.pyplot", "peft")
