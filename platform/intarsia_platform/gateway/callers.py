"""Who asks: an API key or an issuer's bearer token becomes a principal."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Executor
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from intarsia_platform.access.bearer import MAX_TOKEN, BearerTokens
from intarsia_platform.access.caller import Caller
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.access.refusal import not_authenticated
from intarsia_platform.gateway.failures import failure_from

GUARDED = ("/v1", "/intarsia")
"""Paths that are for known callers only, with all below them."""

_KEY = "ik-"


class Callers:
    """Finds out who asks; safe to share between threads.

    Args:
        keys: The home's API keys.
        tokens: Bearer tokens of an issuer, where one is trusted.
    """

    def __init__(self, keys: ApiKeys, tokens: BearerTokens | None = None) -> None:
        """Keep both."""
        self._keys = keys
        self._tokens = tokens

    def identify(self, credential: str) -> Caller:
        """Find out for whom a credential stands.

        Args:
            credential: An API key, or a token of the issuer.

        Returns:
            The principal; of a token also when it ends.

        Raises:
            AccessError: If it does not hold, in the same words whatever is wrong with it.
            InputError: If the issuer's keys are none.
            StorageError: If database or issuer cannot be reached.
        """
        if self._tokens is None or credential.startswith(_KEY):
            return self._keys.identify(credential)
        return self._tokens.verify(credential)


def presented(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The credential of a request.

    Args:
        headers: The request's headers, names in lower case.

    Returns:
        What stands after ``Bearer``.

    Raises:
        AccessError: If there is not exactly one credential of this kind.
    """
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) != 1 or len(found[0]) > MAX_TOKEN:
        raise not_authenticated()
    scheme, _, credential = found[0].decode("latin-1").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise not_authenticated()
    return credential.strip()


class Authentication:
    """Lets only known callers through, before anything else of their requests is read.

    Formal guarantee: nothing behind it sees a request for a guarded path without
    ``scope["state"]["caller"]``.

    Args:
        app: What is behind it.
        callers: Finds out who asks.
        threads: Where the look-up runs.
    """

    def __init__(self, app: ASGIApp, callers: Callers, threads: Executor) -> None:
        """Keep all."""
        self._app = app
        self._callers = callers
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http" and is_guarded(scope["path"]):
            try:
                look = partial(self._callers.identify, presented(scope["headers"]))
                loop = asyncio.get_running_loop()
                caller = await loop.run_in_executor(self._threads, look)
            except Exception as error:
                await failure_from(error).response()(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)


def is_guarded(path: str) -> bool:
    """Whether a path is for known callers only.

    Args:
        path: The path of a request.

    Returns:
        Whether it is one of :data:`GUARDED` or below one.
    """
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in GUARDED)
