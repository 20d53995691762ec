"""Time to the first token, and CPU time, with and without kept beginnings of prompts.

One principal asks again and again with the same beginning and an end of its own. Two engines over
the same base take turns on the same prompts: one keeps beginnings, one does not. Prompts that are
never seen again are asked too, for what keeping costs where it is of no use. Answers are compared
byte for byte. Prints one JSON object.

    python tests/benchmarks/serving/prefix.py [--shared N] [--own N] [--requests N] [--small]
        [--threads T] [--rank R]

The base is that of ``generation.py``; without ``--rank`` it answers alone, else with an adapter.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation import random_adapter, random_base
from intarsia_client.base_model import BaseModel, load_base
from intarsia_continual.retrieval import Choice
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.ticket import TicketMint
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.capacities import PREFIX_BYTES
from intarsia_platform.serving.engine import Engine, Request
from intarsia_platform.serving.runner import Shapes, all_shapes
from intarsia_platform.serving.sampling import Sampling
from intarsia_platform.serving.served_base import ServedBase

POLICIES = 'permit(principal, action == Action::"use", resource);'
ROW = 512
ANSWER = 2

Asker = Callable[[list[int]], tuple[float, float, list[int]]]


def engines(
    directory: Path, base: BaseModel, rank: int, stack: ExitStack
) -> tuple[dict[str, Engine], dict[str, Asker]]:
    """An engine without and one with kept beginnings, and who asks each."""
    people = [{"uid": {"type": "User", "id": "ann"}, "attrs": {"groups": []}, "parents": []}]
    database = stack.enter_context(open_database(f"sqlite:///{directory}/intarsia.db"))
    served = stack.enter_context(ServedBase(base))
    PolicyStore(database).set(POLICIES, json.dumps(people))
    registry = AdapterRegistry(database, ContentStore(str(directory / "store")))
    choices = []
    if rank:
        adapter = random_adapter(base, rank, 0)
        version = registry.prepare(adapter, name="a", base_digest=base.digest)
        choices = [Choice(digest=registry.register(version).digest, weight=1.0)]
    authorizer = Authorizer(database, TicketMint(b"s" * 32))
    bank = AdapterBank(base, registry.encoded)
    shapes = Shapes(rows=(), visible=all_shapes(1, ROW).visible)
    made = {
        name: stack.enter_context(
            Engine(
                served,
                bank,
                authorizer,
                max_rows=1,
                row_tokens=ROW,
                prefix_bytes=most,
                shapes=shapes,
            )
        )
        for name, most in (("without", 0), ("with", PREFIX_BYTES))
    }

    def asker(engine: Engine) -> Asker:
        def ask(prompt: list[int]) -> tuple[float, float, list[int]]:
            ticket = authorizer.authorize("ann")
            sampling = Sampling(max_tokens=ANSWER)
            request = Request(ticket=ticket, prompt=prompt, choices=choices, sampling=sampling)
            begun = time.perf_counter(), time.process_time()
            stream = engine.submit(request)
            first = stream.get()
            taken = time.perf_counter() - begun[0], time.process_time() - begun[1]
            tokens = [first.token, *(event.token for event in stream)]
            return (*taken, tokens)

        return ask

    return made, {name: asker(engine) for name, engine in made.items()}


def compared(askers: dict[str, Asker], prompts: list[list[int]]) -> dict[str, Any]:
    """Let the engines take turns; medians of each, in milliseconds."""
    wall: dict[str, list[float]] = {name: [] for name in askers}
    cpu: dict[str, list[float]] = {name: [] for name in askers}
    same = True
    for prompt in prompts:
        answers = []
        for name, ask in askers.items():
            first, spent, tokens = ask(prompt)
            wall[name].append(1e3 * first)
            cpu[name].append(1e3 * spent)
            answers.append(tokens)
        same = same and answers[0] == answers[1]
    found: dict[str, Any] = {
        name: {
            "first_token_ms": statistics.median(wall[name]),
            "first_token_cpu_ms": statistics.median(cpu[name]),
        }
        for name in askers
    }
    return {
        **found,
        "cpu_with_over_without": statistics.median(cpu["with"]) / statistics.median(cpu["without"]),
        "first_token_with_over_without": statistics.median(wall["with"])
        / statistics.median(wall["without"]),
        "answers_equal": same,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=int, default=256)
    parser.add_argument("--own", type=int, default=32)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        directory = Path(name)
        random_base(directory / "base", small=given.small)
        base = load_base(str(directory / "base"), task="causal-lm")
        words = int(base.model.config.vocab_size)

        def tokens(count: int) -> list[int]:
            return [int(one) for one in generator.integers(2, words, size=count)]

        made, askers = engines(directory, base, given.rank, stack)
        shared = tokens(given.shared)
        # Once for both, so that libraries are warm and the beginning is kept.
        compared(askers, [shared + tokens(given.own)])
        before = made["with"].statistics
        again = compared(askers, [shared + tokens(given.own) for _ in range(given.requests)])
        after = made["with"].statistics
        new = compared(askers, [tokens(given.shared + given.own) for _ in range(given.requests)])
        report = {
            "shared_tokens": given.shared,
            "own_tokens": given.own,
            "requests": given.requests,
            "adapter_rank": given.rank,
            "threads": given.threads,
            "same_beginning": again,
            "never_seen_before": new,
            "hits": after.prefix_hits - before.prefix_hits,
            "misses": after.prefix_misses - before.prefix_misses,
            "bytes_of_the_beginning": before.prefix_bytes,
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
