"""The entry point ``intarsia``: all commands, none of whose libraries is loaded before it runs."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

from intarsia_platform.cli import (
    adapters,
    aggregate,
    ask,
    audit,
    demo,
    groups,
    keys,
    policy,
    runs,
    score,
    serve,
    simulate,
)
from intarsia_platform.cli.failures import run_command
from intarsia_platform.cli.settings import IntarsiaCommand, Settings, command_group

app = command_group(
    name="intarsia",
    help="Federated low-rank adapters of one frozen language model: train, fit together, look.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"intarsia {version('intarsia-platform')}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Say which version."),
    ] = False,
) -> None:
    """Take the options before a command's name.

    Args:
        version: Whether to say the version and end.
    """


app.command(
    "demo",
    cls=IntarsiaCommand,
    help="Run the embedded default. Eight departments make one adapter; ends with a report.",
)(demo.demo_command)
app.command(
    "simulate",
    cls=IntarsiaCommand,
    help="Run a federation from a file. CONFIG is TOML; docs/command-line.md lists its keys.",
)(simulate.simulate_command)
app.command(
    "aggregate",
    cls=aggregate.AggregateCommand,
    help="Sum PEFT adapters of one base. Each DIR is a folder that PEFT saved; with its weight it "
    "enters the sum exactly, or with --rank as nearly as that rank can hold.",
)(aggregate.aggregate_command)
app.add_typer(adapters.app, name="adapters", help="Look at adapters, take them in and out.")
app.add_typer(runs.app, name="runs", help="Look at federations and their rounds.")
app.add_typer(groups.app, name="groups", help="Data groups: one adapter each, kept up to date.")
app.add_typer(policy.app, name="policy", help="Who may use which adapter, and why.")
app.add_typer(keys.app, name="keys", help="API keys of callers.")
app.add_typer(audit.app, name="audit", help="The log of what was decided and used.")
app.command(
    "ask",
    cls=IntarsiaCommand,
    help="Answer from the adapters that a principal may use.",
)(ask.ask_command)
app.command(
    "score",
    cls=IntarsiaCommand,
    help="Measure records under what a principal may use. FILE has one JSON record a line.",
)(score.score_command)
app.command(
    "serve",
    cls=IntarsiaCommand,
    help="Serve an OpenAI-compatible endpoint and a console. Callers come with a key or a token.",
)(serve.serve_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        arguments: The words after the program's name; None takes them from the process.

    Returns:
        The exit code, as in docs/exit-codes.md.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that this terminal has no letters for is shown escaped.
            stream.reconfigure(errors="backslashreplace")
    settings = Settings()
    command = get_command(app)
    words = list(sys.argv[1:] if arguments is None else arguments)

    def run() -> object:
        return command.main(words, prog_name="intarsia", standalone_mode=False, obj=settings)

    with settings.signals.held():
        return run_command(run, settings)
