"""Tokens per second of the engine, beside the bare model's own loop, in one process.

Rows, prompts and answer lengths are the same everywhere; prompts have unequal lengths for the
engine and for transformers' loop, which pads them. The ways take turns, so that whatever else the
machine does falls on all of them. Every engine row has a ticket of its own, from a real authoriser
over a real database. Prints one JSON object.

    python tests/benchmarks/serving/generation.py [--rows N] [--tokens N] [--repeats N] [--small]
        [--threads T]

The base is a Llama of 8 layers and 512 dimensions with random weights; ``--small`` takes 2 layers
and 64 dimensions, where Python is all the time there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_client.wire import Adapter, LowRankFactors
from intarsia_continual.retrieval import Choice
from intarsia_platform.access.authorization import Authorizer
from intarsia_platform.access.policy import PolicyStore
from intarsia_platform.access.ticket import TicketMint
from intarsia_platform.registry.adapters import AdapterRegistry
from intarsia_platform.registry.database import open_database
from intarsia_platform.registry.store import ContentStore
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.engine import Engine, Request
from intarsia_platform.serving.sampling import Sampling
from intarsia_platform.serving.served_base import ServedBase
from random_llama import RANKS, bare_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.cache_utils import DynamicCache

POLICIES = 'permit(principal, action == Action::"use", resource);'


def random_base(directory: Path, *, small: bool) -> None:
    """A Llama with random weights that ends no answer."""
    size = {"width": 64, "layers": 2, "words": 512} if small else {}
    model = bare_model(**size)
    model.save_pretrained(directory)
    vocabulary = {f"t{index}": index for index in range(model.config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "t0"))
    special = dict(zip(("unk_token", "pad_token", "bos_token"), ("t0", "t0", "t1"), strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def random_adapter(base: BaseModel, rank: int, seed: int) -> Adapter:
    """An adapter of the attention's four modules."""
    generator = np.random.default_rng(seed)
    modules = {
        name: LowRankFactors(
            a=generator.normal(0, d_in**-0.5, (rank, d_in)).astype(np.float32),
            b=generator.normal(0, 0.05, (d_out, rank)).astype(np.float32),
            scaling=1.0,
        )
        for name, (d_out, d_in) in linear_modules(
            base, ["q_proj", "k_proj", "v_proj", "o_proj"]
        ).items()
    }
    return Adapter(base=base.base, task=base.task, modules=modules)


def model_loop(base: BaseModel, prompts: list[list[int]], count: int) -> list[list[int]]:
    """The bare model's own loop: padded on the left, a growing cache, the likeliest token."""
    longest = max(map(len, prompts))
    tokens = torch.full((len(prompts), longest), base.pad_token_id)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    cache, found = DynamicCache(), []
    with torch.inference_mode():
        for _ in range(count):
            positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
            logits = base.model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = logits.argmax(-1, keepdim=True)
            mask = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            found.append(tokens)
    return torch.cat(found, dim=1).tolist()


@contextmanager
def world(directory: Path, base: BaseModel, rows: int) -> Iterator[tuple[Any, Any, Any, list[str]]]:
    """An authoriser who grants everything, a bank and a served base, and adapters' digests."""
    people = [
        {
            "uid": {"type": "User", "id": f"u{row}"},
            "attrs": {"groups": [], "clearance": 1, "tenant": "t"},
            "parents": [],
        }
        for row in range(rows)
    ]
    with (
        open_database(f"sqlite:///{directory}/intarsia.db") as database,
        ServedBase(base) as served,
    ):
        PolicyStore(database).set(POLICIES, json.dumps(people))
        registry = AdapterRegistry(database, ContentStore(str(directory / "store")))
        digests = []
        for row in range(rows):
            adapter = random_adapter(base, RANKS[row % len(RANKS)], row)
            version = registry.prepare(adapter, name=f"a{row}", base_digest=base.digest)
            digests.append(registry.register(version).digest)
        authorizer = Authorizer(database, TicketMint(b"s" * 32))
        yield authorizer, AdapterBank(base, registry.encoded), served, digests


def engine_way(
    engine: Engine, authorizer: Authorizer, prompts: list[list[int]], count: int, digests: list[str]
) -> list[list[int]]:
    """All prompts at once, each with its own ticket and, where there are any, its own adapter."""
    streams = [
        engine.submit(
            Request(
                ticket=authorizer.authorize(f"u{row}"),
                prompt=prompt,
                choices=[Choice(digest=digests[row], weight=1.0)] if digests else [],
                sampling=Sampling(max_tokens=count),
            )
        )
        for row, prompt in enumerate(prompts)
    ]
    return [list(stream.read().tokens) for stream in streams]


def timed(ways: dict[str, Callable[[], list[list[int]]]], repeats: int) -> dict[str, Any]:
    """Let the ways take turns; medians of wall and CPU time of each."""
    wall: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    produced = {}
    for repeat in range(repeats + 1):
        for name, way in ways.items():
            begun = time.perf_counter(), time.process_time()
            produced[name] = sum(map(len, way()))
            if repeat:
                wall[name].append(time.perf_counter() - begun[0])
                cpu[name].append(time.process_time() - begun[1])
    first = next(iter(ways))
    return {
        name: {
            "tokens": produced[name],
            "tokens_per_second": produced[name] / statistics.median(wall[name]),
            "tokens_per_cpu_second": produced[name] / statistics.median(cpu[name]),
            "cpu_time_over_first": statistics.median(cpu[name]) / statistics.median(cpu[first]),
        }
        for name in ways
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
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
        prompts = [
            [1, *map(int, generator.integers(2, words, size=16 + 3 * (row % 16)))]
            for row in range(given.rows)
        ]
        authorizer, bank, served, digests = stack.enter_context(world(directory, base, given.rows))
        begun = time.perf_counter()
        strict = stack.enter_context(
            Engine(served, bank, authorizer, max_rows=given.rows, row_tokens=256)
        )
        measuring = time.perf_counter() - begun
        loose = stack.enter_context(
            Engine(
                served,
                bank,
                authorizer,
                max_rows=given.rows,
                row_tokens=256,
                strict=False,
                shapes=strict.shapes,
            )
        )
        common = (authorizer, prompts, given.tokens)
        ways = {
            "bare model": lambda: model_loop(base, prompts, given.tokens),
            "engine, base": lambda: engine_way(strict, *common, []),
            "engine, an adapter a row": lambda: engine_way(strict, *common, digests),
            "engine, four adapters": lambda: engine_way(strict, *common, digests[:4] * 8),
            "engine, four adapters, not strict": lambda: engine_way(
                loose, *common, digests[:4] * 8
            ),
        }
        ways = {key: way for key, way in ways.items() if given.rows <= 32 or "four" not in key}
        same = model_loop(base, prompts, 8) == engine_way(strict, authorizer, prompts, 8, [])
        report = {
            "rows": given.rows,
            "tickets": given.rows,
            "threads": given.threads,
            "shapes": {"rows": strict.shapes.rows, "visible": strict.shapes.visible},
            "measuring_seconds": measuring,
            "first_tokens_equal": same,
            "ways": timed(ways, given.repeats),
        }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
