"""Tokens per second through the gateway, beside the bare engine, in one server process.

As many streaming clients as rows, each with an API key, a ticket and an adapter of its own that no
other may use, ask over a socket of this machine, from a process of their own. The bare engine gets
the same requests in the server's process: the same principals, prompts, adapters and lengths, one
ticket each from the same authoriser, and their streams are read where they are made. Between the
two stands the service: retrieval's place, the audit log and the engine, without HTTP. The ways
take turns, so that whatever else the machine does falls on all of them. Answers are compared byte
for byte.

    python tests/benchmarks/serving/gateway.py [--quick] [--clients N] [--tokens N] [--repeats N]
        [--small] [--threads T]

``tokens_per_second`` is by the wall; on a machine with as many busy processes as cores it has the
clients' own work in it. ``server_cpu_microseconds`` is the server process's alone, a token, all of
its threads; ``engine_share`` is the bare engine's processor time over the way's, and ``speed`` the
way's tokens per second over the bare engine's. ``peak_bytes`` is the server's largest memory up to
the end of that way's first turn.

The base is a Llama of 8 layers and 512 dimensions with random weights; ``--small`` takes 2 layers
and 64 dimensions, where Python is all the time there is, and ``--quick`` that one with few tokens.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROW_TOKENS = 256
WAYS = ("engine", "service", "gateway")
POLICIES = """
permit(principal, action == Action::"use", resource)
when { principal.groups.containsAny(resource.labels) };
"""


def prompt_of(row: int) -> str:
    """Between 16 and 61 words, the same everywhere."""
    return " ".join(f"t{2 + (row * 97 + place * 31) % 500}" for place in range(16 + 3 * (row % 16)))


def make_home(folder: Path, *, clients: int, small: bool) -> dict[str, str]:
    """A home with an adapter, a principal and a key a client; gives the keys' principals."""
    from generation import RANKS, random_adapter, random_base
    from intarsia_client.base_model import load_base
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.access.policy import PolicyStore
    from intarsia_platform.groups.desk import AdmissionDesk
    from intarsia_platform.home import Home
    from intarsia_platform.registry.adapters import AdapterRegistry
    from intarsia_platform.registry.database import open_database
    from intarsia_platform.registry.lineage import record_artefact
    from intarsia_platform.registry.store import ContentStore
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    place = folder / "base"
    random_base(place, small=small)
    words = PreTrainedTokenizerFast.from_pretrained(place)
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.save_pretrained(place)
    base = load_base(str(place), task="causal-lm")
    home = Home.open(folder / "home")
    people = [
        {
            "uid": {"type": "User", "id": f"u{row}"},
            "attrs": {"groups": [f"g{row}"], "clearance": 1, "tenant": "t"},
            "parents": [],
        }
        for row in range(clients)
    ]
    with open_database(home.database_url) as database:
        store = ContentStore(home.store_url)
        registry, desk = AdapterRegistry(database, store), AdmissionDesk(database, store, home)
        PolicyStore(database).set(POLICIES, json.dumps(people))
        with database.begin() as connection:
            record_artefact(connection, base.digest, "base")
        for row in range(clients):
            adapter = random_adapter(base, RANKS[row % len(RANKS)], row)
            version = registry.prepare(adapter, name=f"a{row}", base_digest=base.digest)
            registry.register(version)
            desk.admit(f"a{row}", labels=[f"g{row}"], sources=[base.digest])
        keys = ApiKeys(database)
        return {f"u{row}": keys.create(f"u{row}")[1] for row in range(clients)}


# The server's process.


def serve(folder: Path, clients: int, tokens: int, threads: int) -> None:
    """Serve as ``intarsia serve`` does, and run the other ways when told to by a line."""
    import torch
    from intarsia_platform.access.keys import ApiKeys
    from intarsia_platform.answering.service import ServiceSettings, open_service
    from intarsia_platform.gateway.app import create_app
    from intarsia_platform.gateway.callers import Callers
    from intarsia_platform.gateway.server import GatewayServer, bind, url_of
    from intarsia_platform.gateway.settings import GatewaySettings
    from intarsia_platform.home import Home

    torch.set_num_threads(threads)
    settings = ServiceSettings(max_rows=clients, row_tokens=ROW_TOKENS)
    home = Home.open(folder / "home")
    with (
        bind("127.0.0.1", 0) as taken,
        open_service(home, base=str(folder / "base"), settings=settings) as service,
    ):
        begun = time.perf_counter()
        service.prepare()
        measuring = time.perf_counter() - begun
        app = create_app(service, Callers(ApiKeys(service.database)), GatewaySettings())

        def obey() -> None:
            ways = {"engine": engine_way, "service": service_way}
            for line in sys.stdin:
                before = usage(service)
                way = ways.get(line.strip())
                found = way(service, clients, tokens) if way else {}
                after = usage(service)
                if way:
                    found["calls"] = after["calls"] - before["calls"]
                say({**after, **found})
            server.should_exit = True

        def ready() -> None:
            say({"url": url_of(taken, tls=False), "measuring_seconds": measuring})
            threading.Thread(target=obey, daemon=True).start()

        server = GatewayServer(app, ready=ready, drain_seconds=1)
        server.run(sockets=[taken])


def say(values: dict[str, Any]) -> None:
    """One line for the other process."""
    print(json.dumps(values), flush=True)


def usage(service: Any) -> dict[str, Any]:
    """What this process has used so far: seconds of its threads, memory, calls of the model."""
    kinds = {"intarsia-engine": "engine", "intarsia-audit": "audit", "intarsia-gateway": "pool"}
    spent = dict.fromkeys(("engine", "audit", "pool", "loop"), 0.0)
    for thread in threading.enumerate():
        name = thread.name.partition("_")[0]
        kind = "loop" if thread is threading.main_thread() else kinds.get(name, "")
        place = Path(f"/proc/self/task/{thread.native_id}/schedstat")
        if kind and place.exists():
            spent[kind] += int(place.read_text().split()[0]) / 1e9
    return {
        "cpu": time.process_time(),
        "threads": spent,
        "calls": service.statistics.calls,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def engine_way(service: Any, clients: int, tokens: int) -> dict[str, Any]:
    """The engine alone: tickets, prompts and adapters as the gateway gives them to it."""
    from intarsia_continual.retrieval import Choice
    from intarsia_platform.serving.engine import Request
    from intarsia_platform.serving.sampling import Sampling

    engine = service._machine.engine()
    begun = time.perf_counter(), time.process_time()
    streams = []
    for row in range(clients):
        ticket = service._authorizer.authorize(f"u{row}")
        choices = [Choice(digest=ticket.named(f"a{row}").digest, weight=1.0)]
        sampling = Sampling(max_tokens=tokens)
        request = Request(ticket=ticket, prompt=prompt_of(row), choices=choices, sampling=sampling)
        streams.append(engine.submit(request))
    answers = [stream.read() for stream in streams]
    return {
        "wall": time.perf_counter() - begun[0],
        "used": time.process_time() - begun[1],
        "tokens": sum(len(answer.tokens) for answer in answers),
        "texts": [answer.text for answer in answers],
    }


def service_way(service: Any, clients: int, tokens: int) -> dict[str, Any]:
    """The service in its own process, without HTTP."""
    from intarsia_platform.answering.use import parse_use
    from intarsia_platform.serving.sampling import Sampling

    begun = time.perf_counter(), time.process_time()
    started = [
        service.start(
            service.authorize(f"u{row}"),
            prompt_of(row),
            parse_use(f"a{row}"),
            Sampling(max_tokens=tokens),
        )
        for row in range(clients)
    ]
    answers = [one.stream.read() for one in started]
    return {
        "wall": time.perf_counter() - begun[0],
        "used": time.process_time() - begun[1],
        "tokens": sum(len(answer.tokens) for answer in answers),
        "texts": [answer.text for answer in answers],
    }


# The clients' process.


class Server:
    """The other process.

    Args:
        process: It.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        """Wait until it listens."""
        self._process = process
        self.began = self._line()

    def tell(self, word: str) -> dict[str, Any]:
        """Send a word, and wait for what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the server ended")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def started(folder: Path, given: argparse.Namespace) -> Iterator[Server]:
    """A server process, ended when the block does."""
    words = [str(folder), str(given.clients), str(given.tokens), str(given.threads)]
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"},
    )
    try:
        yield Server(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


async def ask(http: httpx.AsyncClient, row: int, tokens: int) -> tuple[str, int, int]:
    """One client: its text, its tokens, and how many events they came in."""
    body = {"model": f"a{row}", "prompt": prompt_of(row), "max_tokens": tokens, "temperature": 0,
            "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    data = b""
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        async for piece in answer.aiter_raw():
            data += piece
    # Read when all has come, so that the clients' work does not slow the server's.
    events = data.decode().split("\n\n")
    assert events[-2] == "data: [DONE]", events[-2]
    chunks = [json.loads(event[6:]) for event in events[:-2] if event.startswith("data: ")]
    text = "".join(one["text"] for chunk in chunks for one in chunk["choices"])
    return text, int(chunks[-1]["usage"]["completion_tokens"]), len(chunks)


async def gateway_way(server: Server, keys: dict[str, str], tokens: int) -> dict[str, Any]:
    """All clients at once; connections are open and keys were used before."""
    url = server.began["url"]
    clients = [
        httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600, trust_env=False
        )
        for key in keys.values()
    ]
    try:
        await asyncio.gather(*(http.get("/v1/models") for http in clients))
        before = server.tell("usage")
        begun = time.perf_counter(), time.process_time()
        answers = await asyncio.gather(
            *(ask(http, row, tokens) for row, http in enumerate(clients))
        )
        wall, own = time.perf_counter() - begun[0], time.process_time() - begun[1]
        after = server.tell("usage")
    finally:
        for http in clients:
            await http.aclose()
    return {
        "wall": wall,
        "used": after["cpu"] - before["cpu"],
        "calls": after["calls"] - before["calls"],
        "threads": {
            kind: after["threads"][kind] - before["threads"][kind] for kind in after["threads"]
        },
        "tokens": sum(count for _, count, _ in answers),
        "texts": [text for text, _, _ in answers],
        "events": sum(events for _, _, events in answers),
        "clients_used": own,
        "peak_bytes": after["peak_bytes"],
    }


def measured(server: Server, keys: dict[str, str], given: argparse.Namespace) -> dict[str, Any]:
    """Let the ways take turns after one untimed turn each; medians of each."""
    turns: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(given.repeats + 1):
        for way in WAYS:
            if way == "gateway":
                turns[way].append(asyncio.run(gateway_way(server, keys, given.tokens)))
            else:
                turns[way].append(server.tell(way))
    wanted = turns["engine"][0]["texts"]
    for way in WAYS:
        for turn in turns[way]:
            assert turn["tokens"] == given.clients * given.tokens, (way, turn["tokens"])
            assert turn["texts"] == wanted, f"{way} answers otherwise than the engine"
    bare = turns["engine"]
    return {way: summary(turns[way], bare) for way in WAYS}


def summary(turns: list[dict[str, Any]], bare: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the timed turns; ratios are of the turns side by side."""
    pairs = list(zip(turns[1:], bare[1:], strict=True))
    tokens = turns[0]["tokens"]
    used = statistics.median(one["used"] for one, _ in pairs)
    found = {
        "tokens": tokens,
        "tokens_per_second": tokens / statistics.median(one["wall"] for one, _ in pairs),
        "server_cpu_microseconds": 1e6 * used / tokens,
        "speed": statistics.median(other["wall"] / one["wall"] for one, other in pairs),
        "engine_share": statistics.median(other["used"] / one["used"] for one, other in pairs),
        "calls": statistics.median(one["calls"] for one, _ in pairs),
        "peak_bytes": turns[0]["peak_bytes"],
    }
    if "events" in turns[0]:
        found["tokens_per_event"] = tokens / statistics.median(one["events"] for one, _ in pairs)
        found["client_cpu_microseconds"] = statistics.median(
            1e6 * one["clients_used"] / tokens for one, _ in pairs
        )
        found["thread_cpu_microseconds"] = {
            kind: statistics.median(1e6 * one["threads"][kind] / tokens for one, _ in pairs)
            for kind in turns[0]["threads"]
        }
    return found


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), *map(int, sys.argv[3:6]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    given.small = given.small or given.quick
    given.tokens = given.tokens or (24 if given.quick else 128 if given.small else 64)
    given.repeats = given.repeats or (1 if given.quick else 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = make_home(folder, clients=given.clients, small=given.small)
        load = os.getloadavg()[0]
        with started(folder, given) as server:
            ways = measured(server, keys, given)
            report = {
                "clients": given.clients,
                "tokens_each": given.tokens,
                "repeats": given.repeats,
                "small": given.small,
                "threads": given.threads,
                "cores": os.cpu_count(),
                "load_before": load,
                "measuring_seconds": server.began["measuring_seconds"],
                "ways": ways,
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
