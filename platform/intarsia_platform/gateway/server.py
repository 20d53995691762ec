"""The gateway as a process: one socket, one event loop, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from intarsia_client.errors import InputError, StorageError

if TYPE_CHECKING:
    from intarsia_platform.gateway.core import Gateway

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BACKLOG = 1024
_LAST_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """Take an address; nobody can connect before the server listens.

    Args:
        host: A name or an address of this machine.
        port: A port; 0 for any that is free.

    Returns:
        The socket.

    Raises:
        InputError: If there is no such host or port.
        StorageError: If the address cannot be taken.
    """
    if not 0 <= port < 1 << 16:
        raise InputError("--port", port, "use a number from 0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise InputError("--host", host, "use a name or an address of this machine") from None
    family, kind, protocol, _, address = found[0]
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise StorageError(
            f"address {host}:{port}", error.strerror, "choose another with --host and --port"
        ) from None
    return taken


def url_of(taken: socket.socket, *, tls: bool) -> str:
    """Where a socket can be reached.

    Args:
        taken: The socket.
        tls: Whether it speaks TLS.

    Returns:
        A URL without a slash at its end.
    """
    host, port = taken.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


class GatewayServer(uvicorn.Server):
    """Serves until a signal comes; then takes nothing new and waits for what is being answered.

    Args:
        app: The gateway.
        ready: Called when it listens.
        drain_seconds: How long it waits for answers when it is to end. Those that still run are
            ended then, and their callers told.
        certificate: Certificate chain for TLS, in PEM.
        key: Its private key.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        ready: Callable[[], None],
        drain_seconds: int,
        certificate: Path | None = None,
        key: Path | None = None,
    ) -> None:
        """Prepare; nothing listens yet."""
        self._ready = ready
        self._gateway: Gateway | None = getattr(app.state, "gateway", None)
        self._drain_seconds = drain_seconds
        configuration = uvicorn.Config(
            app,
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=drain_seconds + _LAST_SECONDS,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
        super().__init__(configuration)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell so.

        Args:
            sockets: Where to listen.
        """
        await super().startup(sockets=sockets)
        if self.started:
            self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing new, wait for what is being answered, then end what still runs.

        Args:
            sockets: Where it listened.
        """
        overdue = None
        if self._gateway is not None:
            loop = asyncio.get_running_loop()
            overdue = loop.call_later(self._drain_seconds, self._gateway.end_answers)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            if overdue is not None:
                overdue.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """End in order at the first signal; unlike the library's own, without raising it again.

        Yields:
            Nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
