"""What a base model costs to train through, measured on the model itself.

A base is a sequence of *stages*: its numbered blocks (``model.layers.0``, ``encoder.layer.0``), one
before them and one after them. Gradients flow back from the loss to the first stage in which
something is trained, and no further, so cost is counted by stage. Two short forward passes say what
each stage keeps for its backward pass: no formula of one architecture is assumed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from intarsia_client.attachment import attached
from intarsia_client.base_model import BaseModel, head_tensors, precision
from intarsia_client.batches import Batch, sequence_losses
from torch import nn
from transformers.pytorch_utils import Conv1D

_PROBED_LENGTHS = (16, 32)
_BLOCK = re.compile(r"^(.*?\.\d+)(?:\.|$)")


@dataclass(frozen=True, kw_only=True)
class LinearModule:
    """One linear module of the base.

    Args:
        shape: Its (d_out, d_in).
        stage: The stage that it belongs to.
        calls: How often one forward pass calls it; more than once where layers share weights.
    """

    shape: tuple[int, int]
    stage: int
    calls: int

    @property
    def multiplications(self) -> int:
        """Multiplications of a forward pass a token."""
        return self.calls * self.shape[0] * self.shape[1]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What one stage keeps for its backward pass, beside parameters and the adapters' own.

    Args:
        bytes_per_token: Bytes a token.
        bytes_per_pair: Bytes a pair of tokens of one sequence; 0 with fused attention.
        attention_width: Heads times their size, times how many attentions there are.
    """

    bytes_per_token: float
    bytes_per_pair: float
    attention_width: int


@dataclass(frozen=True, kw_only=True)
class BaseProfile:
    """What planning knows of a base model.

    Args:
        modules: From each linear module's full name to what it is, in the order of computation.
        stages: The stages, in the order of computation; the last one holds head and loss.
        weight_bytes: Bytes of the base's parameters.
        head_parameters: How many numbers a classification head has, which every client trains.
        output_width: Numbers that the model puts out a token: its vocabulary or its classes.
    """

    modules: Mapping[str, LinearModule]
    stages: tuple[Stage, ...]
    weight_bytes: int
    head_parameters: int
    output_width: int


def profile_base(base: BaseModel) -> BaseProfile:
    """Measure a base model by two forward passes over a few tokens.

    Args:
        base: The base model; it is afterwards as it was, and so is the process's random state.

    Returns:
        What it costs; the same for equal models on equal devices.
    """
    blocks = _blocks(base.model)
    lengths = {min(length, base.longest_sequence) for length in _PROBED_LENGTHS}
    probes = {length: _probed(base, length, blocks) for length in sorted(lengths)}
    modules = dict(next(iter(probes.values())).modules)
    width = _attention_width(base.model.config)
    stages = []
    for stage in range(len(blocks) + 2):
        per_token, per_pair = _fitted(
            {length: probe.bytes_of(stage) for length, probe in probes.items()}
        )
        inside = [one.calls for one in modules.values() if one.stage == stage]
        attentions = max(inside, default=0) if 1 <= stage <= len(blocks) else 0
        stages.append(
            Stage(
                bytes_per_token=per_token,
                bytes_per_pair=per_pair,
                attention_width=attentions * width,
            )
        )
    causal = base.task == "causal-lm"
    return BaseProfile(
        modules=modules,
        stages=tuple(stages),
        weight_bytes=sum(_storages(base.model).values()),
        head_parameters=sum(tensor.size for tensor in head_tensors(base).values()),
        output_width=int(base.model.config.vocab_size) if causal else len(base.labels),
    )


@dataclass
class _Probe:
    """What one forward pass shows."""

    stage: int = 0
    modules: dict[str, LinearModule] = field(default_factory=dict)
    kept: dict[int, tuple[int, int]] = field(default_factory=dict)

    def bytes_of(self, stage: int) -> int:
        """Bytes kept while this stage computed."""
        return sum(size for where, size in self.kept.values() if where == stage)

    def called(self, name: str, shape: tuple[int, int]) -> None:
        """A linear module computed."""
        before = self.modules.get(name, LinearModule(shape=shape, stage=self.stage, calls=0))
        self.modules[name] = replace(before, calls=before.calls + 1)


def _blocks(model: Any) -> list[str]:
    """The names of the numbered blocks that hold linear modules, in order."""
    names = [name for name, module in model.named_modules() if _is_linear(module)]
    matches = [match.group(1) for name in names if (match := _BLOCK.match(name))]
    return list(dict.fromkeys(matches))


def _probed(base: BaseModel, length: int, blocks: Sequence[str]) -> _Probe:
    """One forward pass over one sequence, as training does it."""
    probe = _Probe()
    own = set(_storages(base.model))
    alive: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own and storage.data_ptr() not in probe.kept:
            # While it lives nothing else has its address.
            alive.append(tensor)
            probe.kept[storage.data_ptr()] = (probe.stage, storage.nbytes())
        return tensor

    tokens = torch.zeros((1, length), dtype=torch.int64, device=base.device)
    labels = tokens if base.task == "causal-lm" else tokens[:, 0]
    batch = Batch(tokens=tokens, attention_mask=torch.ones_like(tokens), labels=labels)
    devices = [base.device] if base.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        attached(base, trainable=None, underneath=None) as model,
        _watched(model, blocks, probe),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        precision(base),
    ):
        model.train()
        sequence_losses(model, base, batch)
    return probe


@contextmanager
def _watched(model: Any, blocks: Sequence[str], probe: _Probe) -> Iterator[None]:
    """Follow which stage computes and what it calls; let gradients flow from the embeddings on."""

    def stands_at(stage: int) -> Callable[..., None]:
        return lambda *_: setattr(probe, "stage", stage)

    def counts(name: str) -> Callable[..., None]:
        def count(_: nn.Module, given: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
            probe.called(name, (int(result.shape[-1]), int(given[0].shape[-1])))

        return count

    def flows(_: nn.Module, __: object, result: torch.Tensor) -> None:
        result.requires_grad_(True)

    with ExitStack() as hooks:
        handles = [model.get_input_embeddings().register_forward_hook(flows)]
        for stage, name in enumerate(blocks, start=1):
            block = model.get_submodule(name)
            handles.append(block.register_forward_pre_hook(stands_at(stage)))
            handles.append(block.register_forward_hook(stands_at(stage + 1)))
        for name, module in model.named_modules():
            if _is_linear(module):
                handles.append(module.register_forward_hook(counts(name)))
        for handle in handles:
            hooks.callback(handle.remove)
        yield


def _is_linear(module: object) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _fitted(sizes: Mapping[int, int]) -> tuple[float, float]:
    """Bytes a token and bytes a pair of tokens, from the bytes at one length or two."""
    (short, little), (long, much) = min(sizes.items()), max(sizes.items())
    if short == long:
        return much / long, 0.0
    per_pair = max(0.0, (much / long - little / short) / (long - short))
    return much / long - per_pair * long, per_pair


def _storages(model: Any) -> dict[int, int]:
    """From each parameter's and buffer's storage to its bytes; tied weights count once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _attention_width(configuration: Any) -> int:
    heads = int(getattr(configuration, "num_attention_heads", 0) or 0)
    size = getattr(configuration, "head_dim", None)
    if size is None and heads:
        size = int(configuration.hidden_size) // heads
    return heads * int(size or 0)
