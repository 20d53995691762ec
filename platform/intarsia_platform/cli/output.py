"""What a command leaves in sight: results on standard output, everything else on standard error.

On a terminal tables fit its width; elsewhere nothing is cut and nothing is coloured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from intarsia_client.errors import InputError, StorageError
from intarsia_client.files import write_bytes

from intarsia_platform.cli.lines import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from intarsia_platform.cli.settings import Settings

STANDARD_OUTPUT = Path("-")

# Wide enough that Rich wraps nothing where a file or another program reads.
_UNLIMITED = 10_000


def is_terminal(stream: TextIO) -> bool:
    """Whether a person watches a stream on a terminal that can move its cursor.

    Args:
        stream: Standard output or standard error.

    Returns:
        Whether it is so.
    """
    return stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def console_for(stream: TextIO) -> Console:
    """A Rich console that takes all text as it is.

    Args:
        stream: Standard output or standard error.

    Returns:
        The console.
    """
    from rich.console import Console

    terminal = is_terminal(stream)
    return Console(
        file=stream,
        force_terminal=terminal,
        width=None if terminal else _UNLIMITED,
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=False,
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: str = "") -> Table:
    """A table of cells taken as they are.

    Args:
        columns: The headings.
        rows: One cell a column; None is shown as a dash.
        right: Names of the columns of numbers, which are set to the right, divided by spaces.

    Returns:
        The table.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        made.add_column(column, justify="right" if column in right.split() else "left")
    for row in rows:
        made.add_row(*(Text("-" if cell is None else one_line(str(cell))) for cell in row))
    return made


def facts(pairs: Mapping[str, object]) -> Text:
    """Names and their values, one pair a line that can be copied whole.

    Args:
        pairs: From each name to its value; None is shown as a dash.

    Returns:
        The lines.
    """
    from rich.text import Text

    width = max(map(len, pairs), default=0)
    lines = (
        f"{name:<{width}}  {'-' if value is None else one_line(str(value))}"
        for name, value in pairs.items()
    )
    return Text("\n".join(lines))


def check_json_place(settings: Settings) -> None:
    """Find out before long work whether its result could be written.

    Args:
        settings: The common options.

    Raises:
        InputError: If ``--json`` names a folder.
        StorageError: If the file's folder cannot be written.
    """
    path = settings.json
    if path is None or path == STANDARD_OUTPUT:
        return
    if path.is_dir():
        raise InputError("--json", f"{path} is a folder", "name a file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise StorageError("--json", path, "name a file in a folder that you may write")


def present(settings: Settings, result: Mapping[str, object], *parts: RenderableType) -> None:
    """Give a command's result: as JSON where it is asked for, and for a person.

    Args:
        settings: The common options.
        result: The result as JSON values; its order is kept.
        parts: The result for a person; left out where standard output carries the JSON.

    Raises:
        StorageError: If the JSON file cannot be written.
    """
    if settings.json is not None:
        text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if settings.json == STANDARD_OUTPUT:
            sys.stdout.write(text)
            return
        check_json_place(settings)
        write_bytes(settings.json, text.encode())
    console = console_for(sys.stdout)
    for part in parts:
        # A command to copy stays one line; tables have columns of their own to fold.
        console.print(part, no_wrap=True, overflow="ignore", crop=False)


def short_digest(digest: str | None) -> str | None:
    """The beginning of a digest, enough to name what it belongs to.

    Args:
        digest: ``"sha256:…"``, or None.

    Returns:
        Its algorithm and first 12 digits, or None.
    """
    return None if digest is None else digest[: len("sha256:") + 12]
