"""How a command ends: every failure is one line on standard error and a documented exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

import click
from intarsia_client.errors import InputError, IntarsiaError, StorageError

from intarsia_platform.cli.interruption import Interrupted
from intarsia_platform.cli.lines import say
from intarsia_platform.cli.settings import Settings

UNEXPECTED = 1

# What the machine refuses, whichever library asked it.
_STORAGE = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EIO,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}


def run_command(command: Callable[[], object], settings: Settings) -> int:
    """Run a command line and turn however it ends into an exit code.

    Args:
        command: Reads the arguments and runs; what it returns counts as exit code where it is one.
        settings: Says, once the arguments are read, whether tracebacks are wanted.

    Returns:
        The exit code, as in docs/exit-codes.md.
    """
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        _forget_standard_output()
        return UNEXPECTED
    except (Exception, KeyboardInterrupt) as error:
        if settings.debug:
            traceback.print_exc()
        line, code = _explained(error, settings)
        say(line)
        return code


def _explained(error: BaseException, settings: Settings) -> tuple[str, int]:
    """The line and the exit code of whatever ended a command."""
    if isinstance(error, Interrupted):
        return error.line, error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", settings.signals.exit_code
    if isinstance(error, click.ClickException):
        return _usage(error), InputError.exit_code
    if isinstance(error, IntarsiaError):
        return f"error: {error}", error.exit_code
    if isinstance(error, OSError) and error.errno in _STORAGE:
        refused = StorageError(
            f"file {error.filename}" if error.filename else "a file",
            error.strerror,
            "free space, or choose a place that you may read and write",
        )
        return f"error: {refused}", refused.exit_code
    hint = "" if settings.debug else "; run again with --debug for the traceback"
    return f"error: {type(error).__name__}: {error}{hint}", UNEXPECTED


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and context is not None:
        names = ", ".join(context.command.list_commands(context))
        return f"error: {context.command_path} needs a command: {names}; or --help"
    where = f"; see {context.command_path} --help" if context is not None else ""
    return f"error: {error.format_message().rstrip('.')}{where}"


def _forget_standard_output() -> None:
    """Let nothing more be written to a pipe that nobody reads; Python would complain at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
