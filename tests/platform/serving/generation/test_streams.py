from __future__ import annotations

import asyncio
import threading

import pytest
from intarsia_platform.serving.streams import Answer, Finish, Stream, Token


def _stream() -> tuple[Stream, list[str]]:
    woken: list[str] = []
    return Stream(lambda: woken.append("woken")), woken


def _token(token: int, text: str = "x", finish: Finish | None = None) -> Token:
    return Token(token=token, text=text, finish=finish)


def test_events_come_in_order_and_end_once() -> None:
    stream, _ = _stream()
    stream.put(_token(1, "a"))
    stream.put(_token(2, "b", Finish.STOP))
    stream.put(_token(3, "c", Finish.LENGTH))
    assert stream.read() == Answer(text="ab", tokens=(1, 2), finish=Finish.STOP)
    assert list(stream) == []


def test_waiting_can_end() -> None:
    stream, _ = _stream()
    with pytest.raises(TimeoutError):
        stream.get(timeout=0.01)
    stream.put(_token(1))
    assert stream.get(timeout=1) == _token(1)


def test_leaving_the_block_cancels() -> None:
    stream, woken = _stream()
    with stream:
        assert not stream.cancelled
    assert stream.cancelled
    assert woken == ["woken"]


def test_a_listener_gets_earlier_events_first_and_a_broken_one_cancels() -> None:
    stream, _ = _stream()
    stream.put(_token(1))
    heard: list[Token] = []
    stream.listen(heard.append)
    stream.put(_token(2))
    assert heard == [_token(1), _token(2)]

    def broken(_: Token) -> None:
        raise RuntimeError("gone")

    stream.listen(broken)
    stream.put(_token(3))
    assert stream.cancelled


def test_an_event_loop_can_read_it_and_leaving_early_cancels() -> None:
    async def read(stop_after: int) -> tuple[list[int | None], bool]:
        stream, _ = _stream()

        def produce() -> None:
            for number in range(5):
                stream.put(_token(number, finish=Finish.LENGTH if number == 4 else None))

        seen: list[int | None] = []
        if stop_after < 5:
            stream.put(_token(0))
            events = stream.__aiter__()
            seen.append((await anext(events)).token)
            await events.aclose()
            return seen, stream.cancelled
        thread = threading.Thread(target=produce)
        thread.start()
        async for event in stream:
            seen.append(event.token)
        thread.join()
        return seen, stream.cancelled

    assert asyncio.run(read(5)) == ([0, 1, 2, 3, 4], False)
    assert asyncio.run(read(1)) == ([0], True)


def test_an_event_loop_that_is_gone_cancels() -> None:
    stream, _ = _stream()

    async def begin() -> object:
        events = stream.__aiter__()
        stream.put(_token(1))
        await anext(events)
        return events

    kept = asyncio.run(begin())
    stream.put(_token(2))
    assert stream.cancelled
    assert kept is not None
