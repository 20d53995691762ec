"""Bodies that are too long or too slow, and whatever else goes wrong, before any route."""

import asyncio
import json
from typing import Any

import pytest
from intarsia_platform.gateway.edge import BodyLimit, Edge
from intarsia_platform.gateway.measures import Measures, route_of

Message = dict[str, Any]


class Application:
    """Reads the whole body, then answers with its length; or fails as it is told."""

    def __init__(self, error: Exception | None = None, *, late: bool = False) -> None:
        self.error, self.late, self.called = error, late, False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.called = True
        if self.error and not self.late:
            raise self.error
        length, more = 0, True
        while more:
            message = await receive()
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if self.error:
            raise self.error
        await send({"type": "http.response.body", "body": str(length).encode()})


def answer(
    application: Any, pieces: list[bytes], headers: dict[str, str] | None = None, wait: float = 0
) -> tuple[list[Message], Measures]:
    measures = Measures(lambda: None)
    app = Edge(BodyLimit(application, 10, 0.2), measures)
    sent: list[Message] = []
    waiting = list(pieces)

    async def receive() -> Message:
        await asyncio.sleep(wait)
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "path": "/v1/completions", "headers": raw, "method": "POST"}
    asyncio.run(app(scope, receive, send))
    return sent, measures


def counted(measures: Measures, status: int) -> bool:
    line = f'intarsia_requests_total{{route="completions",status="{status}"}} 1.0'
    return line in measures.page()[0].decode()


def test_a_body_within_the_bound_passes():
    sent, measures = answer(Application(), [b"12345", b"67890"])
    assert sent[1]["body"] == b"10"
    assert counted(measures, 200)
    headers = dict(sent[0]["headers"])
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"


@pytest.mark.parametrize("length", ["11", "9" * 5000, "00000000000000000099"])
def test_a_body_that_says_it_is_too_long_is_not_read(length: str):
    application = Application()
    sent, measures = answer(application, [b""], {"content-length": length})
    assert sent[0]["status"] == 413
    assert not application.called
    assert counted(measures, 413)


def test_a_body_that_turns_out_too_long_is_refused():
    sent, _ = answer(Application(), [b"12345", b"67890", b"1"])
    assert sent[0]["status"] == 413


def test_a_body_that_is_too_slow_is_refused():
    sent, _ = answer(Application(), [b"1"] * 9, wait=0.1)
    assert sent[0]["status"] == 408


def test_an_error_is_told_without_its_words():
    sent, measures = answer(Application(ValueError("inner")), [b""])
    assert sent[0]["status"] == 500
    assert "inner" not in json.loads(sent[1]["body"])["error"]["message"]
    assert counted(measures, 500)


def test_an_error_after_the_beginning_sends_no_second_answer():
    sent, measures = answer(Application(ValueError("inner"), late=True), [b""])
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert counted(measures, 200)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/models/secret", "models"),
        ("/console/console.js", "console"),
        ("/v1/completions/secret", "other"),
        ("/secret", "other"),
    ],
)
def test_paths_are_counted_under_a_few_words(path: str, route: str):
    assert route_of(path) == route
