"""Ctrl-C and SIGTERM: the first one lets the work end in order, later ones do no harm.

Both arrive as :class:`KeyboardInterrupt`, so that whatever cleans up after one cleans up after the
other.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_PATIENCE = b"intarsia: cleaning up; once more ends it at once\n"
# A progress bar hides it, and has no time left to bring it back.
_SHOW_CURSOR = b"\x1b[?25h"


class Interrupted(Exception):  # noqa: N818 - what a person asked for is no error
    """Work that was stopped from outside, with what to say about it.

    Args:
        line: What was kept and how to go on.
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, line: str, exit_code: int) -> None:
        """Keep both."""
        self.line = line
        self.exit_code = exit_code
        super().__init__(line)


class SignalKeeper:
    """Holds the two signals while a command runs."""

    def __init__(self) -> None:
        """Begin with none received."""
        self._received = 0
        self._first: int = signal.SIGINT

    @property
    def exit_code(self) -> int:
        """128 and the first signal's number, as shells count: 130 after Ctrl-C, 143 after SIGTERM.

        It is kept here, since a library may raise a :class:`KeyboardInterrupt` of its own.
        """
        return 128 + self._first

    def take(self) -> None:
        """Make this the handler of both signals, also where a library has put its own since."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Handle the signals within the block.

        After an interruption they stay handled, since the process still has to clean up; else the
        earlier handlers come back.

        Yields:
            Nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        self.take()
        try:
            yield
        finally:
            if not self._received:
                for number, handler in before.items():
                    signal.signal(number, handler)

    @contextlib.contextmanager
    def explained(self, line: Callable[[], str]) -> Iterator[None]:
        """Say what an interruption of the block leaves.

        Whatever else goes wrong after an interruption is taken for a consequence of it.

        Args:
            line: Called when the block is interrupted; what was kept and how to go on.

        Yields:
            Nothing.

        Raises:
            Interrupted: In the place of :class:`KeyboardInterrupt`.
        """
        try:
            yield
        except Interrupted:
            raise
        except BaseException as error:
            if self._received or isinstance(error, KeyboardInterrupt):
                raise Interrupted(line(), self.exit_code) from error
            raise

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received += 1
        if self._received == 1:
            self._first = number
            raise KeyboardInterrupt
        # A buffered stream may be in use below this frame; the descriptor is always safe.
        with contextlib.suppress(OSError):
            os.write(2, _PATIENCE)
            if self._received > 2 and os.isatty(2):
                os.write(2, _SHOW_CURSOR)
        if self._received > 2:
            os._exit(self.exit_code)
