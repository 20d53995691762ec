"""What a caller holds of a running answer: events as they come, and a way to stop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    """The model ended it, or a stop text came."""
    LENGTH = "length"
    """It is as long as was asked for, or as the row's room."""
    REVOKED = "revoked"
    """The ticket does not cover it any more, or has expired."""
    CANCELLED = "cancelled"
    """The caller went away, or the engine was closed."""
    FAILED = "failed"
    """The answer could not be computed; :attr:`Stream.error` says why."""


@dataclass(frozen=True, kw_only=True)
class Token:
    """One event of a stream.

    Args:
        token: The token that was chosen, or None where the answer ended without one.
        text: Text that is certain since this token, often none and never half a character.
        finish: Why the answer ended, in the last event; else None.
    """

    token: int | None
    text: str
    finish: Finish | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer.

    Args:
        text: Its text.
        tokens: Its tokens, an end token included.
        finish: Why it ended.
    """

    text: str
    tokens: tuple[int, ...]
    finish: Finish


class Stream:
    """One answer on its way. Iterate over it, or read it whole; also a context manager.

    Formal guarantee: every stream that an engine gave ends with exactly one event that has a
    finish, also when the engine is closed or its thread dies.

    Args:
        wake: Called when the caller cancels.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        """Begin without events."""
        self._wake = wake
        self._events: queue.SimpleQueue[Token] = queue.SimpleQueue()
        self._listener: Callable[[Token], None] | None = None
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._taken = False
        self._finish: Finish | None = None
        self._error: BaseException | None = None

    @property
    def finish(self) -> Finish | None:
        """Why it ended, None while it runs; events may be unread."""
        return self._finish

    @property
    def error(self) -> BaseException | None:
        """Why it failed, for whoever runs the engine; a caller need not be told."""
        return self._error

    @property
    def cancelled(self) -> bool:
        """Whether the caller asked for its end."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End it before its next token; its slot is free then. After its end this does nothing."""
        self._cancelled.set()
        self._wake()

    def listen(self, listener: Callable[[Token], None]) -> None:
        """Have each event handed over at once, those that have come already first.

        Args:
            listener: Called in the engine's thread; it must return quickly. What it raises
                cancels the stream.
        """
        with self._lock:
            while not self._events.empty():
                listener(self._events.get())
            self._listener = listener

    def get(self, timeout: float | None = None) -> Token:
        """Wait for the next event.

        Args:
            timeout: Seconds to wait, or None for as long as it takes.

        Returns:
            The event.

        Raises:
            TimeoutError: If none came in time.
        """
        try:
            return self._events.get(timeout=timeout)
        except queue.Empty:
            raise TimeoutError("no token came in time") from None

    def read(self) -> Answer:
        """Wait for the rest of the answer.

        Returns:
            It.
        """
        events = list(self)
        return Answer(
            text="".join(event.text for event in events),
            tokens=tuple(event.token for event in events if event.token is not None),
            finish=self._finish or Finish.FAILED,
        )

    def __iter__(self) -> Iterator[Token]:
        """The events; after the last one there are none."""
        while not self._taken:
            event = self._events.get()
            self._taken = event.finish is not None
            yield event

    async def __aiter__(self) -> AsyncIterator[Token]:
        """The events, for a program on an event loop; a loop that is left early cancels it."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Token] = asyncio.Queue()

        def hand_over(event: Token) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        self.listen(hand_over)
        try:
            while True:
                event = await events.get()
                yield event
                if event.finish is not None:
                    return
        finally:
            if self._finish is None:
                self.cancel()

    def __enter__(self) -> Stream:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Cancel it where it still runs."""
        self.cancel()

    def put(self, event: Token, error: BaseException | None = None) -> None:
        """Hand an event over; for the engine. After the last event this does nothing.

        Args:
            event: The event.
            error: Why it failed.
        """
        with self._lock:
            if self._finish is not None:
                return
            if event.finish is not None:
                self._finish, self._error = event.finish, error
            if self._listener is None:
                self._events.put(event)
                return
            try:
                self._listener(event)
            except Exception:
                # Its event loop is closed, or the listener is broken: nobody reads any more.
                self._cancelled.set()
