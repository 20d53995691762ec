"""Two callers with different rights, and what one learns of the other's adapters: nothing."""

import concurrent.futures
import json
from typing import Any

import httpx
import pytest
from intarsia_platform.access.audit import AuditLog

PROMPT = "the patient takes two tablets"
PATHS = ("/v1/completions", "/v1/chat/completions")


def asked(path: str, model: str, **fields: Any) -> dict[str, Any]:
    given = {"messages": [{"role": "user", "content": PROMPT}]} if "chat" in path else {}
    return {"model": model, "max_tokens": 8, "temperature": 0, **(given or {"prompt": PROMPT}),
            **fields}  # fmt: skip


def ids(served: Any, principal: str, **headers: str) -> list[str]:
    with served.http(principal, headers=headers) as http:
        found = http.get("/v1/models").json()
    return [entry["id"] for entry in found["data"]]


def test_each_caller_sees_only_what_it_may_use(served: Any):
    assert ids(served, "ana") == ["auto", "base", "legal"]
    assert ids(served, "ben") == ["auto", "base", "medical"]
    assert ids(served, "eve") == ["auto", "base"]


def test_a_purpose_opens_what_policies_open_for_it(served: Any):
    purpose = {"X-Intarsia-Purpose": "audit"}
    assert ids(served, "cleo") == ["auto", "base"]
    assert ids(served, "cleo", **purpose) == ["auto", "base", "legal", "medical"]
    with served.http("cleo", headers=purpose) as http:
        found = http.post("/v1/completions", json=asked("", "legal")).json()
        assert found["intarsia"]["labels"] == ["legal"]
    with served.http("cleo") as http:
        headers = [("X-Intarsia-Purpose", "a"), ("X-Intarsia-Purpose", "b")]
        assert http.get("/v1/models", headers=headers).status_code == 400
        assert http.get("/v1/models", headers={"X-Intarsia-Purpose": b"\xff"}).status_code == 400


@pytest.mark.parametrize("path", [*PATHS, "/v1/models/"])
@pytest.mark.parametrize("stream", [False, True])
def test_unknown_and_forbidden_are_byte_identical(served: Any, path: str, stream: bool):
    def ask(http: httpx.Client, model: str) -> httpx.Response:
        if path == "/v1/models/":
            return http.get(path + model)
        return http.post(path, json=asked(path, model, stream=stream))

    with served.http("ana") as http:
        forbidden, unknown = ask(http, "medical"), ask(http, "nursing")
        mixed = ask(http, "legal,medical"), ask(http, "legal,nursing")
    assert forbidden.status_code == 404
    for one, other in ((forbidden, unknown), mixed):
        assert one.status_code == other.status_code
        assert one.content.replace(b"medical", b"nursing") == other.content
        plain = [{k: v for k, v in r.headers.items() if k != "date"} for r in (one, other)]
        assert plain[0] == plain[1]


def test_odd_names_of_models_are_as_unknown_as_others(served: Any):
    with served.http("ana") as http:
        for name in ("a=0", "a,a", "auto,legal", "%F0%9F%A6%89", "x" * 300):
            assert http.get(f"/v1/models/{name}").status_code == 404, name


def test_a_key_of_nobody_that_policies_know_is_refused(served: Any):
    with served.http("stranger") as http:
        answers = [http.get("/v1/models"), http.post(PATHS[0], json=asked(PATHS[0], "base"))]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json() == answers[1].json()


@pytest.mark.parametrize("path", ["/v1/models", "/v1/nothing", "/intarsia/caller", *PATHS])
def test_without_a_key_nothing_is_read(served: Any, path: str):
    answer = httpx.post(served.url + path, content=b"{not json")
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_answers_in_one_batch_are_as_those_alone(served: Any):
    wanted = [
        ("ana", "legal"),
        ("ben", "medical"),
        ("dora", "legal=1,medical=1"),
        ("eve", "base"),
        ("ana", "auto"),
        ("ben", "auto"),
    ]

    def text(principal: str, model: str, seed: int) -> Any:
        with served.http(principal) as http:
            body = asked(PATHS[0], model, max_tokens=24, temperature=0.7, seed=seed)
            found = http.post(PATHS[0], json=body).json()
        return found["choices"][0]["text"], found["intarsia"]

    alone = [text(*who, seed=3) for who in wanted]
    with concurrent.futures.ThreadPoolExecutor(len(wanted)) as threads:
        together = list(threads.map(lambda who: text(*who, seed=3), wanted))
    assert together == alone
    assert len({one for one, _ in alone}) > 3


def test_the_audit_log_tells_each_answer_and_no_text(served: Any):
    log = AuditLog(served.service.database)
    before = log.verify()
    with served.http("ana") as http:
        answer = http.post(PATHS[0], json=asked(PATHS[0], "legal")).json()
        http.post(PATHS[0], json=asked(PATHS[0], "medical"))
        http.post("/v1/embeddings", json={"model": "base", "input": PROMPT})
    entries = log.entries(last=log.verify() - before)
    events = [entry.event for entry in entries]
    assert [event["action"] for event in events] == ["answer", "answer", "embed"]
    assert [event["decision"] for event in events] == ["allow", "refuse", "allow"]
    assert {event["principal"] for event in events} == {"ana"}
    assert answer["id"] == f"cmpl-{events[0]['ticket']}"
    written = json.dumps([dict(event) for event in events])
    assert PROMPT not in written
    assert answer["choices"][0]["text"] not in written


def test_bad_bodies_are_told_without_their_text(served: Any):
    with served.http("ana") as http:
        bodies = [
            b"{not json",
            b'{"model": "base"}',
            b'{"model": "base", "prompt": 5}',
            b"[1]",
            b"",
        ]
        for body in bodies:
            answer = http.post(PATHS[0], content=body, headers={"content-type": "application/json"})
            assert answer.status_code == 400, body
            assert answer.json()["error"]["type"] == "invalid_request_error"
        secret = http.post(PATHS[0], json={"model": "base", "prompt": {"x": "my secret"}})
        assert secret.status_code == 400
        assert "my secret" not in secret.text
        deep = b'{"model": ' + b"[" * 100_000
        answer = http.post(PATHS[0], content=deep, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert http.get("/v1/nothing").status_code == 404
        assert http.delete("/v1/models").status_code == 405


def test_health_and_figures_are_for_everybody_and_name_nobody(served: Any):
    with served.http("ana") as http:
        http.post(PATHS[0], json=asked(PATHS[0], "legal"))
    assert httpx.get(f"{served.url}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{served.url}/health/ready").json() == {"status": "ready"}
    page = httpx.get(f"{served.url}/metrics").text
    assert 'intarsia_requests_total{route="completions",status="200"}' in page
    assert 'intarsia_answers_total{finish="length"}' in page
    assert "intarsia_engine_free_slots" in page
    for name in ("ana", "legal", "medical", served.departments.keys["ana"]):
        assert f'"{name}"' not in page


def test_telling_can_be_less(in_thread: Any):
    with in_thread(telling="labels", metrics=False, console=False) as served:
        with served.http("ana") as http:
            told = http.post(PATHS[0], json=asked(PATHS[0], "legal")).json()["intarsia"]
            assert told == {"labels": ["legal"]}
            assert http.get("/intarsia/caller").status_code == 404
        assert httpx.get(f"{served.url}/metrics").status_code == 404
        assert httpx.get(f"{served.url}/console/").status_code == 404
