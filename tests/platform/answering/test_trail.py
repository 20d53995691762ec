import threading

import pytest
from intarsia_client.errors import AccessError, StorageError
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.refusal import refused
from intarsia_platform.answering.trail import AuditTrail
from intarsia_platform.registry.database import open_database
from intarsia_platform.serving.streams import Finish, Stream, Token


@pytest.fixture
def log(tmp_path):
    with open_database(f"sqlite:///{tmp_path}/intarsia.db") as database:
        yield AuditLog(database)


@pytest.fixture
def trail(log):
    opened = AuditTrail(log)
    yield opened
    opened.close()


def piece(text, finish=None, token=5):
    return Token(token=token, text=text, finish=finish)


def test_an_entry_stands_before_the_last_event_is_given_out(log, trail):
    inner = Stream(lambda: None)
    inner.put(piece("a"))
    outer = trail.follow(inner, {"action": "answer", "principal": "ann"})
    inner.put(piece("b"))
    seen = []
    done = threading.Event()

    def look(event):
        seen.append((event, len(log.entries())))
        if event.finish is not None:
            done.set()

    outer.listen(look)
    inner.put(piece("c", Finish.STOP))
    assert done.wait(10)
    assert [(event.text, entries) for event, entries in seen] == [("a", 0), ("b", 0), ("c", 1)]
    (entry,) = log.entries()
    assert entry.event["tokens"] == 3 and entry.event["finish"] == "stop"
    assert entry.event["decision"] == "allow" and log.verify() == 1


def test_cancelling_reaches_the_engine_and_is_written(log, trail):
    woken = []
    inner = Stream(lambda: woken.append(True))
    outer = trail.follow(inner, {"action": "answer"})
    with outer:
        inner.put(piece("a"))
    assert inner.cancelled and woken
    inner.put(Token(token=None, text="", finish=Finish.CANCELLED))
    assert outer.read().finish is Finish.CANCELLED
    (entry,) = log.entries()
    assert (entry.event["finish"], entry.event["tokens"]) == ("cancelled", 1)


def test_a_reader_that_breaks_cancels_the_engines_stream(trail):
    inner = Stream(lambda: None)

    def broken(event):
        raise RuntimeError

    trail.follow(inner, {"action": "answer"}).listen(broken)
    inner.put(piece("a"))
    assert inner.cancelled
    inner.put(Token(token=None, text="", finish=Finish.CANCELLED))


def test_what_cannot_be_written_is_not_given_out_as_whole(log, monkeypatch):
    def full(event):
        raise StorageError("database", "full", "free space")

    monkeypatch.setattr(log, "append", full)
    trail = AuditTrail(log)
    inner = Stream(lambda: None)
    outer = trail.follow(inner, {"action": "answer"})
    inner.put(piece("secret", Finish.STOP))
    found = outer.read()
    assert (found.text, found.finish) == ("", Finish.FAILED)
    assert isinstance(outer.error, StorageError)
    trail.close()


def test_refusals_are_written_and_raised(log, trail):
    with pytest.raises(AccessError), trail.refusals({"action": "answer", "principal": "ann"}):
        raise refused("adapter", "vault")
    with pytest.raises(ValueError), trail.refusals({"action": "answer"}):
        raise ValueError
    assert [entry.event["decision"] for entry in log.entries()] == ["refuse"]
