"""The cost model against what really happens: torch's own counters, real files, real memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from intarsia_client.assignment import PRECISIONS, PrivacyParameters, TrainingParameters
from intarsia_client.attachment import attached
from intarsia_client.base_model import BaseModel, head_tensors, linear_modules
from intarsia_client.batches import Batch, sequence_losses
from intarsia_client.transport import broadcast_prefix_size, encode_broadcast, encode_update
from intarsia_client.wire import Adapter
from intarsia_platform.planning.costs import (
    ClientCost,
    CostModel,
    Exchange,
    Workload,
    encoded_bytes,
)
from intarsia_platform.planning.profile import profile_base
from intarsia_platform.planning.resources import ClientResources
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

BATCH, LENGTH = 4, 32
MakeBase = Callable[..., BaseModel]
MakeAdapter = Callable[..., Adapter]


def chosen(names: Sequence[str], which: str) -> tuple[str, ...]:
    """Some modules: all, one kind in every block, the last block, one module in the middle."""
    last = max(int(part) for name in names for part in name.split(".") if part.isdigit())
    kinds = {
        "all": names,
        "a kind": [name for name in names if name.endswith(("q_proj", "query", "c_attn"))],
        "last block": [name for name in names if f".{last}." in name],
        "one": [names[len(names) // 2]],
    }
    return tuple(kinds[which])


def model_of(base: BaseModel, exchange: Exchange | None = None) -> CostModel:
    return CostModel(
        profile=profile_base(base),
        modules=tuple(linear_modules(base, "all-linear")),
        exchange=exchange or Exchange(broadcast_rank=0),
    )


def batch_of(base: BaseModel) -> Batch:
    tokens = torch.randint(3, 200, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = tokens if base.task == "causal-lm" else tokens[:, 0] % 2
    return Batch(tokens=tokens, attention_mask=torch.ones_like(tokens), labels=labels)


def train(base: BaseModel, trainable: Adapter, underneath: Adapter | None, steps: int) -> None:
    """Steps as a client takes them."""
    batch = batch_of(base)
    with attached(base, trainable=trainable, underneath=underneath) as model:
        model.train()
        parameters = [one for one in model.parameters() if one.requires_grad]
        optimiser = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        for _ in range(steps):
            sums, counts, _ = sequence_losses(model, base, batch)
            torch.autograd.backward(sums.sum() / counts.sum())
            torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
            optimiser.step()
            optimiser.zero_grad()


WORK = Workload(tokens=BATCH * LENGTH, length=LENGTH, batch_size=BATCH, longest=LENGTH)
WHICH = ("all", "a kind", "last block", "one")


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("rank", [1, 16])
def test_operations_are_those_that_torch_counts(
    architecture: str, make_base: MakeBase, make_adapter: MakeAdapter, which: str, rank: int
) -> None:
    # The counter knows no operations of fused attention on a CPU.
    base = make_base(architecture, "eager")
    model = model_of(base)
    names = chosen(model.modules, which)
    trainable = make_adapter(base, rank, names)
    with FlopCounterMode(display=False) as counter:
        train(base, trainable, None, steps=1)
    counted = counter.get_total_flops()
    costs = model.at(rank, WORK)
    reckoned = costs.of(names, model.stage_of).flops
    # Of the first stage the whole backward pass is counted, and each input's gradient.
    first = min(model.stage_of[name] for name in names)
    slack = costs.stages[first].flops + sum(costs.modules[name].flops for name in names) / 3
    # BERT's pooler and head see one token of a sequence, the model counts them all.
    tail = costs.stages.get(4, ClientCost(memory_bytes=0, flops=0, bytes_up=0, bytes_down=0))
    pooled = 0.12 * counted if architecture == "bert" else tail.flops
    assert counted <= reckoned <= counted + slack + pooled
    if which == "all":
        assert reckoned <= 1.25 * counted


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize(("rank", "frozen"), [(4, 0), (32, 0), (8, 16)])
def test_memory_is_enough_and_not_much_more(
    architecture: str,
    make_base: MakeBase,
    make_adapter: MakeAdapter,
    which: str,
    rank: int,
    frozen: int,
) -> None:
    base = make_base(architecture)
    model = model_of(base, Exchange(broadcast_rank=frozen))
    names = chosen(model.modules, which)
    trainable = make_adapter(base, rank, names)
    underneath = make_adapter(base, frozen, head=False) if frozen else None
    train(base, trainable, underneath, steps=1)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train(base, trainable, underneath, steps=2)
    events: Any = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]")
    peak = max(itertools.accumulate(change for _, change in changes))
    cost = model.at(rank, WORK).of(names, model.stage_of)
    held = cost.memory_bytes - model.profile.weight_bytes
    # What arrives and what leaves is no tensor of torch's.
    arriving = cost.bytes_down + 4 * sum(
        min(frozen, *one.shape) * sum(one.shape) for one in model.trainable.values()
    )
    leaving = 8 * model.parameters(rank, names)
    assert peak <= held - arriving - leaving / 2
    assert held - arriving - leaving <= 1.7 * peak


@pytest.mark.parametrize("which", WHICH)
def test_parameters_are_those_of_an_attached_model(
    architecture: str, make_base: MakeBase, make_adapter: MakeAdapter, which: str
) -> None:
    base = make_base(architecture)
    model = model_of(base)
    names = chosen(model.modules, which)
    with attached(base, trainable=make_adapter(base, 8, names), underneath=None) as inside:
        real = sum(one.numel() for one in inside.parameters() if one.requires_grad)
    assert model.parameters(8, names) == real


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("which", WHICH)
def test_bytes_up_are_those_of_a_real_update(
    architecture: str, make_base: MakeBase, make_adapter: MakeAdapter, which: str, precision: str
) -> None:
    base = make_base(architecture)
    model = model_of(base, Exchange(broadcast_rank=0, upload=precision))
    names = chosen(model.modules, which)
    start = make_adapter(base, 16, names)
    modules = {
        name: replace(one, a=one.a + np.float32(0.01), b=one.b - np.float32(0.01))
        for name, one in start.modules.items()
    }
    encoded = encode_update(replace(start, modules=modules), start, precision)
    real = len(encoded.tensors) + len(encoded.configuration)
    reckoned = model.at(16, WORK).of(names, model.stage_of).bytes_up
    # What stands beside the numbers is reckoned by the tensor.
    assert real <= reckoned <= real + 300 * len(names) + 4096


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("start", ["residual", "prefix"])
def test_bytes_down_are_those_of_a_real_broadcast(
    architecture: str, make_base: MakeBase, make_adapter: MakeAdapter, precision: str, start: str
) -> None:
    base = make_base(architecture)
    model = model_of(base, Exchange(broadcast_rank=24, start=start, download=precision))
    data = encode_broadcast(make_adapter(base, 24), precision)
    real = len(data) if start == "residual" else broadcast_prefix_size(data, 4)
    reckoned = model.at(4, WORK).constant.bytes_down
    assert real <= reckoned <= real + 200 * (len(model.modules) + 24) + 4096


def test_one_factor_alone_travels_for_half(make_base: MakeBase) -> None:
    base = make_base("llama")
    both, a, b = (
        model_of(base, Exchange(broadcast_rank=8, sent=sent)).at(8, WORK)
        for sent in ("both", "a", "b")
    )
    for name, (d_out, d_in) in linear_modules(base, "all-linear").items():
        whole = both.modules[name].bytes_up
        assert whole - a.modules[name].bytes_up == 4 * 8 * d_out
        assert whole - b.modules[name].bytes_up == 4 * 8 * d_in
    received = model_of(base, Exchange(broadcast_rank=8, received="a")).at(8, WORK)
    assert received.constant.bytes_down < both.constant.bytes_down


def test_weights_too_large_to_fold_keep_a_branch(
    make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(make_base("llama"), Exchange(broadcast_rank=8))
    folded = model.at(4, WORK).constant
    monkeypatch.setattr("intarsia_platform.planning.costs.FOLD_BYTES", 0)
    branch = model.at(4, WORK).constant
    sizes = sum(one.shape[0] * one.shape[1] for one in model.trainable.values())
    sides = sum(sum(one.shape) for one in model.trainable.values())
    assert folded.memory_bytes - branch.memory_bytes == 4 * (sizes - 8 * sides)
    assert branch.flops - folded.flops == 4 * 8 * sides * WORK.tokens - 2 * 8 * sizes


def test_private_training_takes_more_memory_up_to_a_bound(make_base: MakeBase) -> None:
    model = model_of(make_base("llama"))
    training = TrainingParameters(batch_size=BATCH, max_length=LENGTH)
    plain, private = (
        Workload.of(training, PrivacyParameters(unit=unit), records=10, tokens_per_record=LENGTH)
        for unit in ("none", "example")
    )
    assert private.batch_size == 2 * plain.batch_size
    same = replace(plain, private=True)
    more = model.at(8, same).constant.memory_bytes - model.at(8, plain).constant.memory_bytes
    assert more == BATCH * 4 * model.parameters(8)
    many = replace(same, batch_size=1 << 20), replace(plain, batch_size=1 << 20)
    bounded = [model.at(8, work).constant.memory_bytes for work in many]
    assert bounded[0] - bounded[1] == 1 << 28


def test_work_counts_tokens_epochs_and_the_bound_on_steps() -> None:
    privacy = PrivacyParameters()
    training = TrainingParameters(epochs=3, batch_size=2, max_length=100)
    work = Workload.of(
        training, privacy, records=10, tokens_per_record=50.5, sequences_per_record=2.0
    )
    assert (work.tokens, work.length, work.longest) == (1515, 25.25, 100)
    bounded = Workload.of(
        replace(training, max_steps=4), privacy, records=10, tokens_per_record=20.0
    )
    assert bounded.tokens == 4 * 2 * 20


def test_seconds_are_bytes_over_links_and_operations_over_speed() -> None:
    cost = ClientCost(memory_bytes=0, flops=3e9, bytes_up=2e6, bytes_down=5e6)
    resources = ClientResources(gflops=2.0, upload_mbps=8.0, download_mbps=80.0)
    assert cost.seconds(resources) == pytest.approx(1.5 + 2.0 + 0.5)
    assert cost.seconds(ClientResources()) == 0.0


@pytest.mark.parametrize(("width", "bytes_"), [(1, 5), (64, 68), (65, 73), (128, 136)])
def test_int8_travels_with_a_scale_for_each_block(width: int, bytes_: int) -> None:
    assert encoded_bytes(width, "int8") == bytes_
    assert encoded_bytes(width, "bfloat16") == 2 * width


def test_head_of_a_classifier_is_counted(make_base: MakeBase) -> None:
    base = make_base("bert")
    size = sum(tensor.size for tensor in head_tensors(base).values())
    assert size > 0
    assert model_of(base).at(1, WORK).constant.bytes_up >= 4 * size
