"""Looks after the engine: whether it still works, and what it may let go of while nobody asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from intarsia_client.errors import IntarsiaError

from intarsia_platform.gateway.settings import GatewaySettings
from intarsia_platform.serving.engine import Statistics

_LOGGER = logging.getLogger(__name__)


class Kept(Protocol):
    """The part of :class:`intarsia_platform.answering.service.AnsweringService` that is kept."""

    @property
    def alive(self) -> bool:
        """Whether answers can be computed."""

    @property
    def statistics(self) -> Statistics | None:
        """What the engine does now, None before it began."""

    def forget_departed(self) -> None:
        """Let adapters that are no longer registered leave memory."""

    def rest(self) -> None:
        """Give back memory that the next answer can fill again."""


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the engine was seen doing; two that are equal saw no work done between them."""

    calls: int
    busy: bool


class Keeper:
    """Looks at the engine every few seconds, for as long as the event loop runs.

    An engine whose thread has ended cannot answer. One that has requests and makes no call of the
    model for a long while, or does not even say what it does, is stuck. One that has had nothing to
    do for a while gives back what it can make again, once for each time that it rests.

    Args:
        service: What is looked after.
        settings: How often, and how long is long.
        run: Does in a thread what may take its time.
        clock: Seconds that only rise.
    """

    def __init__(
        self,
        service: Kept,
        settings: GatewaySettings,
        run: Callable[[Callable[[], None]], asyncio.Future[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Look at nothing yet."""
        self._service = service
        self._settings = settings
        self._run = run
        self._clock = clock
        self._seen: _Seen | None = None
        self._since = clock()
        self._rested = False
        self._looking: asyncio.Future[None] | None = None
        self._looked = clock()

    @property
    def trouble(self) -> str:
        """What is wrong with the engine, for the log; empty where it works."""
        if not self._service.alive:
            return "the engine's thread has ended"
        stuck = self._settings.stuck_seconds
        now = self._clock()
        if self._looking is not None and now - self._looked >= stuck:
            return f"the engine has said nothing for {stuck:g} s"
        if self._seen is not None and self._seen.busy and now - self._since >= stuck:
            return f"the engine has requests and has done nothing for {stuck:g} s"
        return ""

    async def keep(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(self._settings.look_seconds)
            # One look at a time: one that never comes back holds one thread, not all of them.
            if self._looking is None or self._looking.done():
                self._looked = self._clock()
                self._looking = self._run(self.look)
                self._looking.add_done_callback(self._told)

    def look(self) -> None:
        """Look once; in a thread."""
        statistics = self._service.statistics
        if statistics is None:
            return
        busy = statistics.running + statistics.waiting > 0
        seen, now = _Seen(calls=statistics.calls, busy=busy), self._clock()
        if seen != self._seen:
            self._seen, self._since, self._rested = seen, now, False
        if not (busy or self._rested) and now - self._since >= self._settings.idle_seconds:
            self._service.rest()
            self._rested = True
        self._service.forget_departed()

    def _told(self, looked: asyncio.Future[None]) -> None:
        self._looking = None
        error = None if looked.cancelled() else looked.exception()
        if error is not None:
            line = str(error) if isinstance(error, IntarsiaError) else type(error).__name__
            _LOGGER.warning("the engine could not be looked after: %s", line)
