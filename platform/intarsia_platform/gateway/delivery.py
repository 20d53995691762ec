"""From the engine's threads to the event loop, at one wake-up for many tokens.

A step of the engine gives a token to every row at once. Waking the loop for each of them would cost
the engine's thread a system call a token, and the interpreter's lock with it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

from intarsia_platform.serving.streams import Stream, Token


class Inbox:
    """The events of one answer, on the event loop; made by :meth:`Delivery.follow`."""

    def __init__(self) -> None:
        """Begin empty."""
        self._events: list[Token] = []
        self._arrived = asyncio.Event()

    def put(self, event: Token) -> None:
        """Add an event; on the event loop.

        Args:
            event: The event.
        """
        self._events.append(event)
        self._arrived.set()

    async def take(self) -> list[Token]:
        """Wait for events.

        Returns:
            All that came since, at least one, in their order.
        """
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events


class Delivery:
    """Hands events of many streams to one event loop.

    Formal guarantee: every event of a followed stream reaches its inbox once, in the stream's
    order, as long as the loop runs.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Keep the loop."""
        self._loop = loop
        self._sent: deque[tuple[Inbox, Token]] = deque()
        self._woken = False

    def follow(self, stream: Stream) -> Inbox:
        """Have a stream's events delivered, those that have come already first.

        Args:
            stream: The stream; nobody else reads it.

        Returns:
            Where they arrive.
        """
        inbox = Inbox()
        stream.listen(partial(self._send, inbox))
        return inbox

    def _send(self, inbox: Inbox, event: Token) -> None:
        """Called in the engine's threads. Two may wake the loop at once; that does no harm."""
        self._sent.append((inbox, event))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        # Before anything is taken: what is sent from now on wakes the loop again.
        self._woken = False
        while self._sent:
            inbox, event = self._sent.popleft()
            inbox.put(event)
