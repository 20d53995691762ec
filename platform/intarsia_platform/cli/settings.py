"""The options that every command takes, before its name or after it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from intarsia_platform.cli.interruption import SignalKeeper
from intarsia_platform.cli.quiet import silence_libraries

if TYPE_CHECKING:
    from intarsia_platform.home import Home


@dataclass(kw_only=True)
class Settings:
    """What a command line runs with; the common options are filled in while it is read.

    Args:
        home: ``--home``, None where it is not given.
        json: ``--json``, ``Path("-")`` for standard output, None where it is not given.
        debug: ``--debug``.
        signals: The handler of Ctrl-C and SIGTERM.
    """

    home: Path | None = None
    json: Path | None = None
    debug: bool = False
    signals: SignalKeeper = field(default_factory=SignalKeeper)

    def open_home(self, *, create: bool = False) -> Home:
        """Open the home.

        Args:
            create: Whether to make it where it is missing.

        Returns:
            The home.

        Raises:
            InputError: If it is missing and ``create`` is false.
            StorageError: If it cannot be made or written.
        """
        from intarsia_platform.home import Home

        return Home.open(self.home, create=create)


def settings_of(context: typer.Context) -> Settings:
    """The common options of the command that runs.

    Args:
        context: The command's context.

    Returns:
        The settings.
    """
    return context.ensure_object(Settings)


class IntarsiaCommand(TyperCommand):
    """A command with the common options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Add the common options to the command's own."""
        super().__init__(*args, **_with_common_options(options))

    def get_help(self, ctx: click.Context) -> str:
        """The help page; see :func:`_plain`."""
        return _plain(super().get_help(ctx))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, the libraries underneath it kept quiet unless ``--debug`` is given.

        Args:
            ctx: The command's context.

        Returns:
            What the command returns.

        Raises:
            Interrupted: After Ctrl-C or SIGTERM.
        """
        settings = ctx.ensure_object(Settings)
        if not settings.debug:
            silence_libraries()
        with settings.signals.explained(lambda: "interrupted"):
            return super().invoke(ctx)


class IntarsiaGroup(TyperGroup):
    """A group of commands with the common options."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Add the common options to the group's own."""
        super().__init__(*args, **_with_common_options(options))

    def get_help(self, ctx: click.Context) -> str:
        """The help page; see :func:`_plain`."""
        return _plain(super().get_help(ctx))


def command_group(**options: Any) -> typer.Typer:
    """A group of commands as all of them are.

    Args:
        options: As :class:`typer.Typer` takes them.

    Returns:
        The group, still without commands.
    """
    return typer.Typer(
        cls=IntarsiaGroup,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        # Click suggests by itself; both together would say it twice.
        suggest_commands=False,
        **options,
    )


def _plain(page: str) -> str:
    """A help page without the backslashes that Typer puts before brackets for Rich."""
    return page.replace("\\[", "[")


def _with_common_options(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "params": [*(options.get("params") or ()), *_common_options()]}


def _common_options() -> list[click.Parameter]:
    return [
        TyperOption(
            param_decls=["--home"],
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Everything a run leaves lies here. [default: INTARSIA_HOME, or .intarsia]",
            expose_value=False,
            callback=_keep,
        ),
        TyperOption(
            param_decls=["--json"],
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write the result as JSON; - is standard output.",
            expose_value=False,
            callback=_keep,
        ),
        TyperOption(
            param_decls=["--debug"],
            is_flag=True,
            help="Show tracebacks and what the libraries say.",
            expose_value=False,
            callback=_keep,
        ),
    ]


def _keep(context: click.Context, parameter: click.Parameter, value: Path | bool | None) -> None:
    """Note an option where it is given; what stands nearest to the command counts."""
    if value and parameter.name:
        setattr(context.ensure_object(Settings), parameter.name, value)
