"""Credentials and the paths that ask for them."""

import datetime
import json
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from intarsia_client.errors import AccessError
from intarsia_platform.access.bearer import BearerTokens
from intarsia_platform.access.keys import ApiKeys
from intarsia_platform.gateway.callers import Callers, is_guarded, presented
from intarsia_platform.home import Home
from intarsia_platform.registry.database import open_database


@pytest.mark.parametrize(
    ("headers", "credential"),
    [
        ([(b"authorization", b"Bearer ik-1")], "ik-1"),
        ([(b"authorization", b"bearer   ik-1 ")], "ik-1"),
        ([(b"authorization", b"Basic ik-1")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"ik-1")], None),
        ([(b"authorization", b"Bearer " + b"x" * 20_000)], None),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], None),
        ([(b"x-api-key", b"ik-1")], None),
        ([], None),
    ],
)
def test_one_bearer_credential_is_taken(headers: list[tuple[bytes, bytes]], credential: str | None):
    if credential is None:
        with pytest.raises(AccessError, match="credential"):
            presented(headers)
    else:
        assert presented(headers) == credential


@pytest.mark.parametrize(
    ("path", "guarded"),
    [
        ("/v1", True),
        ("/v1/models", True),
        ("/v1/nothing/here", True),
        ("/intarsia/access", True),
        ("/v1x", False),
        ("/console/", False),
        ("/metrics", False),
        ("/health/live", False),
    ],
)
def test_what_is_guarded(path: str, guarded: bool):
    assert is_guarded(path) == guarded


def token(key: ed25519.Ed25519PrivateKey, **claims: Any) -> str:
    now = datetime.datetime.now(datetime.UTC)
    body = {"iss": "https://issuer.example", "aud": "intarsia", "sub": "ana", **claims}
    body.setdefault("exp", now + datetime.timedelta(minutes=5))
    return jwt.encode(body, key, algorithm="EdDSA", headers={"kid": "one"})


@pytest.fixture
def key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.fixture
def tokens(key: ed25519.Ed25519PrivateKey, tmp_path: Path) -> BearerTokens:
    entry = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{**entry, "kid": "one"}]}))
    return BearerTokens(path, "https://issuer.example", "intarsia")


def test_keys_and_tokens_both_name_a_principal(
    key: ed25519.Ed25519PrivateKey, tokens: BearerTokens, tmp_path: Path
):
    with open_database(Home.open(tmp_path / "home").database_url) as database:
        keys = ApiKeys(database)
        key_id, secret = keys.create("ben")
        callers = Callers(keys, tokens)
        by_key = callers.identify(secret)
        assert (by_key.principal, by_key.credential) == ("ben", key_id)
        by_token = callers.identify(token(key))
        assert (by_token.principal, by_token.credential) == ("ana", "")
        for wrong in (secret[:-1] + "x", token(key, aud="others"), "nothing"):
            with pytest.raises(AccessError, match="credential: is not valid here"):
                callers.identify(wrong)
        with pytest.raises(AccessError):
            Callers(keys).identify(token(key))


def test_a_token_tells_when_it_ends_and_a_key_does_not(
    key: ed25519.Ed25519PrivateKey, tokens: BearerTokens, tmp_path: Path
):
    now = datetime.datetime.now(datetime.UTC)
    with open_database(Home.open(tmp_path / "home").database_url) as database:
        keys = ApiKeys(database)
        callers = Callers(keys, tokens)
        assert callers.identify(keys.create("ben")[1]).until is None
        ends = int(now.timestamp()) + 40
        assert callers.identify(token(key, exp=ends)).until == ends
        assert callers.identify(token(key, exp=10**30)).until == 1 << 50
        # The issuer's clock is trusted with a token's beginning, not with its end.
        with pytest.raises(AccessError, match="credential: is not valid here"):
            callers.identify(token(key, exp=int(now.timestamp()) - 5))


def test_a_token_that_ends_ends_what_runs_under_it(
    key: ed25519.Ed25519PrivateKey, tokens: BearerTokens, in_thread: Any
):
    from intarsia_platform.access.audit import AuditLog

    with in_thread(tokens=tokens) as served, served.http("ben") as http:
        ends = int(datetime.datetime.now(datetime.UTC).timestamp()) + 3
        headers = {"Authorization": f"Bearer {token(key, exp=ends)}"}
        body = {"model": "legal", "prompt": "the contract", "max_tokens": 1900, "stream": True}
        with http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
        told = json.loads(lines[-1].removeprefix("data: "))
        assert told["error"]["code"] == "revoked"
        assert len(lines) > 2
        again = http.get("/v1/models", headers=headers)
        assert again.status_code == 401
        entry = AuditLog(served.service.database).entries(last=1)[0]
        assert entry.event["finish"] == "revoked" and entry.event["tokens"] < 1900
        assert entry.created_at.timestamp() >= ends


def test_a_token_asks_over_http(
    key: ed25519.Ed25519PrivateKey, tokens: BearerTokens, in_thread: Any
):
    with in_thread(tokens=tokens) as served, served.http("ben") as http:
        headers = {"Authorization": f"Bearer {token(key)}"}
        found = http.get("/v1/models", headers=headers).json()
        assert [entry["id"] for entry in found["data"]] == ["auto", "base", "legal"]
        wrong = http.get("/v1/models", headers={"Authorization": f"Bearer {token(key, iss='x')}"})
        assert wrong.status_code == 401
