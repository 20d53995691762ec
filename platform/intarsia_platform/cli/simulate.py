"""``intarsia simulate``: a federation from one configuration file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from intarsia_platform.cli.output import check_json_place, present
from intarsia_platform.cli.settings import Settings, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from intarsia_platform.home import Home
    from intarsia_platform.results import SimulationResult
    from intarsia_platform.simulation.observer import SimulationObserver

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change one key; may be repeated."),
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the latest unfinished run of this home.")
]


def simulate_command(
    context: typer.Context,
    configuration: Annotated[Path, typer.Argument(metavar="CONFIG")],
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Run a federation as a configuration file says.

    Args:
        context: The command's context.
        configuration: The TOML file.
        overrides: Keys to change.
        resume: Whether to go on with the latest unfinished run.
    """
    changes = overrides or []

    def work(home: Home, observer: SimulationObserver) -> SimulationResult:
        from intarsia_aggregators.catalog import CATALOG

        from intarsia_platform.configuration import read_configuration

        methods = [entry.name for entry in CATALOG]
        checked = read_configuration(configuration, changes, methods=methods)
        # Takes seconds; a wrong configuration is told before.
        from intarsia_platform.simulation.run import simulate

        return simulate(checked, home=home, resume=resume, observer=observer)

    run_watched(context, ["simulate", str(configuration)], changes, resume, work)


def run_watched(
    context: typer.Context,
    command: Sequence[str],
    overrides: Sequence[str],
    resume: bool,
    work: Callable[[Home, SimulationObserver], SimulationResult],
) -> None:
    """Run a simulation with its progress in sight, and show what it gave.

    Args:
        context: The command's context.
        command: The words after ``intarsia`` that name the work.
        overrides: Its ``--set`` options.
        resume: Whether ``--resume`` was given.
        work: Runs it, given the home and who watches.

    Raises:
        Interrupted: After Ctrl-C or SIGTERM; says what is kept and how to go on.
    """
    from intarsia_platform.cli.progress import watching

    settings = settings_of(context)
    check_json_place(settings)
    home = settings.open_home(create=True)
    with watching(settings.signals) as watch:

        def left() -> str:
            goes_on = resume or watch.run is not None
            typed = _typed(command, overrides, home, settings, resume=goes_on)
            return watch.interrupted_line(typed)

        with settings.signals.explained(left):
            result = work(home, watch)
    _show(settings, home, result)


def _typed(
    command: Sequence[str],
    overrides: Sequence[str],
    home: Home,
    settings: Settings,
    *,
    resume: bool,
) -> str:
    """The command line that goes on with a run."""
    words = ["intarsia", *command]
    for override in overrides:
        words += ["--set", override]
    words += ["--home", str(home.path)]
    if settings.json is not None:
        words += ["--json", str(settings.json)]
    return shlex.join([*words, "--resume"] if resume else words)


def _show(settings: Settings, home: Home, result: SimulationResult) -> None:
    from intarsia_platform.cli.output import facts
    from intarsia_platform.reporting import clients_table, next_steps, plan_table, rounds_table
    from intarsia_platform.reporting.measures import duration_text

    tracked = home.mlflow_database if home.mlflow_database.exists() else None
    steps = next_steps(result, home=home.path, mlflow_database=tracked)
    present(
        settings,
        result.as_mapping(),
        *([plan_table(result.plan[-1])] if result.plan else []),
        rounds_table(result),
        *([clients_table(result)] if result.clients else []),
        "",
        facts(
            {
                "run": f"{result.run}, {duration_text(result.seconds)}",
                "adapter": f"{result.adapter.path} (rank {result.adapter.rank})",
                "digest": result.adapter.digest,
                "report": result.report,
            }
        ),
        "\nwhat to type next",
        facts({f"  {step.purpose}": step.command for step in steps}),
    )
