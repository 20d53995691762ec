"""What the routes of one gateway share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from intarsia_client.errors import InputError
from starlette.requests import Request

from intarsia_platform.access.caller import Caller
from intarsia_platform.access.ticket import Ticket
from intarsia_platform.answering.answers import Started
from intarsia_platform.answering.service import AnsweringService
from intarsia_platform.gateway.asking import Asked
from intarsia_platform.gateway.delivery import Delivery
from intarsia_platform.gateway.keeping import Keeper
from intarsia_platform.gateway.measures import Measures
from intarsia_platform.gateway.room import Room
from intarsia_platform.gateway.settings import GatewaySettings
from intarsia_platform.serving.streams import Stream

PURPOSE_HEADER = "x-intarsia-purpose"

_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class Asker:
    """Who asks, and what for.

    Args:
        caller: Whom the request's credential stands for.
        purpose: What for, as policies may ask.
    """

    caller: Caller
    purpose: str = ""

    @property
    def principal(self) -> str:
        """The principal."""
        return self.caller.principal


def asker_of(request: Request) -> Asker:
    """Who asks; for routes behind the check of callers.

    Args:
        request: The request.

    Returns:
        The caller and its purpose.

    Raises:
        InputError: If several purposes are named, or one that is not UTF-8.
    """
    found = [value for name, value in request.headers.raw if name == PURPOSE_HEADER.encode()]
    if len(found) > 1:
        raise InputError("purpose", "comes twice", f"send {PURPOSE_HEADER} once")
    try:
        purpose = b"".join(found).decode()
    except UnicodeDecodeError:
        raise InputError("purpose", "is not UTF-8", f"send {PURPOSE_HEADER} in UTF-8") from None
    return Asker(caller=request.state.caller, purpose=purpose)


class Gateway:
    """A service with what brings it to HTTP.

    Args:
        service: What answers.
        settings: How it is served.
    """

    def __init__(self, service: AnsweringService, settings: GatewaySettings) -> None:
        """Keep both; the event loop comes with :meth:`begin`."""
        self.service = service
        self.settings = settings
        self.room = Room(settings.requests_per_principal, settings.requests)
        self.measures = Measures(lambda: service.statistics)
        self.threads = ThreadPoolExecutor(settings.threads, thread_name_prefix="intarsia-gateway")
        self.running: set[Stream] = set()
        self.keeper = Keeper(service, settings, lambda work: asyncio.ensure_future(self.run(work)))
        self._delivery: Delivery | None = None

    @property
    def delivery(self) -> Delivery:
        """Brings events to the event loop that runs now."""
        if self._delivery is None:
            self._delivery = Delivery(asyncio.get_running_loop())
        return self._delivery

    def end_answers(self) -> None:
        """End every running answer; its caller is told that the server is closing."""
        for stream in self.running:
            stream.cancel()

    def close(self) -> None:
        """Let the threads end; requests must have ended before."""
        self.threads.shutdown(wait=True, cancel_futures=True)

    async def run(self, work: Callable[[], _Result]) -> _Result:
        """Do in a thread what would hold up the event loop.

        Args:
            work: The work.

        Returns:
            What it returns.
        """
        return await asyncio.get_running_loop().run_in_executor(self.threads, work)

    def authorize(self, asker: Asker) -> Ticket:
        """Decide what a caller may use now; in a thread.

        Args:
            asker: Who asks.

        Returns:
            A ticket for one request.

        Raises:
            AccessError: If the principal is not known or its key does not hold any more.
            InputError: If the purpose is not a word.
        """
        caller = asker.caller
        return self.service.authorize(
            caller.principal, asker.purpose, caller.credential, caller.until
        )

    async def start(self, asker: Asker, asked: Asked) -> tuple[Ticket, Started]:
        """Begin an answer; one that nobody waits for any more is cancelled.

        Args:
            asker: Who asks.
            asked: What it asks for.

        Returns:
            The ticket and the answer on its way.

        Raises:
            IntarsiaError: As :meth:`AnsweringService.start`.
        """
        work: Future[tuple[Ticket, Started]] = self.threads.submit(
            partial(self._start, asker, asked)
        )
        try:
            return await asyncio.shield(asyncio.wrap_future(work))
        except asyncio.CancelledError:
            if not work.cancel():
                work.add_done_callback(_cancel_started)
            raise

    def _start(self, asker: Asker, asked: Asked) -> tuple[Ticket, Started]:
        ticket, most = self.authorize(asker), self.settings.prompt_tokens
        if most:
            found = self.service.count_tokens(asked.prompt)
            if found > most:
                raise InputError("prompt", f"{found} tokens", f"use at most {most}")
        return ticket, self.service.start(ticket, asked.prompt, asked.use, asked.sampling)


def _cancel_started(work: Future[tuple[Ticket, Started]]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result()[1].stream.cancel()
