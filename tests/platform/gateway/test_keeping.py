"""An engine that died or is stuck shows, and one that rests gives memory back."""

from __future__ import annotations

import ctypes
import logging
from typing import Any

import httpx
import openai
import pytest
from intarsia_platform.groups.lifecycle import open_groups
from intarsia_platform.home import Home

SHORT = {"model": "legal", "prompt": "the contract", "max_tokens": 4, "temperature": 0}
LONG = {**SHORT, "max_tokens": 1900}


def health(served: Any, which: str = "ready") -> httpx.Response:
    return httpx.get(f"{served.url}/health/{which}")


def kill(thread: Any) -> None:
    """Raise SystemExit in a thread, as if its code had."""
    number = ctypes.c_ulong(thread.ident)
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(number, ctypes.py_object(SystemExit)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_whose_thread_has_ended_is_not_ready(
    in_thread: Any, own_service: Any, until: Any, caplog: pytest.LogCaptureFixture
):
    with in_thread(own=own_service) as served:
        assert (health(served).status_code, health(served, "live").status_code) == (200, 200)
        stream = iter(served.openai("ana").completions.create(**LONG, stream=True))
        next(stream)
        thread = own_service._machine._engine._thread
        kill(thread)
        # Whoever is being answered is told, and nobody waits for ever.
        with pytest.raises(openai.APIError, match="server: cannot answer this"):
            list(stream)
        until(lambda: not thread.is_alive())
        with caplog.at_level(logging.ERROR):
            answers = [health(served), health(served, "live")]
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["retry-after"]
            assert "thread" not in answer.text
        assert "engine's thread has ended" in caplog.text
        with pytest.raises(openai.InternalServerError) as caught:
            served.openai("ana").completions.create(**SHORT)
        assert caught.value.status_code == 503
        assert served.app.state.gateway.room.held == 0


def test_an_engine_that_is_stuck_is_not_ready_until_it_goes_on(
    in_thread: Any, own_service: Any, until: Any
):
    with in_thread(own=own_service, look_seconds=0.05, stuck_seconds=0.5) as served:
        with served.http("ana") as http:
            assert http.post("/v1/completions", json=SHORT).status_code == 200
        assert health(served).status_code == 200
        stream = served.openai("ana").completions.create(**LONG, stream=True)
        with own_service.base.lock:
            # The next call of the model waits for this lock.
            until(lambda: health(served).status_code == 503)
            assert health(served, "live").status_code == 200
        until(lambda: health(served).status_code == 200)
        assert next(iter(stream)).choices
        stream.close()
        until(lambda: own_service.statistics.running == 0)
        assert health(served).status_code == 200


def test_an_engine_that_rests_is_ready_and_gives_memory_back(
    in_thread: Any, own_service: Any, until: Any
):
    machine = own_service._machine
    with (
        in_thread(own=own_service, look_seconds=0.05, idle_seconds=0.3, stuck_seconds=0.4) as (
            served
        ),
        served.http("dora") as http,
    ):
        body = {**SHORT, "model": "legal,medical"}
        before = http.post("/v1/completions", json=body).json()["choices"]
        rested = machine._served
        until(lambda: rested.copied_bytes == 0)
        assert health(served).status_code == 200
        assert http.post("/v1/completions", json=body).json()["choices"] == before


def test_what_leaves_the_registry_leaves_memory_though_nobody_asks(
    in_thread: Any, own_service: Any, until: Any, tmp_path: Any
):
    bank = own_service._machine.bank
    with in_thread(own=own_service, look_seconds=0.05) as served:
        with served.http("ana") as http:
            found = http.post("/v1/completions", json=SHORT).json()
        digest = found["intarsia"]["used"][0]["adapter"]
        assert bank.digests == (digest,)
        with open_groups(Home.open(tmp_path / "own")) as groups:
            groups.remove("legal")
        until(lambda: bank.digests == ())


def test_a_database_that_cannot_be_read_is_not_ready(in_thread: Any, own_service: Any):
    with in_thread(own=own_service) as served:
        assert health(served).status_code == 200
        with own_service.database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE access_state RENAME TO elsewhere")
        answer = health(served)
        assert answer.status_code == 503 and "elsewhere" not in answer.text
        with own_service.database.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO access_state")
        assert health(served).status_code == 200
