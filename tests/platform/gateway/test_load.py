"""A thousand requests of 64 clients that come, go and leave early: none is stuck, none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import json
import random
import resource
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from intarsia_platform.access.audit import AuditLog

pytestmark = pytest.mark.slow

PATH = "/v1/completions"
CLIENTS, REQUESTS, WARM = 64, 1000, 64
# What the whole run may leave behind in this process, the clients' own memory in it.
LEFT_BYTES = 64 << 20
PROMPTS = ("the contract", "the patient takes", "both parties")
LENGTHS = (1, 2, 4)
MAY = {
    "ana": ("legal", "auto", "base"),
    "ben": ("medical", "auto", "base"),
    "cleo": ("base",),
    "dora": ("legal", "medical", "legal=3,medical", "auto"),
    "eve": ("base", "auto"),
}
MAY_NOT = {
    "ana": ("medical", "legal,medical", "nursing"),
    "ben": ("legal", "nursing"),
    "cleo": ("legal",),
    "dora": ("nursing",),
    "eve": ("legal", "medical"),
    "stranger": ("base", "legal"),
}


@dataclass(frozen=True)
class Plan:
    """One request, drawn before anything runs."""

    principal: str
    model: str
    allowed: bool
    prompt: str
    tokens: int
    stream: bool
    leave: str = ""
    """``"now"`` soon after it was sent, ``"first"`` after its first event, else it stays."""
    wait: float = 0.0

    @property
    def body(self) -> dict[str, Any]:
        body = {"model": self.model, "prompt": self.prompt, "temperature": 0}
        return {**body, "max_tokens": self.tokens, "stream": self.stream}

    @property
    def question(self) -> Plan:
        """What its text depends on."""
        return dataclasses.replace(self, stream=False, wait=0.0)


@dataclass
class Seen:
    """How the requests ended."""

    answers: dict[str, Plan] = field(default_factory=dict)
    left: dict[str, Plan] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    unseen: list[Plan] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        return len(self.answers) + len(self.left) + self.refused.total() + len(self.unseen)


def plans(generator: random.Random, count: int) -> list[Plan]:
    found = []
    for _ in range(count):
        forbidden = generator.random() < 0.2
        rights = MAY_NOT if forbidden else MAY
        principal = generator.choice(sorted(rights))
        stream = generator.random() < 0.5
        leave, tokens = "", generator.choice(LENGTHS)
        if not forbidden and generator.random() < 0.2:
            # Long enough that it cannot have come to its end.
            leave, tokens = "first" if stream and generator.random() < 0.7 else "now", 1900
        found.append(
            Plan(
                principal=principal,
                model=generator.choice(rights[principal]),
                allowed=not forbidden,
                prompt=generator.choice(PROMPTS),
                tokens=tokens,
                stream=stream,
                leave=leave,
                wait=generator.random() * 0.03,
            )
        )
    return found


def alone(service: Any, wanted: list[Plan]) -> dict[Plan, str]:
    """What each caller's answer is when nobody else asks."""
    from intarsia_platform.answering.use import parse_use
    from intarsia_platform.serving.sampling import Sampling

    texts: dict[Plan, str] = {}
    for plan in wanted:
        if plan.allowed and not plan.leave and plan.question not in texts:
            ticket, sampling = service.authorize(plan.principal), Sampling(max_tokens=plan.tokens)
            answered = service.answer(ticket, plan.prompt, parse_use(plan.model), sampling)
            texts[plan.question] = answered.text
    return texts


class Load:
    """Clients that work through plans.

    Args:
        http: What they share.
        keys: Each principal's key.
        texts: What is right.
    """

    def __init__(self, http: httpx.AsyncClient, keys: dict[str, str], texts: dict[Plan, str]):
        self.http, self.keys, self.texts, self.seen = http, keys, texts, Seen()

    async def run(self, wanted: list[Plan]) -> None:
        async def client(own: list[Plan]) -> None:
            for plan in own:
                await self.ask(plan)

        await asyncio.gather(*(client(wanted[place::CLIENTS]) for place in range(CLIENTS)))

    async def ask(self, plan: Plan) -> None:
        headers = {"Authorization": f"Bearer {self.keys[plan.principal]}"}
        request = self.http.build_request("POST", PATH, json=plan.body, headers=headers)
        sending = asyncio.create_task(self.http.send(request, stream=True))
        if plan.leave == "now":
            await asyncio.sleep(plan.wait)
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await (await sending).aclose()
            self.seen.unseen.append(plan)
            return
        answer = await sending
        try:
            if answer.status_code != 200:
                self.note_refusal(plan, answer.status_code, await answer.aread())
            elif plan.stream:
                await self.read(plan, answer)
            else:
                body = json.loads(await answer.aread())
                self.note_answer(plan, body["id"], body["choices"][0]["text"])
        finally:
            await answer.aclose()

    async def read(self, plan: Plan, answer: httpx.Response) -> None:
        text, name, last = "", "", ""
        async for line in answer.aiter_lines():
            if line.startswith("data: ") and (last := line[6:]) != "[DONE]":
                chunk = json.loads(last)
                name = chunk["id"]
                text += chunk["choices"][0]["text"]
                if plan.leave:
                    self.seen.left[name] = plan
                    return
        if last != "[DONE]":
            self.seen.wrong.append(f"{plan} ended with {last}")
        self.note_answer(plan, name, text)

    def note_refusal(self, plan: Plan, status: int, body: bytes) -> None:
        expected = (403, None) if plan.principal == "stranger" else (404, "model_not_found")
        if plan.allowed or (status, json.loads(body)["error"]["code"]) != expected:
            self.seen.wrong.append(f"{plan} was told {status} {body!r}")
        self.seen.refused[plan.principal] += 1

    def note_answer(self, plan: Plan, name: str, text: str) -> None:
        right = self.texts.get(plan.question)
        if text != right:
            self.seen.wrong.append(f"{plan} got {text!r}, alone it is {right!r}")
        self.seen.answers[name] = plan


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def state(served: Any) -> dict[str, Any]:
    """What must be as it was when nobody asks."""
    machine, gateway = served.service._machine, served.app.state.gateway
    now, cache = served.service.statistics, machine._engine._runner.cache
    return {
        "running": now.running,
        "waiting": now.waiting,
        "free": now.free,
        "cache_bytes": now.cache_bytes,
        "cache_used": any(store.any() for one in cache.layers for store in (one.keys, one.values)),
        "leases": sum(entry.leases for entry in machine.bank._entries.values()),
        "bank_bytes": machine.bank.size,
        "room": gateway.room.held,
        "streams": len(gateway.running),
        "tasks": len(served.server.server_state.tasks),
    }


@pytest.mark.timeout(1200)
def test_a_thousand_requests_of_clients_that_come_go_and_leave(in_thread: Any, until: Any):
    generator = random.Random(11)
    warm, wanted = plans(generator, WARM), plans(generator, REQUESTS)
    with in_thread(requests_per_principal=CLIENTS) as served:
        texts = alone(served.service, [*warm, *wanted])

        async def main() -> tuple[dict[str, Any], int, int, Seen]:
            # Idle connections are let go of before the server lets go of them, after five seconds.
            limits = httpx.Limits(
                max_connections=CLIENTS, max_keepalive_connections=CLIENTS, keepalive_expiry=1.0
            )
            async with httpx.AsyncClient(base_url=served.url, limits=limits, timeout=600) as http:
                keys = served.departments.keys
                await Load(http, keys, texts).run(warm)
                await asyncio.to_thread(until, lambda: state(served)["tasks"] == 0, 60)
                gc.collect()
                before, memory = state(served), resident()
                first = AuditLog(served.service.database).verify()
                load = Load(http, keys, texts)
                await load.run(wanted)
            return before, memory, first, load.seen

        before, memory, first, seen = asyncio.run(main())
        assert seen.wrong == []
        # Nobody waits any more, and each request ended in one of four ways.
        assert seen.total == REQUESTS
        assert min(len(seen.answers), len(seen.left), seen.refused.total(), len(seen.unseen)) > 30
        assert (before["free"], before["leases"], before["cache_used"]) == (16, 0, False)
        until(lambda: state(served) == before, 60)
        check_entries(AuditLog(served.service.database), first, seen)
        gc.collect()
        assert resident() - memory < LEFT_BYTES


def check_entries(log: AuditLog, first: int, seen: Seen) -> None:
    """One entry a request; of whoever left before it heard anything, one or none."""
    entries = [entry.event for entry in log.entries(last=log.verify() - first)]
    refused = Counter(event["principal"] for event in entries if event["decision"] == "refuse")
    assert refused == seen.refused
    ended = {event["ticket"]: event for event in entries if event["decision"] == "allow"}
    assert len(ended) + refused.total() == len(entries)
    for finish, known in (("length", seen.answers), ("cancelled", seen.left)):
        for name, plan in known.items():
            event = ended.pop(name.removeprefix("cmpl-"))
            assert (event["principal"], event["finish"]) == (plan.principal, finish)
            assert event["model"] == plan.model.replace("=3", "")
    unseen = Counter(plan.principal for plan in seen.unseen)
    assert Counter(event["principal"] for event in ended.values()) <= unseen
    assert {event["finish"] for event in ended.values()} <= {"cancelled"}
