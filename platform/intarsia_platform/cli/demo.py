"""``intarsia demo``: the federation that needs nothing but this installation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from intarsia_platform.cli.simulate import Overrides, Resume, run_watched

if TYPE_CHECKING:
    from intarsia_platform.home import Home
    from intarsia_platform.results import SimulationResult
    from intarsia_platform.simulation.observer import SimulationObserver


def demo_command(
    context: typer.Context, overrides: Overrides = None, resume: Resume = False
) -> None:
    """Run the embedded default.

    Args:
        context: The command's context.
        overrides: Keys of its configuration to change.
        resume: Whether to go on with an unfinished demo.
    """
    changes = overrides or []

    def work(home: Home, observer: SimulationObserver) -> SimulationResult:
        from intarsia_platform.demo.run import run_demo

        return run_demo(home=home, overrides=changes, resume=resume, observer=observer)

    run_watched(context, ["demo"], changes, resume, work)
