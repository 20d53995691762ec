"""How far work of many steps is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from intarsia_platform.cli.lines import say
from intarsia_platform.cli.output import is_terminal
from intarsia_platform.cli.progress import display_with_time_to_go
from intarsia_platform.reporting.measures import duration_text

# Work that ends before that needs no lines.
_SECONDS_BETWEEN_LINES = 10.0

Tell = Callable[[int, int], None]
"""Takes how many steps are done, and how many there are."""


@contextlib.contextmanager
def counted_progress(name: str, steps: str) -> Iterator[Tell]:
    """Show progress on standard error in the way that fits it.

    Args:
        name: What is being done.
        steps: What the steps are called, in the plural.

    Yields:
        What to call after each step.
    """
    if not is_terminal(sys.stderr):
        yield lines_between(name, steps, _SECONDS_BETWEEN_LINES)
        return
    with display_with_time_to_go() as display:
        bar = display.add_task(name, total=None)
        yield lambda done, total: display.update(bar, completed=done, total=total)


def lines_between(name: str, steps: str, seconds: float) -> Tell:
    """A line at most so often, with the time to go at the pace so far.

    Args:
        name: What is being done.
        steps: What the steps are called.
        seconds: Least time before the first line and between two.

    Returns:
        What to call after each step.
    """
    begun = said = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if done < total and now - said >= seconds:
            said = now
            to_go = (now - begun) / done * (total - done)
            say(f"{name}: {done} of {total} {steps}; about {duration_text(to_go)} to go")

    return tell
