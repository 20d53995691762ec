"""The signals that end a server which runs in other processes than this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def until_signalled(serving: AbstractContextManager[str], ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM comes, then end in order; for the main thread.

    Args:
        serving: Starts when it is entered and tells where, ends when it is left.
        ready: Called with where, once it has started.

    Raises:
        KeyboardInterrupt: If a signal comes before it has started; what has started ends.
        IntarsiaError: As ``serving`` raises.
    """
    started, stop = threading.Event(), threading.Event()

    def noticed(*_: object) -> None:
        stop.set()
        if not started.is_set():
            raise KeyboardInterrupt

    before = {number: signal.signal(number, noticed) for number in _SIGNALS}
    try:
        with serving as place:
            started.set()
            ready(place)
            stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
