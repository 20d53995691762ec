"""An answer on its way to a client: begun, handed on, and ended whatever happens.

Everything that a request holds (its place, its stream, its slot in the engine) is taken and given
back in one coroutine, which ends when the answer does, when the client goes away, when the time is
over, or when the server closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from intarsia_platform.answering.answers import Started
from intarsia_platform.gateway.asking import Asked
from intarsia_platform.gateway.core import Asker, Gateway
from intarsia_platform.gateway.delivery import Inbox
from intarsia_platform.gateway.failures import Failure, TooSlow, failure_from, failure_of_end
from intarsia_platform.gateway.shapes import (
    ALIVE,
    DONE,
    AnswerShape,
    event_of,
    told_of,
    usage_of,
)
from intarsia_platform.serving.streams import Finish

_LAST_WORD_SECONDS = 5.0
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


@dataclass(kw_only=True)
class _Running:
    """An answer on its way and what has come of it."""

    started: Started
    shape: AnswerShape
    inbox: Inbox
    tokens: int = 0
    finish: Finish | None = None

    @property
    def end(self) -> tuple[Finish, Failure | None]:
        """Why it ended, and what the caller is told where it is not whole."""
        finish = self.finish or Finish.FAILED
        return finish, failure_of_end(finish, self.started.stream)

    @property
    def usage(self) -> dict[str, int]:
        """OpenAI's usage."""
        return usage_of(self.started.prompt_tokens, self.tokens)


class AnswerResponse(Response):
    """The response to a request for an answer.

    Formal guarantee: however :meth:`__call__` ends, the answer's stream has ended or is cancelled
    then, and the request's place in the room is free.

    Args:
        gateway: What answers.
        asker: Who asks.
        asked: What it asks for.
    """

    def __init__(self, gateway: Gateway, asker: Asker, asked: Asked) -> None:
        """Keep all; nothing is begun."""
        super().__init__()
        self._gateway = gateway
        self._asker = asker
        self._asked = asked
        self._began = time.monotonic()
        self._streaming = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or stop when the client has gone away."""
        work = asyncio.create_task(self._answer(scope, receive, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
        if not work.cancelled():
            work.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or tell why not: by the status, or in a stream that has begun by an event."""
        try:
            async with asyncio.timeout(self._gateway.settings.request_seconds):
                failure = await self._try(scope, receive, send)
        except TimeoutError:
            late = TooSlow("answer", "took too long", "ask for fewer tokens, or try again later")
            failure = failure_from(late)
        except Exception as error:
            failure = failure_from(error)
        if failure is None:
            return
        if not self._streaming:
            await failure.response()(scope, receive, send)
            return
        # The official clients raise what such an event says. Whoever does not read gets none.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await _write(send, event_of(failure.body), more=False)

    async def _try(self, scope: Scope, receive: Receive, send: Send) -> Failure | None:
        with self._gateway.room.hold(self._asker.principal):
            async with self._begun() as running:
                if self._asked.stream:
                    return await self._stream(running, send)
                texts = []
                while running.finish is None:
                    texts.append(await self._text(running))
                finish, failure = running.end
        if failure is None:
            text = "".join(text or "" for text in texts)
            body = running.shape.whole(text, finish, running.usage)
            await Response(body, media_type="application/json")(scope, receive, send)
        return failure

    async def _stream(self, running: _Running, send: Send) -> Failure | None:
        shape = running.shape
        self._streaming = True
        await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await _write(send, shape.beginning())
        while running.finish is None:
            text = await self._text(running)
            if text is None:
                await _write(send, ALIVE)
            elif text:
                await _write(send, shape.piece(text))
        finish, failure = running.end
        if failure is None:
            usage = shape.usage(running.usage) if self._asked.usage else b""
            await _write(send, shape.ending(finish) + usage + DONE, more=False)
        return failure

    @contextlib.asynccontextmanager
    async def _begun(self) -> AsyncIterator[_Running]:
        ticket, started = await self._gateway.start(self._asker, self._asked)
        shape = AnswerShape(
            name=ticket.id,
            created=int(time.time()),
            model=self._asked.model,
            chat=self._asked.chat,
            told=told_of(started, self._gateway.settings.telling),
        )
        inbox = self._gateway.delivery.follow(started.stream)
        running = _Running(started=started, shape=shape, inbox=inbox)
        self._gateway.running.add(started.stream)
        try:
            yield running
        finally:
            self._gateway.running.discard(started.stream)
            inbox.close()
            started.stream.cancel()
            measures = self._gateway.measures
            measures.tokens.labels("prompt").inc(started.prompt_tokens)
            measures.tokens.labels("answer").inc(running.tokens)
            measures.answers.labels(str(running.finish or Finish.CANCELLED)).inc()

    async def _text(self, running: _Running) -> str | None:
        """The text that has come since, perhaps none of it; None after a quiet while."""
        events = await running.inbox.take()
        if not events:
            return None
        if not running.tokens:
            self._gateway.measures.first_token.observe(time.monotonic() - self._began)
        running.tokens += sum(event.token is not None for event in events)
        running.finish = events[-1].finish
        return "".join([event.text for event in events])


async def _write(send: Send, data: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


async def _gone(receive: Receive) -> None:
    """Wait until the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
