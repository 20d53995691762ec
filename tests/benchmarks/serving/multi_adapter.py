"""What adapters cost in a forward pass: our kernels and PEFT's ways, beside the bare base.

    python tests/benchmarks/serving/multi_adapter.py [--quick] [--rounds N] [--threads T]

A Llama of random weights (hidden 512, 8 layers, intermediate 1376, vocabulary 8192), 16 rows,
adapters of ranks 4 to 64 on q, k, v and o. Every contender runs once in each round, right after the
bare base, so that whatever else the machine does falls on both; figures are medians over the
rounds, of CPU and wall seconds, and ``ratio`` is the median of the contender's CPU seconds over
those of the base before it. Decoding has four times the rounds. Before a contender is timed it runs
once untimed, so that copies that a batch needs once are made; what they cost is ``composition``.

Contenders: ``distinct_16`` (another adapter in every row), ``top3_of_8`` and ``top3_of_48`` (three
adapters a row with weights, drawn from so many), each also as ``…_strict``; ``top3_of_8_arrow`` and
``…_lag`` (the same adapters, divided by a router in each layer); ``peft_mixed``
(``adapter_names`` of 16 adapters) and ``peft_set_adapter`` (each row alone, after ``set_adapter``),
with as many adapters loaded as ``peft_loaded`` says. ``registered`` is decoding with distinct_16
out of so many registered adapters, all of which have gone through the bank.

One thread by default: a waiting thread's spinning would count as CPU time. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from intarsia_client.base_model import BaseModel
from intarsia_client.files import bytes_digest
from intarsia_client.peft_files import read_encoded
from intarsia_platform.serving.bank import AdapterBank
from intarsia_platform.serving.mixture import Mixture, mixture_of
from intarsia_platform.serving.plan import FactorCopies
from intarsia_platform.serving.served_base import ServedBase
from random_llama import PROMPT, ROWS, Inputs, bare_model, write_adapters

WEIGHTS = (0.5, 0.3125, 0.1875)
TARGETS = {
    "prefill": {"distinct_16": 1.04, "top3_of_8": 1.06, "top3_of_48": 1.09},
    "decode": {"distinct_16": 1.10, "top3_of_8": 1.08, "top3_of_48": 1.30},
    "registered_spread": 0.03,
    "load_256_cpu_seconds": 1.5,
}
Step = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time.

    Args:
        prefill: One call with the whole prompt of every row.
        decode: One call with a token of every row.
        within: What is around the timed calls and not timed.
    """

    prefill: Step
    decode: Step
    within: Callable[[], AbstractContextManager[object]] = nullcontext


@contextmanager
def without_hooks(model: Any) -> Iterator[None]:
    """The served model as if nobody served it: the same weights at the same place in memory."""
    hooked = [(module, module._forward_hooks) for module in model.modules()]
    for module, _ in hooked:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, hooks in hooked:
            module._forward_hooks = hooks


def served_contender(
    served: ServedBase, mixtures: Sequence[Mixture], inputs: Inputs, strict: bool
) -> Contender:
    """Ours with one plan and copies of its own, as when nothing else is served in between."""
    plan = replace(served.plan(mixtures, strict=strict), copies=FactorCopies())

    def within(call: Callable[[Any], torch.Tensor]) -> Step:
        def step() -> torch.Tensor:
            with served.using(plan) as model:
                return call(model)

        return step

    return Contender(prefill=within(inputs.prefill), decode=within(inputs.decode))


def peft_contenders(model: Any, folders: Sequence[Path], inputs: Inputs) -> dict[str, Contender]:
    """PEFT's two ways to give each row its own adapter."""
    from peft import PeftModel

    names = [folder.name for folder in folders]
    wrapped = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
    for folder in folders[1:]:
        wrapped.load_adapter(folder, adapter_name=folder.name, low_cpu_mem_usage=True)
    wrapped.eval()

    def alone(call: Callable[..., torch.Tensor]) -> Step:
        def step() -> torch.Tensor:
            rows = []
            for row in range(ROWS):
                wrapped.set_adapter(names[row])
                rows.append(call(wrapped, slice(row, row + 1)))
            return torch.cat(rows)

        return step

    def mixed(call: Callable[..., torch.Tensor]) -> Step:
        return lambda: call(wrapped, adapter_names=names[:ROWS])

    return {
        "peft_mixed": Contender(prefill=mixed(inputs.prefill), decode=mixed(inputs.decode)),
        "peft_set_adapter": Contender(prefill=alone(inputs.prefill), decode=alone(inputs.decode)),
    }


def drawn_mixtures(adapters: Sequence[Any], seed: int, routing: str = "") -> list[Mixture]:
    """Three adapters a row, by weights or by a router."""
    generator = np.random.default_rng(seed)
    chosen = [generator.choice(len(adapters), 3, replace=False) for _ in range(ROWS)]
    return [
        mixture_of(zip([adapters[int(one)] for one in row], WEIGHTS, strict=True), routing)
        for row in chosen
    ]


def timed(step: Step, times: int) -> tuple[float, float]:
    """CPU and wall seconds of one call."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(times):
        step()
    return (time.process_time() - cpu) / times, (time.perf_counter() - wall) / times


def compare(
    contenders: dict[str, Contender], phase: str, rounds: int, times: int
) -> dict[str, dict[str, float]]:
    """Time all contenders in turns, each right after the first, which it is compared with."""
    base = next(iter(contenders.values()))
    seen: dict[str, list[tuple[float, float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            step = getattr(contender, phase)
            with base.within():
                bare, _ = timed(getattr(base, phase), times)
            with contender.within():
                if phase == "decode" or not seen[name]:
                    step()
                cpu, wall = timed(step, 1 if name == "peft_set_adapter" else times)
            seen[name].append((cpu, wall, cpu / bare))
    return {
        name: {
            "cpu_ms": round(1e3 * statistics.median(cpu for cpu, _, _ in runs), 2),
            "wall_ms": round(1e3 * statistics.median(wall for _, wall, _ in runs), 2),
            "ratio": round(statistics.median(ratio for _, _, ratio in runs), 3),
        }
        for name, runs in seen.items()
    }


def composition(
    served: ServedBase, mixtures: Sequence[Mixture], inputs: Inputs
) -> dict[str, float]:
    """What a change of the batch costs once: the step after it, over the next step."""
    everything, one_row, megabytes = [], [], 0.0
    for _ in range(3):
        served.release()
        for changed, seen in ((mixtures, everything), ([*mixtures[1:], mixtures[0][:0]], one_row)):
            plan = served.plan(changed, strict=True)
            with served.using(plan) as model:
                first = timed(lambda model=model: inputs.decode(model), 1)[0]
                seen.append(first - timed(lambda model=model: inputs.decode(model), 1)[0])
            megabytes = max(megabytes, served.copied_bytes / 1e6)
        # Back again: the row that joins brings its adapters.
        with served.using(served.plan(mixtures, strict=True)) as model:
            first = timed(lambda model=model: inputs.decode(model), 1)[0]
            one_row.append(first - timed(lambda model=model: inputs.decode(model), 1)[0])
    return {
        "all_rows_new_cpu_ms": round(1e3 * statistics.median(everything), 2),
        "one_row_left_or_joined_cpu_ms": round(1e3 * statistics.median(one_row), 2),
        "copied_megabytes": round(megabytes, 1),
    }


def loading(base: BaseModel, folders: Sequence[Path]) -> dict[str, float]:
    """Seconds from files to the bank; and to read and hash them, which a registry does besides."""

    cpu = time.process_time()
    for folder in folders:
        bytes_digest(read_encoded(folder).tensors)
    hashing = time.process_time() - cpu
    # Once more, now that the files are in the page cache for both.
    bank = AdapterBank(base, lambda name: read_encoded(Path(name)))
    cpu, wall = time.process_time(), time.perf_counter()
    with bank.lease(map(str, folders)):
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {
        "adapters": len(folders),
        "cpu_seconds": round(cpu, 3),
        "wall_seconds": round(wall, 3),
        "hashing_cpu_seconds": round(hashing, 3),
        "megabytes": round(bank.size / 1e6, 1),
    }


def registered(
    served: ServedBase, folders: Sequence[Path], counts: Sequence[int], inputs: Inputs, rounds: int
) -> dict[str, Any]:
    """Decoding with 16 adapters out of so many, all of which have been through the bank."""
    contenders, leases = {}, []
    for count in counts:
        # Names of the same files; a bank knows adapters by name alone.
        places = {f"{index:04d}": folders[index % len(folders)] for index in range(count)}
        bank = AdapterBank(
            served.base, lambda name, places=places: read_encoded(places[name]),
            capacity_bytes=1 << 28,
        )  # fmt: skip
        for name in places:
            bank.lease([name]).close()
        leases.append(bank.lease(list(places)[:ROWS]))
        mixtures = [mixture_of([(adapter, 1.0)]) for adapter in leases[-1].adapters]
        contenders[str(count)] = served_contender(served, mixtures, inputs, strict=False)
    found = compare(contenders, "decode", 4 * rounds, 3)
    for lease in leases:
        lease.close()
    ratios = [one["ratio"] for one in found.values()]
    return {"decode": found, "spread": round(max(ratios) / min(ratios) - 1, 4)}


def check(contenders: dict[str, Contender]) -> dict[str, float]:
    """The largest difference between ours and PEFT's logits."""
    return {
        phase: float(
            (
                getattr(contenders["distinct_16"], phase)()
                - getattr(contenders["peft_mixed"], phase)()
            )
            .abs()
            .max()
        )
        for phase in ("prefill", "decode")
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, few adapters")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-peft", action="store_true")
    arguments = parser.parse_args()
    quick = arguments.quick
    rounds = arguments.rounds or (2 if quick else 7)
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        print(json.dumps(measured(Path(folder), quick, rounds, not arguments.no_peft)))


def measured(folder: Path, quick: bool, rounds: int, with_peft: bool) -> dict[str, Any]:
    """Everything that is printed."""
    with torch.inference_mode(False):
        model = bare_model()
        folders = write_adapters(folder, 48 if quick else 256)
    base = BaseModel(
        model=model,
        tokenizer=None,
        digest="bench",
        task="causal-lm",
        base="bench",
        directory=folder,
        device=torch.device("cpu"),
    )
    inputs = Inputs(model)
    # Copied before hooks are put in.
    with torch.inference_mode(False):
        for_peft = copy.deepcopy(model) if with_peft else None
    result: dict[str, Any] = {"rows": ROWS, "prompt": PROMPT, "rounds": rounds}
    result |= {"threads": torch.get_num_threads(), "targets": TARGETS}
    result["loading"] = loading(base, folders)
    bank = AdapterBank(base, lambda name: read_encoded(Path(name)))
    with bank.lease(map(str, folders[:48])) as adapters, ServedBase(base) as served:
        draws = {
            "distinct_16": [mixture_of([(adapter, 1.0)]) for adapter in adapters[:ROWS]],
            "top3_of_8": drawn_mixtures(adapters[:8], 5),
            "top3_of_48": drawn_mixtures(adapters, 6),
        }
        result["mean_rank"] = {
            name: sum(max(one.ranks.values()) for row in rows for one, _ in row) / ROWS
            for name, rows in draws.items()
        }
        contenders = {
            "base": Contender(
                prefill=lambda: inputs.prefill(model),
                decode=lambda: inputs.decode(model),
                within=lambda: without_hooks(model),
            )
        }
        none: list[Mixture] = [()] * ROWS
        contenders["no_adapters"] = served_contender(served, none, inputs, strict=False)
        for name, rows in draws.items():
            contenders[name] = served_contender(served, rows, inputs, strict=False)
            contenders[f"{name}_strict"] = served_contender(served, rows, inputs, strict=True)
        for routing in ("arrow", "lag"):
            routed = drawn_mixtures(adapters[:8], 5, routing)
            contenders[f"top3_of_8_{routing}"] = served_contender(
                served, routed, inputs, strict=False
            )
        if with_peft:
            loaded = folders[: ROWS if quick else 64]
            contenders |= peft_contenders(for_peft, loaded, inputs)
            result["peft_loaded"] = len(loaded)
            result["largest_difference_from_peft"] = check(contenders)
        result["decode"] = compare(contenders, "decode", 4 * rounds, 3)
        few = {name: one for name, one in contenders.items() if not name.endswith("_strict")}
        result["prefill"] = compare(few, "prefill", rounds, 1)
        result["composition"] = {
            name: composition(served, rows, inputs) for name, rows in draws.items()
        }
        counts = (64, 128) if quick else (64, 256, 1000)
        result["registered"] = registered(served, folders, counts, inputs, rounds)
    result["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return result


if __name__ == "__main__":
    main()
