"""What every request passes first: limits of its body, its figures, and an end to every error."""

from __future__ import annotations

import asyncio
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intarsia_platform.gateway.failures import TooLarge, TooSlow, failure_from
from intarsia_platform.gateway.measures import Measures, route_of

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of every answer."""

_CLIENT_GONE = 499
_MOST_DIGITS = 15


class Edge:
    """Measures a request, adds headers to its answer, and tells of an error as failures do.

    Args:
        app: What is behind it.
        measures: The gateway's figures.
    """

    def __init__(self, app: ASGIApp, measures: Measures) -> None:
        """Keep both."""
        self._app = app
        self._measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, began = 0, time.monotonic()

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), *HEADERS]
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message = {**message, "headers": headers}
            await send(message)

        route = route_of(scope["path"])
        try:
            with self._measures.open.track_inprogress():
                await self._app(scope, receive, send_on)
        except Exception as error:
            failure = failure_from(error)
            if not status:
                await failure.response()(scope, receive, send_on)
        finally:
            self._measures.requests.labels(route, status or _CLIENT_GONE).inc()
            self._measures.seconds.labels(route).observe(time.monotonic() - began)


class BodyLimit:
    """Refuses bodies that are too long or too slow.

    Args:
        app: What is behind it.
        most: Bytes.
        seconds: From the first look at a body to its end.
    """

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        """Keep all."""
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        failure = self._announced(scope)
        if failure is not None:
            await failure_from(failure).response()(scope, receive, send)
            return
        length, whole, until = 0, False, None
        loop = asyncio.get_running_loop()

        async def limited() -> Message:
            nonlocal length, whole, until
            if whole:
                return await receive()
            until = until or loop.time() + self._seconds
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise TooSlow("body", f"over {self._seconds:g} s", "send it faster") from None
            length += len(message.get("body", b""))
            if length > self._most:
                raise self._too_large()
            whole = not message.get("more_body", False)
            return message

        await self._app(scope, limited, send)

    def _announced(self, scope: Scope) -> TooLarge | None:
        for name, value in scope["headers"]:
            # A number too long to be read is too large as well.
            digits = value.lstrip(b"0")
            if name != b"content-length" or not digits.isdigit():
                continue
            if len(digits) > _MOST_DIGITS or int(digits) > self._most:
                return self._too_large()
        return None

    def _too_large(self) -> TooLarge:
        return TooLarge("body", "is too long", f"send at most {self._most} bytes")
