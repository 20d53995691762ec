"""What callers are told, and what they are not."""

import json
import logging

import pytest
from intarsia_client.errors import InputError, IntarsiaError, IntegrityError, StorageError
from intarsia_platform.access.refusal import bad_ticket, not_authenticated, refused
from intarsia_platform.gateway.failures import (
    ServerBusy,
    TooLarge,
    TooManyRequests,
    TooSlow,
    failure_from,
    failure_of_end,
)
from intarsia_platform.serving.engine import EngineBusy
from intarsia_platform.serving.streams import Finish, Stream, Token


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (not_authenticated(), 401, "invalid_api_key"),
        (refused("adapter", "x"), 404, "model_not_found"),
        (refused("principal", "x"), 403, None),
        (bad_ticket(), 403, None),
        (InputError("n", 2, "ask for 1"), 400, None),
        (TooLarge("body", 1, "less"), 413, None),
        (TooSlow("answer", 1, "less"), 408, "timeout"),
        (TooManyRequests("requests", 1, "wait"), 429, "rate_limit_exceeded"),
        (ServerBusy("requests", 1, "wait"), 503, None),
        (EngineBusy("engine", 1, "wait"), 503, None),
        (StorageError("database", "/home/x", "free space"), 503, None),
        (IntegrityError("blob", "/home/x", "restore it"), 500, None),
        (IntarsiaError("thing", "/home/x", "remedy"), 500, None),
        (RuntimeError("/home/x"), 500, None),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int, code: str | None):
    failure = failure_from(error)
    assert (failure.status, failure.code) == (status, code)
    told = json.loads(failure.body)["error"]
    assert set(told) == {"message", "type", "param", "code"}
    assert "/home" not in told["message"]
    assert ("retry-after" in failure.headers) == (status in (429, 503))


def test_the_machines_own_trouble_is_in_the_log(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.ERROR, logger="intarsia_platform.gateway.failures"):
        failure_from(StorageError("database", "/home/x", "free space"))
        failure_from(ValueError("a prompt's text"))
    assert [record.getMessage() for record in caplog.records] == [
        "a request failed: database: /home/x; free space",
        "a request failed: ValueError",
    ]


def test_unknown_and_forbidden_differ_by_the_name_alone():
    one, other = (failure_from(refused("adapter", name)) for name in ("secret", "absent"))
    assert one.body.replace(b"secret", b"absent") == other.body
    assert (one.status, one.headers) == (other.status, other.headers)


@pytest.mark.parametrize(
    ("finish", "status"),
    [
        (Finish.STOP, None),
        (Finish.LENGTH, None),
        (Finish.REVOKED, 403),
        (Finish.CANCELLED, 503),
        (Finish.FAILED, 500),
    ],
)
def test_each_end_has_its_status(finish: Finish, status: int | None):
    stream = Stream(lambda: None)
    stream.put(Token(token=None, text="", finish=finish), ValueError("inner"))
    failure = failure_of_end(finish, stream)
    assert (failure and failure.status) == status
    assert failure is None or "inner" not in failure.message


def test_a_revoked_answer_says_so():
    failure = failure_of_end(Finish.REVOKED, Stream(lambda: None))
    assert failure is not None
    assert failure.code == "revoked"
    assert failure.message == str(bad_ticket())
