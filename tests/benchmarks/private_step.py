"""What example-level privacy costs: a private LoRA step beside a plain one, in one process.

Both steps see the same batches and the same attached model; they take turns, so that whatever else
the machine does falls on both. Prints one JSON object.

    python tests/benchmarks/private_step.py [--base DIR] [--steps N] [--rank R] [--threads T]

One thread by default: a waiting thread's spinning would count as CPU time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from intarsia_client.attachment import attached
from intarsia_client.base_model import BaseModel, linear_modules, load_base
from intarsia_client.batches import Batch, sequence_losses
from intarsia_client.private_gradients import PrivateGradients
from intarsia_client.start import client_start
from intarsia_client.wire import Adapter, LowRankFactors
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DEMO_BASE = Path(__file__).parents[2] / "platform/intarsia_platform/demo/base"
TARGET = 1.25
WARM_UP = 3


def random_base(directory: Path) -> None:
    """A Llama of the demo base's shape with random weights."""
    configuration = LlamaConfig(
        vocab_size=2048,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(configuration).save_pretrained(directory)
    vocabulary = {f"t{index}": index for index in range(2048)}
    special = dict(zip(("unk_token", "bos_token", "eos_token"), ("t0", "t1", "t2"), strict=True))
    tokenizer = Tokenizer(models.WordLevel(vocabulary, special["unk_token"]))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)


def global_adapter(base: BaseModel, rank: int) -> Adapter:
    """An adapter of the given rank with small random factors."""
    generator = np.random.default_rng(0)
    modules = {}
    for name, (d_out, d_in) in linear_modules(base, "all-linear").items():
        a = generator.normal(0, d_in**-0.5, (rank, d_in)).astype(np.float32)
        b = generator.normal(0, 0.01, (d_out, rank)).astype(np.float32)
        modules[name] = LowRankFactors(a=a, b=b, scaling=1.0)
    return Adapter(base=base.base, task=base.task, modules=modules)


def batches(base: BaseModel, count: int, sequences: int, length: int) -> list[Batch]:
    """Full batches of random tokens, so that neither step gains by padding less."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        tokens = torch.randint(3, 2000, (sequences, length), generator=generator)
        labels = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
        made.append(
            Batch(
                tokens=tokens.to(base.device),
                attention_mask=torch.ones_like(tokens).to(base.device),
                labels=labels.to(base.device),
            )
        )
    return made


def timed(step: Callable[[Batch], None], batch: Batch) -> tuple[float, float]:
    """CPU and wall seconds of one step."""
    cpu, wall = time.process_time(), time.perf_counter()
    step(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(
    base: BaseModel, arguments: argparse.Namespace
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """Both steps in turns, after plain steps and a private one to warm up; and peak memory."""
    start = client_start(
        global_adapter(base, 2 * arguments.rank), rank=arguments.rank, scaling=2.0, seed=0
    )
    seen: dict[str, list[tuple[float, float]]] = {"plain": [], "private": []}
    with attached(base, trainable=start.trainable, underneath=start.underneath) as model:
        model.train()
        parameters = [one for one in model.parameters() if one.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

        def plain(batch: Batch) -> None:
            sums, counts, _ = sequence_losses(model, base, batch)
            torch.autograd.backward(sums.sum() / counts.sum())
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad()

        def private(batch: Batch) -> None:
            sums, counts, _ = sequence_losses(model, base, batch)
            gradients.accumulate(sums / counts.clamp(min=1))
            gradients.release()
            optimiser.step()
            optimiser.zero_grad()

        work = batches(base, arguments.steps + WARM_UP, arguments.batch_size, arguments.length)
        peaks = {"before": peak_megabytes()}
        for batch in work[:WARM_UP]:
            plain(batch)
        peaks["plain"] = peak_megabytes()
        for turn, batch in enumerate(work[WARM_UP - 1 :]):
            first = timed(plain, batch)
            with PrivateGradients(
                model,
                max_grad_norm=1.0,
                noise_multiplier=1.0,
                expected_batch_size=arguments.batch_size,
                generator=np.random.default_rng(turn),
            ) as gradients:
                second = timed(private, batch)
            if turn:
                seen["plain"].append(first)
                seen["private"].append(second)
        peaks["private"] = peak_megabytes()
    return seen, peaks


def peak_megabytes() -> float:
    """The most resident memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=DEMO_BASE)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        directory = arguments.base
        if not (directory / "config.json").is_file():
            directory = Path(folder)
            random_base(directory)
        base = load_base(str(directory), task="causal-lm")
        seen, peaks = measure(base, arguments)
    medians = {
        name: {
            "cpu_seconds": statistics.median(cpu for cpu, _ in times),
            "wall_seconds": statistics.median(wall for _, wall in times),
        }
        for name, times in seen.items()
    }
    ratios = {
        kind: statistics.median(
            private[index] / plain[index]
            for plain, private in zip(seen["plain"], seen["private"], strict=True)
        )
        for index, kind in enumerate(("cpu", "wall"))
    }
    result = {
        "base": "demo" if directory == DEMO_BASE else directory.name,
        "device": str(base.device),
        "threads": torch.get_num_threads(),
        "batch_size": arguments.batch_size,
        "length": arguments.length,
        "rank": arguments.rank,
        "steps": arguments.steps,
        **medians,
        "ratio": ratios,
        "target_ratio": TARGET,
        "reached": ratios["cpu"] <= TARGET,
        "peak_megabytes": {name: round(value, 1) for name, value in peaks.items()},
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
