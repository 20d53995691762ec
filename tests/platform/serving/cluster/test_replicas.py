"""Two replicas on a real Ray: one is killed, a key is revoked, and callers get what they should."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

pytest.importorskip("ray.serve", reason="ray[serve] is not installed", exc_type=ImportError)

# Read by huggingface_hub when it is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDS = ("one", "two", "red", "blue", "fox", "house", "door", "sky")
POLICIES = """\
@id("own") permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
"""


ISSUER, AUDIENCE = "https://issuer.example", "intarsia"


@dataclass(frozen=True)
class Kept:
    """A home with a base, two principals' keys, a certificate with its key, and an issuer."""

    path: Path
    base: str
    keys: dict[str, tuple[str, str]]
    tls: tuple[Path, Path]
    issuer: Ed25519PrivateKey

    def http(self, url: str, credential: str = "") -> httpx.Client:
        headers = {"Authorization": f"Bearer {credential}"} if credential else {}
        trusted = ssl.create_default_context(cafile=str(self.tls[0]))
        return httpx.Client(base_url=url, headers=headers, timeout=60, verify=trusted)

    def token(self, principal: str, **more: Any) -> str:
        """A bearer token of the issuer."""
        claims = {
            "sub": principal, "iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 600, **more
        }  # fmt: skip
        return jwt.encode(claims, self.issuer, algorithm="EdDSA", headers={"kid": "one"})

    def key_set(self) -> Path:
        """The issuer's key set, a file."""
        public = OKPAlgorithm.to_jwk(self.issuer.public_key(), as_dict=True)
        path = self.path.parent / "keys.json"
        path.write_text(json.dumps({"keys": [{**public, "kid": "one", "alg": "EdDSA"}]}))
        return path


def _base(folder: Path) -> str:
    """A random Llama that never ends an answer by itself."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ("[PAD]", "[UNK]", "<s>", *WORDS)
    vocabulary = {word: index for index, word in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = dict(zip(("pad_token", "unk_token", "bos_token"), names, strict=False))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=4096,
                bos_token_id=2,
                eos_token_id=None,
                pad_token_id=0,
            )
        ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    # Replicas import this module, and find no other of the tests.
    from certificates import write_certificate
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.home import Home
    from intarsia_platform.registry.database import open_database

    folder = tmp_path_factory.mktemp("replicas")
    home = Home.open(folder / "home")
    users = [
        {"uid": {"type": "User", "id": name}, "attrs": {"groups": []}, "parents": []}
        for name in ("ann", "bob")
    ]
    with open_database(home.database_url) as database:
        PolicyStore(database).set(POLICIES, json.dumps(users))
        keys = {name: ApiKeys(database).create(name) for name in ("ann", "bob")}
    return Kept(
        path=home.path,
        base=_base(folder / "base"),
        keys=keys,
        tls=write_certificate(folder),
        issuer=Ed25519PrivateKey.generate(),
    )


@pytest.fixture(scope="module")
def url(kept: Kept) -> Iterator[str]:
    """Two replicas of the home, with TLS and an issuer; one start of Ray for all tests."""
    from intarsia_platform.answering.settings import ServiceSettings
    from intarsia_platform.gateway.settings import GatewaySettings
    from intarsia_platform.serving_cluster.replicas import running_replicas
    from intarsia_platform.serving_cluster.settings import Issuer, ReplicaPlan, ReplicaSettings

    certificate, key = kept.tls
    plan = ReplicaPlan(
        home=kept.path,
        base=kept.base,
        answering=ServiceSettings(max_rows=8, row_tokens=2048, alone=True),
        limits=GatewaySettings(max_tokens=2000),
        issuer=Issuer(keys=str(kept.key_set()), name=ISSUER, audience=AUDIENCE),
    )
    settings = ReplicaSettings(replicas=2, cpus_per_replica=0.5)
    with running_replicas(
        plan, settings, port=0, drain_seconds=1.0, certificate=certificate, key=key
    ) as found:
        yield found


def _replicas() -> dict[str, Any]:
    """The replicas' actors that are alive, by name."""
    import ray

    found = {}
    for one in ray.util.list_named_actors(all_namespaces=True):
        if one["name"].startswith("SERVE_REPLICA::intarsia#"):
            found[one["name"]] = ray.get_actor(one["name"], namespace=one["namespace"])
    return found


def _in(replica: Any, look: Callable[[Any], Any]) -> Any:
    """What a look at a replica's own object says, None before there is one."""
    import ray

    def inside(actor: Any) -> Any:
        ingress = actor._replica_impl._user_callable_wrapper._callable
        app = getattr(ingress, "_asgi_app", None)
        return None if app is None else look(app.state.replica)

    return ray.get(replica.__ray_call__.remote(inside), timeout=60)


def _until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def _ask(client: httpx.Client, prompt: str = "one two", **more: Any) -> httpx.Response:
    asked = {"model": "base", "prompt": prompt, "max_tokens": 8, "temperature": 0, **more}
    return client.post("/v1/completions", json=asked)


def _text(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["text"])


def _streamed(client: httpx.Client, begun: threading.Event) -> list[str]:
    """The events of an answer that takes as long as it may."""
    asked = {"model": "base", "prompt": "one two", "max_tokens": 2000, "stream": True}
    events = []
    with client.stream("POST", "/v1/completions", json=asked) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(line)
                if len(events) > 2:
                    begun.set()
    return events


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_issuers_tokens_over_tls(kept: Kept, url: str) -> None:
    with kept.http(url, kept.token("bob")) as bob:
        # Enough for both replicas to have been asked.
        assert {_ask(bob).status_code for _ in range(8)} == {200}
    refused = (
        kept.token("bob", aud="another"),
        kept.token("bob", exp=time.time() - 1),
        jwt.encode({}, Ed25519PrivateKey.generate(), algorithm="EdDSA", headers={"kid": "one"}),
    )
    for token in refused:
        with kept.http(url, token) as nobody:
            assert _ask(nobody).status_code == 401
    with kept.http(url, kept.token("zoe")) as stranger:
        assert _ask(stranger).status_code == 403
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health/ready")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_replica_and_a_revoked_key(kept: Kept, url: str) -> None:
    from intarsia_platform.access.audit import AuditLog
    from intarsia_platform.home import Home
    from intarsia_platform.registry.database import open_database

    with (
        kept.http(url) as anyone,
        kept.http(url, kept.keys["ann"][1]) as ann,
        kept.http(url, kept.keys["bob"][1]) as bob,
    ):
        first = _text(_ask(ann))
        assert len(first.split()) == 8
        assert anyone.get("/health/ready").status_code == 200
        assert anyone.get("/metrics").status_code == 404
        assert anyone.get("/v1/models").status_code == 401
        long = anyone.post("/v1/completions", content=b" " * (2 << 20))
        assert (long.status_code, long.json()["error"]["message"][:18]) == (
            413,
            "body: is too long;",
        )
        with ThreadPoolExecutor(8) as threads:
            many = list(threads.map(lambda _: _text(_ask(bob)), range(8)))
        assert set(many) == {first}

        # A right is taken away by another process: both end what runs under it, and refuse more.
        replicas = _replicas()
        assert len(replicas) == 2
        ended = _revoked_while_running(kept, ann, list(replicas.values()))
        for events in ended:
            assert any("revoked" in event for event in events[-2:]), events[-2:]
            assert len(events) < 2000
        assert {_ask(ann).status_code for _ in range(6)} == {401}
        for replica in replicas.values():
            key = kept.keys["ann"][1]
            assert _in(replica, lambda own, key=key: _refuses(own, key))
        assert _text(_ask(bob)) == first

        # A process dies: the other one answers at once, and a new one takes its place.
        pids = {name: _in(actor, lambda _: os.getpid()) for name, actor in replicas.items()}
        killed = min(pids)
        os.kill(pids[killed], signal.SIGKILL)
        assert [_text(_ask(bob)) for _ in range(4)] == [first] * 4
        _until(lambda: killed not in (now := _replicas()) and len(now) == 2)
        assert _text(_ask(bob)) == first

    # All processes wrote into one chain.
    with open_database(Home.open(kept.path).database_url) as database:
        log = AuditLog(database)
        assert log.verify() == len(log.entries())
        asked = [one.event for one in log.entries() if one.event["action"] == "answer"]
    of_ann = [one["finish"] for one in asked if one["principal"] == "ann"]
    assert sorted(of_ann) == ["length", *["revoked"] * len(ended)]


def _revoked_while_running(
    kept: Kept, client: httpx.Client, replicas: list[Any]
) -> list[list[str]]:
    """The events of ann's streams, at least one in each replica, whose key is revoked meanwhile."""
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.home import Home
    from intarsia_platform.registry.database import open_database

    streams: list[Any] = []
    with ThreadPoolExecutor(8) as threads:
        while not all(_in(one, lambda own: own.service.statistics.running) for one in replicas):
            assert len(streams) < 6, "every stream is in the same replica"
            begun = threading.Event()
            streams.append(threads.submit(_streamed, client, begun))
            assert begun.wait(60)
        with open_database(Home.open(kept.path).database_url) as database:
            ApiKeys(database).revoke(kept.keys["ann"][0])
        return [stream.result(60) for stream in streams]


def _refuses(replica: Any, key: str) -> bool:
    from intarsia_client.errors import AccessError
    from intarsia_platform.access.keys import ApiKeys

    try:
        ApiKeys(replica.service.database).identify(key)
    except AccessError:
        return True
    return False
