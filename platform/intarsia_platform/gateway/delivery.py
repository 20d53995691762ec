"""From the engine's threads to the event loop, at one wake-up for many tokens.

A step of the engine gives a token to every row at once. Waking the loop for each of them would cost
the engine's thread a system call a token, and the interpreter's lock with it. Steps that are
shorter than a reader can tell apart are delivered together, since an event costs as much as the
tokens of a small model do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from intarsia_platform.serving.streams import Stream, Token

QUIET_SECONDS = 15.0
"""How long a stream may be quiet before its reader is told that it still runs."""

PAUSE_SECONDS = 0.02
"""Least time from one delivery to the next."""


class Inbox:
    """The events of one answer, on the event loop; made by :meth:`Delivery.follow`.

    Args:
        loop: The event loop.
        quiet: Seconds without an event after which :meth:`take` returns none.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, quiet: float) -> None:
        """Begin empty."""
        self._loop = loop
        self._quiet = quiet
        self._events: list[Token] = []
        self._waiter: asyncio.Future[None] | None = None
        self._last = loop.time()
        # One timer for all that is taken, not one for each time.
        self._timer = loop.call_later(quiet, self._look)

    def put(self, event: Token) -> None:
        """Add an event; on the event loop.

        Args:
            event: The event.
        """
        self._events.append(event)
        self._wake()

    async def take(self) -> list[Token]:
        """Wait for events; one task at a time.

        Returns:
            All that came since, in their order; none after a quiet while.
        """
        if not self._events:
            self._waiter = self._loop.create_future()
            await self._waiter
        self._last = self._loop.time()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Wait for nothing any more."""
        self._timer.cancel()

    def _look(self) -> None:
        left = self._last + self._quiet - self._loop.time()
        if left <= 0:
            self._wake()
            left = self._quiet
        self._timer = self._loop.call_later(left, self._look)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Delivery:
    """Hands events of many streams to one event loop.

    Formal guarantee: every event of a followed stream reaches its inbox once, in the stream's
    order, as long as the loop runs.

    Args:
        loop: The event loop.
        pause: Least seconds from one delivery to the next; what comes meanwhile goes with it.
        quiet: As :class:`Inbox` takes it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        pause: float = PAUSE_SECONDS,
        quiet: float = QUIET_SECONDS,
    ) -> None:
        """Keep all."""
        self._loop = loop
        self._pause = pause
        self._quiet = quiet
        self._sent: deque[tuple[Inbox, Token]] = deque()
        self._woken = False
        self._next = loop.time()

    def follow(self, stream: Stream) -> Inbox:
        """Have a stream's events delivered, those that have come already first.

        Args:
            stream: The stream; nobody else reads it.

        Returns:
            Where they arrive, to be closed.
        """
        inbox = Inbox(self._loop, self._quiet)
        stream.listen(partial(self._send, inbox))
        return inbox

    def _send(self, inbox: Inbox, event: Token) -> None:
        """Called in the engine's threads. Two may wake the loop at once; that does no harm."""
        self._sent.append((inbox, event))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._arrive)

    def _arrive(self) -> None:
        wait = self._next - self._loop.time()
        if wait > 0:
            self._loop.call_later(wait, self._deliver)
        else:
            self._deliver()

    def _deliver(self) -> None:
        self._next = self._loop.time() + self._pause
        # Before anything is taken: what is sent from now on wakes the loop again.
        self._woken = False
        while self._sent:
            inbox, event = self._sent.popleft()
            inbox.put(event)
