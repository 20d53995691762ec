"""Runs a simulation that kills itself with SIGKILL as soon as a round has reached a state.

    python killed_run.py CONFIG HOME STATE ROUND [OVERRIDE …]

The kill comes from inside, right after the transition is in the database, so that every state is
met exactly; what dies is the real process, with whatever it had in memory.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

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


def main() -> None:
    configuration, home, state, number, *overrides = sys.argv[1:]
    transition = getattr(RunJournal, TRANSITIONS[state])

    def deadly(self: RunJournal, round_number: int, *args: Any, **options: Any) -> Any:
        result = transition(self, round_number, *args, **options)
        if round_number == int(number):
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(RunJournal, TRANSITIONS[state], deadly)
    simulate(
        read_configuration(Path(configuration), overrides),
        home=Home.open(Path(home)),
        observer=Deaf(),
    )


if __name__ == "__main__":
    main()
