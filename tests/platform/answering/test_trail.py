import threading

import pytest
from intarsia_client.errors import AccessError, StorageError
from intarsia_platform.access.audit import AuditLog
from intarsia_platform.access.refusal import refused
from intarsia_platform.answering.trail import AuditTrail
from intarsia_platform.registry.database import open_database
from intarsia_platform.serving.streams import Finish, Stream, Token
from sqlalchemy import event


@pytest.fixture
def database(tmp_path):
    with open_database(f"sqlite:///{tmp_path}/intarsia.db") as database:
        yield database


@pytest.fixture
def log(database):
    return AuditLog(database)


@pytest.fixture
def trail(database):
    opened = AuditTrail(database)
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


def test_what_cannot_be_written_is_not_given_out_as_whole(database, log):
    with open_database(str(database.engine.url), busy_seconds=0.1) as impatient:
        trail = AuditTrail(impatient)
        inner = Stream(lambda: None)
        outer = trail.follow(inner, {"action": "answer"})
        with database.begin():
            # Another writer holds the database for longer than this one waits.
            inner.put(piece("secret", Finish.STOP))
            found = outer.read()
        trail.close()
    assert (found.text, found.finish) == ("", Finish.FAILED)
    assert isinstance(outer.error, StorageError)
    assert log.entries() == ()


def test_answers_that_end_together_are_written_together_in_their_order(database, log, trail):
    commits = []
    event.listen(database.engine, "commit", lambda _: commits.append(len(commits)))
    inners = [Stream(lambda: None) for _ in range(40)]
    outers = [trail.follow(one, {"action": "answer", "number": n}) for n, one in enumerate(inners)]
    with database.begin():
        for inner in inners:
            inner.put(piece("x", Finish.LENGTH))
    assert {outer.read().finish for outer in outers} == {Finish.LENGTH}
    assert [entry.event["number"] for entry in log.entries()] == list(range(40))
    assert log.verify() == 40
    # The writer's own, the one that waited, and one for all others.
    assert len(commits) <= 4


def test_an_entry_that_is_none_fails_alone(log, trail):
    inners = [Stream(lambda: None) for _ in range(3)]
    events = [{"action": "answer"}, {"prompt": "a secret"}, {"action": "answer"}]
    outers = [trail.follow(inner, one) for inner, one in zip(inners, events, strict=True)]
    for inner in inners:
        inner.put(piece("x", Finish.STOP))
    ends = [outer.read().finish for outer in outers]
    assert ends == [Finish.STOP, Finish.FAILED, Finish.STOP]
    assert log.verify() == 2


def test_closing_writes_what_has_ended(database, log):
    trail = AuditTrail(database)
    inners = [Stream(lambda: None) for _ in range(100)]
    outers = [trail.follow(inner, {"action": "answer"}) for inner in inners]
    for inner in inners:
        inner.put(piece("x", Finish.STOP))
    trail.close()
    assert all(outer.finish is Finish.STOP for outer in outers)
    assert log.verify() == 100


def test_refusals_are_written_and_raised(log, trail):
    with pytest.raises(AccessError), trail.refusals({"action": "answer", "principal": "ann"}):
        raise refused("adapter", "vault")
    with pytest.raises(ValueError), trail.refusals({"action": "answer"}):
        raise ValueError
    assert [entry.event["decision"] for entry in log.entries()] == ["refuse"]
