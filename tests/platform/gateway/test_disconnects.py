"""Clients that go away, wait too long or ask for too much at once: what they held is free again."""

import contextlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

PATH = "/v1/completions"
LONG = {"model": "legal", "prompt": "the contract", "max_tokens": 1900, "temperature": 0}


@pytest.fixture(scope="module")
def small(in_thread: Any) -> Iterator[Any]:
    """Two requests of a principal at once, and long bodies refused."""
    with in_thread(requests_per_principal=2, body_bytes=4096) as running:
        yield running


def idle(served: Any) -> bool:
    now = served.service.statistics
    room = served.app.state.gateway.room.held
    return (now.running, now.waiting, room) == (0, 0, 0) and now.free == 16


@contextlib.contextmanager
def streaming(served: Any, principal: str = "ana", **fields: Any) -> Iterator[Iterator[str]]:
    with (
        served.http(principal) as http,
        http.stream("POST", PATH, json={**LONG, **fields, "stream": True}) as answer,
    ):
        assert answer.status_code == 200
        yield answer.iter_lines()


def test_a_stream_that_is_left_frees_its_slot(small: Any, until: Any):
    before = small.service.statistics.tokens
    with streaming(small) as lines:
        for _ in range(5):
            next(lines)
        assert small.service.statistics.running == 1
    until(lambda: idle(small))
    assert small.service.statistics.tokens - before < 1000


def test_the_official_client_can_leave_a_stream(small: Any, until: Any):
    before = small.service.statistics.tokens
    stream = small.openai("ana").completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: idle(small))
    assert small.service.statistics.tokens - before < 1000


def test_a_whole_answer_that_nobody_waits_for_is_not_finished(small: Any, until: Any):
    host, port = small.url.removeprefix("http://").split(":")
    body = json.dumps(LONG).encode()
    key = small.departments.keys["ana"]
    with socket.create_connection((host, int(port))) as connection:
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        connection.sendall(head.encode() + body)
        until(lambda: small.service.statistics.running == 1)
    before = small.service.statistics.tokens
    until(lambda: idle(small))
    assert small.service.statistics.tokens - before < 1000


def test_more_at_once_than_one_may_have_is_told_when_to_come_again(small: Any, until: Any):
    with streaming(small) as one, streaming(small) as two:
        next(one), next(two)
        with pytest.raises(openai.RateLimitError) as caught:
            small.openai("ana").completions.create(**LONG)
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.body["code"] == "rate_limit_exceeded"
        # Others are not held up by it.
        short = {**LONG, "model": "medical", "max_tokens": 2}
        assert small.openai("ben").completions.create(**short).usage.completion_tokens == 2
    until(lambda: idle(small))
    assert small.openai("ana").completions.create(**{**LONG, "max_tokens": 2}).choices


def test_a_long_body_is_refused(small: Any):
    with small.http("ana") as http:
        answer = http.post(PATH, json={**LONG, "prompt": "x" * 5000})
        assert answer.status_code == 413

        def pieces() -> Iterator[bytes]:
            for _ in range(5000):
                yield b" "

        answer = http.post(PATH, content=pieces(), headers={"content-type": "application/json"})
        assert answer.status_code == 413
    assert idle(small)


def test_an_answer_that_takes_too_long_ends(in_thread: Any, until: Any):
    with in_thread(request_seconds=0.5) as served:
        with served.http("ana") as http:
            answer = http.post(PATH, json=LONG)
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "timeout")
        stream = served.openai("ana").completions.create(**LONG, stream=True)
        with pytest.raises(openai.APIError, match="took too long"):
            list(stream)
        until(lambda: idle(served))


def test_a_client_that_does_not_read_holds_nothing_for_long(in_thread: Any, until: Any):
    with in_thread(request_seconds=0.5) as served:
        # The engine is shared by the tests of this process, and counts on.
        before = served.service.statistics.tokens
        host, port = served.url.removeprefix("http://").split(":")
        body = json.dumps({**LONG, "stream": True}).encode()
        key = served.departments.keys["ana"]
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            until(lambda: served.service.statistics.running == 1)
            until(lambda: idle(served))
        # The answer was ended, it did not come to its end.
        assert served.service.statistics.tokens - before < LONG["max_tokens"]


def test_a_server_that_must_end_tells_whom_it_still_answers(in_thread: Any, until: Any):
    with in_thread(drain=0) as served:
        stream = iter(served.openai("ana").completions.create(**LONG, stream=True))
        next(stream)
        served.server.should_exit = True
        with pytest.raises(openai.APIError, match="server: is closing"):
            list(stream)
        until(lambda: idle(served))


def test_many_clients_that_come_and_go_leave_nothing(small: Any, until: Any):
    generator = random.Random(4)
    plans = [[generator.randrange(4) for _ in range(5)] for _ in range(6)]
    failures: list[BaseException] = []

    def client(principal: str, plan: list[int]) -> None:
        try:
            for step in plan:
                model = "legal" if principal in ("ana", "dora") else "base"
                with (
                    contextlib.suppress(httpx.ReadTimeout),
                    streaming(small, principal, model=model, max_tokens=12) as lines,
                ):
                    if step == 3:
                        assert [line for line in lines if line][-1] == "data: [DONE]"
                    for _ in range(step):
                        next(lines, None)
        except BaseException as error:
            failures.append(error)

    names = ("ana", "ben", "dora", "eve", "cleo", "ben")
    threads = [
        threading.Thread(target=client, args=[name, plan])
        for name, plan in zip(names, plans, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: idle(small))
