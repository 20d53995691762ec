"""Events from several threads to one event loop."""

import asyncio
import threading

from intarsia_platform.gateway.delivery import Delivery
from intarsia_platform.serving.streams import Finish, Stream, Token


def test_every_event_arrives_once_and_in_order():
    number, length = 8, 300
    streams = [Stream(lambda: None) for _ in range(number)]
    # Some events come before anybody listens.
    for stream in streams:
        stream.put(Token(token=0, text="0"))

    def write(stream: Stream) -> None:
        for place in range(1, length):
            stream.put(Token(token=place, text=str(place)))
        stream.put(Token(token=None, text="", finish=Finish.STOP))

    async def read(delivery: Delivery, stream: Stream) -> list[int | None]:
        inbox, events = delivery.follow(stream), []
        while not events or events[-1].finish is None:
            events += await inbox.take()
        return [event.token for event in events]

    async def main() -> list[list[int | None]]:
        delivery = Delivery(asyncio.get_running_loop())
        readers = [asyncio.create_task(read(delivery, stream)) for stream in streams]
        await asyncio.sleep(0)
        writers = [threading.Thread(target=write, args=[stream]) for stream in streams]
        for writer in writers:
            writer.start()
        found = await asyncio.wait_for(asyncio.gather(*readers), 30)
        for writer in writers:
            writer.join()
        return found

    assert asyncio.run(main()) == [[*range(length), None]] * number


def test_a_loop_that_is_closed_cancels_the_stream():
    loop = asyncio.new_event_loop()
    cancelled = threading.Event()
    stream = Stream(cancelled.set)
    Delivery(loop).follow(stream)
    loop.close()
    stream.put(Token(token=1, text="x"))
    assert stream.cancelled


def test_steps_that_are_close_are_delivered_together():
    stream = Stream(lambda: None)

    async def main() -> list[list[int | None]]:
        inbox = Delivery(asyncio.get_running_loop(), pause=0.2).follow(stream)
        takes = []
        stream.put(Token(token=0, text="0"))
        for place in (1, 2, 3):
            if place == 1:
                takes.append(await inbox.take())
            stream.put(Token(token=place, text=str(place)))
            await asyncio.sleep(0)
        takes.append(await inbox.take())
        inbox.close()
        return [[event.token for event in events] for events in takes]

    # The first at once, those within the pause with the next delivery.
    assert asyncio.run(main()) == [[0], [1, 2, 3]]


def test_a_quiet_stream_gives_nothing_now_and_then():
    stream = Stream(lambda: None)

    async def main() -> list[list[Token]]:
        inbox = Delivery(asyncio.get_running_loop(), quiet=0.05).follow(stream)
        takes = [await inbox.take(), await inbox.take()]
        stream.put(Token(token=1, text="x"))
        takes.append(await inbox.take())
        inbox.close()
        # A closed one keeps no timer on the loop.
        await asyncio.sleep(0.1)
        return takes

    quiet, again, event = asyncio.run(asyncio.wait_for(main(), 30))
    assert (quiet, again) == ([], [])
    assert [one.token for one in event] == [1]
