"""What stands before Ray Serve's proxy, which reads a request before any replica knows of it."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from intarsia_platform.gateway.failures import TooLarge, failure_from


class ProxyBodyLimit:
    """Keeps bodies that are too long out of the proxy's memory, whoever sends them.

    The proxy takes in whatever comes and hands it to a replica, where keys are checked; without a
    limit here anybody could fill it. A length that is announced is refused in words; a body that
    turns out longer is cut off as if its sender had gone.

    Args:
        app: What is behind it.
        most: Bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        """Keep both."""
        self._app = app
        self._most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = (value for name, value in scope["headers"] if name == b"content-length")
        if any(_number(value) > self._most for value in announced):
            line = TooLarge("body", "is too long", f"send at most {self._most} bytes")
            await failure_from(line).response()(scope, receive, send)
            return
        length = 0

        async def limited() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            return message if length <= self._most else {"type": "http.disconnect"}

        await self._app(scope, limited, send)


def _number(text: bytes) -> float:
    """A length as it is announced; what is no length is not one that can be kept."""
    return float(text) if text.isdigit() else float("inf")
