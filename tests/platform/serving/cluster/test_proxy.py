from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from intarsia_platform.serving_cluster.proxy import ProxyBodyLimit


def _passed(
    chunks: Sequence[bytes], announced: bytes | None = None, most: int = 10
) -> tuple[list[Any], list[Any]]:
    """What an application behind the limit gets of a body, and what its sender is told."""
    waiting = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    got: list[Any] = []
    sent: list[Any] = []

    async def app(_: Any, receive: Any, __: Any) -> None:
        while not got or got[-1]["type"] == "http.request":
            got.append(await receive())

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [] if announced is None else [(b"content-length", announced)]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
    asyncio.run(ProxyBodyLimit(app, most)(scope, receive, send))
    return got, sent


def test_what_fits_goes_through() -> None:
    got, sent = _passed([b"12345", b"67890"], b"10")
    assert [one.get("body") for one in got] == [b"12345", b"67890", None]
    assert not sent


@pytest.mark.parametrize("announced", [b"11", b"9" * 400, b"-1", b"ten", b""])
def test_what_is_announced_too_long_is_refused_unread(announced: bytes) -> None:
    got, sent = _passed([b"12345"], announced)
    assert not got
    assert sent[0]["status"] == 413
    assert b"at most 10 bytes" in sent[1]["body"]


def test_what_turns_out_too_long_is_cut_off() -> None:
    got, _ = _passed([b"12345", b"678901", b"2"])
    assert [one["type"] for one in got] == ["http.request", "http.disconnect"]


def test_other_connections_go_through() -> None:
    seen = []

    async def app(scope: Any, *_: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(ProxyBodyLimit(app, 1)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
