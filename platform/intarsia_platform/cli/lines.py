"""Lines for people: one at a time, to standard error."""

from __future__ import annotations

import contextlib
import sys


def one_line(text: str) -> str:
    """Text as one line without control characters, whoever wrote it.

    Args:
        text: Any text.

    Returns:
        Its words, single spaces between them; what cannot be printed is escaped.
    """
    words = " ".join(text.split())
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in words)


def say(line: str) -> None:
    """Write one line to standard error; silently, where nobody reads it any more.

    Args:
        line: The line, without the program's name.
    """
    with contextlib.suppress(OSError, ValueError):
        print(f"intarsia: {one_line(line)}", file=sys.stderr, flush=True)
